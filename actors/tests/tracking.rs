//! Every allocation of this test binary goes through here; those of a rank's thread are counted.

use std::alloc::System;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

use tracking_allocator::{
    AllocationGroupId, AllocationGroupToken, AllocationRegistry, AllocationTracker, Allocator,
};

#[global_allocator]
static ALLOCATOR: Allocator<System> = Allocator::system();

/// Groups that are counted; later ones are not, and asking for them fails.
const GROUPS_MAX: usize = 1 << 12;

/// Bytes held now and at most, by group.
static HELD: [(AtomicI64, AtomicI64); GROUPS_MAX] =
    [const { (AtomicI64::new(0), AtomicI64::new(0)) }; GROUPS_MAX];

struct Counter;

/// The group that a thread has outside of every other; it is not counted.
const NOBODY: usize = 1;

fn held(group: &AllocationGroupId) -> Option<&'static (AtomicI64, AtomicI64)> {
    let index = group.as_usize().get();
    (index != NOBODY).then(|| HELD.get(index)).flatten()
}

impl AllocationTracker for Counter {
    fn allocated(&self, _: usize, size: usize, _: usize, group: AllocationGroupId) {
        if let Some((now, most)) = held(&group) {
            let size = size as i64;
            most.fetch_max(now.fetch_add(size, Ordering::Relaxed) + size, Ordering::Relaxed);
        }
    }

    fn deallocated(
        &self,
        _: usize,
        size: usize,
        _: usize,
        source: AllocationGroupId,
        _: AllocationGroupId,
    ) {
        if let Some((now, _)) = held(&source) {
            now.fetch_sub(size as i64, Ordering::Relaxed);
        }
    }
}

/// What a thread allocated and, at the time of asking, had not freed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Bytes now.
    pub now: u64,
    /// Bytes at most so far.
    pub most: u64,
}

/// Runs `work` and gives it a way to ask what this thread holds since.
pub fn tracked<T>(work: impl FnOnce(&dyn Fn() -> Held) -> T) -> T {
    static STARTED: OnceLock<()> = OnceLock::new();
    STARTED.get_or_init(|| {
        AllocationRegistry::set_global_tracker(Counter).unwrap();
        AllocationRegistry::enable_tracking();
    });
    let mut token = AllocationGroupToken::register().unwrap();
    let group = token.id();
    let _guard = token.enter();
    work(&|| {
        let (now, most) = held(&group).unwrap();
        let read = |bytes: &AtomicI64| bytes.load(Ordering::Relaxed).max(0) as u64;
        Held { now: read(now), most: read(most) }
    })
}

#[test]
fn a_thread_is_charged_for_what_it_holds_and_has_held() {
    tracked(|held| {
        let first = vec![0u8; 1 << 20];
        drop(vec![0u8; 2 << 20]);
        let Held { now, most } = held();
        assert!((1 << 20..(1 << 20) + 4096).contains(&now), "{now}");
        assert!(((3 << 20)..(3 << 20) + 4096).contains(&most), "{most}");
        drop(first);
        assert!(held().now < 4096);
    });
}

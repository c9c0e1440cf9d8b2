//! Every allocation of this test binary goes through here: those of a payload's size are counted,
//! and those of a thread that asks for it.

use std::alloc::System;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracking_allocator::{
    AllocationGroupId, AllocationGroupToken, AllocationRegistry, AllocationTracker, Allocator,
};

#[global_allocator]
static ALLOCATOR: Allocator<System> = Allocator::system();

static LARGE: AtomicUsize = AtomicUsize::new(0);
static ALL: AtomicUsize = AtomicUsize::new(0);
/// Of threads inside [`own_allocations`].
static OWN: AtomicUsize = AtomicUsize::new(0);

/// From here on an allocation counts as large, in bytes.
pub(crate) const LARGE_BYTES: usize = 256 << 10;

/// The group that a thread has outside of every other.
const NOBODY: usize = 1;

struct Counter;

impl AllocationTracker for Counter {
    fn allocated(&self, _: usize, size: usize, _: usize, group: AllocationGroupId) {
        ALL.fetch_add(1, Ordering::Relaxed);
        if size >= LARGE_BYTES {
            LARGE.fetch_add(1, Ordering::Relaxed);
        }
        if group.as_usize().get() != NOBODY {
            OWN.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn deallocated(
        &self,
        _: usize,
        _: usize,
        _: usize,
        _: AllocationGroupId,
        _: AllocationGroupId,
    ) {
    }
}

fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        AllocationRegistry::set_global_tracker(Counter).unwrap();
        AllocationRegistry::enable_tracking();
    });
}

/// Large allocations and all allocations of this process since the first call.
pub(crate) fn allocations() -> (usize, usize) {
    watch();
    (LARGE.load(Ordering::Relaxed), ALL.load(Ordering::Relaxed))
}

/// How often this thread allocates while it does `work`; one thread at a time may ask.
pub(crate) fn own_allocations(work: impl FnOnce()) -> usize {
    watch();
    let mut token = AllocationGroupToken::register().unwrap();
    let before = OWN.load(Ordering::Relaxed);
    let guard = token.enter();
    work();
    drop(guard);
    OWN.load(Ordering::Relaxed) - before
}

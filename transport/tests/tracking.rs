//! Every allocation of this test binary goes through here; those of a payload's size are counted.

use std::alloc::System;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracking_allocator::{AllocationGroupId, AllocationRegistry, AllocationTracker, Allocator};

#[global_allocator]
static ALLOCATOR: Allocator<System> = Allocator::system();

static LARGE: AtomicUsize = AtomicUsize::new(0);
static ALL: AtomicUsize = AtomicUsize::new(0);

/// From here on an allocation counts as large, in bytes.
pub(crate) const LARGE_BYTES: usize = 256 << 10;

struct Counter;

impl AllocationTracker for Counter {
    fn allocated(&self, _: usize, size: usize, _: usize, _: AllocationGroupId) {
        ALL.fetch_add(1, Ordering::Relaxed);
        if size >= LARGE_BYTES {
            LARGE.fetch_add(1, Ordering::Relaxed);
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

/// Large allocations and all allocations of this process since the first call.
pub(crate) fn allocations() -> (usize, usize) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        AllocationRegistry::set_global_tracker(Counter).unwrap();
        AllocationRegistry::enable_tracking();
    });
    (LARGE.load(Ordering::Relaxed), ALL.load(Ordering::Relaxed))
}

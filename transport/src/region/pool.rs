//! Regions that are used again.
//!
//! Owns the free blocks by size class, and the counters of views that have ended. Invariants: at
//! most `retained_bytes_max` bytes and [`COUNTERS_MAX`] counters lie idle; a block that does not
//! fit the bound is freed; a region outlives its pool safely.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::block::Block;
use super::{DeviceMemory, REGION_ALIGN_BYTES, Region};
use crate::error::TransportError;

/// The smallest block a pool hands out, in bytes.
const CLASS_BYTES_MIN: usize = 4096;

/// How many size classes lie between two powers of two (waste is at most a fifth).
const CLASSES_PER_DOUBLING: usize = 4;

/// The most counters that are kept.
const COUNTERS_MAX: usize = 1024;

/// Idle bytes that the pool of a device's memory keeps: what a rank posts ahead, and as much again
/// for what it sends.
pub const DEVICE_POOL_BYTES_MAX: usize = 512 << 20;

/// A bounded pool of host regions; clones share it.
#[derive(Clone)]
pub struct RegionPool {
    shared: Arc<Shared>,
}

impl RegionPool {
    /// A pool that keeps at most `retained_bytes_max` idle bytes.
    pub fn new(retained_bytes_max: usize) -> Self {
        let (blocks, counters) = (HashMap::new(), Vec::new());
        let idle = Mutex::new(Idle { blocks, bytes: 0, lent: 0, counters });
        Self { shared: Arc::new(Shared { retained_bytes_max, idle }) }
    }

    /// A region of `len` bytes; the bytes are whatever was there before.
    pub fn allocate(&self, len: usize) -> Region {
        let class = class_of(len);
        let block = self.shared.lock().take(class);
        let block = block.unwrap_or_else(|| Block::zeroed(class + REGION_ALIGN_BYTES - 1));
        self.region(block, class, len)
    }

    fn region(&self, block: Block, class: usize, len: usize) -> Region {
        self.shared.lock().lent += class;
        Region::pooled(block, len, Home { class, pool: Arc::downgrade(&self.shared) })
    }

    /// Idle bytes kept right now.
    pub fn retained_bytes(&self) -> usize {
        self.shared.lock().bytes
    }

    /// Bytes of regions that are in use right now.
    pub fn lent_bytes(&self) -> usize {
        self.shared.lock().lent
    }
}

/// Regions in the memory of one device.
#[derive(Clone)]
pub(crate) struct DevicePool {
    device: Arc<dyn DeviceMemory>,
    pool: RegionPool,
}

impl DevicePool {
    pub(crate) fn new(device: Arc<dyn DeviceMemory>) -> Self {
        Self { device, pool: RegionPool::new(DEVICE_POOL_BYTES_MAX) }
    }

    pub(crate) fn lent_bytes(&self) -> usize {
        self.pool.lent_bytes()
    }

    pub(crate) fn device(&self) -> &Arc<dyn DeviceMemory> {
        &self.device
    }

    /// A region of `len` bytes that the device does nothing with any more.
    pub(crate) fn allocate(&self, len: usize) -> Result<Region, TransportError> {
        let class = class_of(len);
        let idle = self.pool.shared.lock().take(class);
        let block = match idle {
            Some(block) => block,
            None => Block::foreign(self.device.allocate(class)?),
        };
        Ok(self.pool.region(block, class, len))
    }
}

/// Where a pooled block goes back to.
pub(super) struct Home {
    class: usize,
    pool: Weak<Shared>,
}

impl Home {
    /// A block that was lent does not come back.
    pub(super) fn forget(self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.lock().lent -= self.class;
        }
    }

    pub(super) fn take_back(self, block: Block) {
        let Some(pool) = self.pool.upgrade() else { return };
        let mut idle = pool.lock();
        idle.lent -= self.class;
        if idle.bytes + self.class <= pool.retained_bytes_max {
            idle.bytes += self.class;
            idle.blocks.entry(self.class).or_default().push(block);
            return;
        }
        // Giving up registrations and device memory may take a while.
        drop(idle);
        drop(block);
    }

    /// A counter for views, hollow.
    pub(super) fn counter(&self) -> Option<Arc<Region>> {
        self.pool.upgrade()?.lock().counters.pop()
    }

    /// Keeps a counter whose views have ended; it is hollow and nobody else has it.
    pub(super) fn keep(&self, counter: Arc<Region>) {
        let Some(pool) = self.pool.upgrade() else { return };
        let mut idle = pool.lock();
        if idle.counters.len() < COUNTERS_MAX {
            idle.counters.push(counter);
        }
    }
}

struct Shared {
    retained_bytes_max: usize,
    idle: Mutex<Idle>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Idle {
    blocks: HashMap<usize, Vec<Block>>,
    bytes: usize,
    /// Bytes that are not here.
    lent: usize,
    counters: Vec<Arc<Region>>,
}

impl Idle {
    fn take(&mut self, class: usize) -> Option<Block> {
        let blocks = self.blocks.get_mut(&class)?;
        let at = blocks.iter().rposition(Block::is_idle)?;
        self.bytes -= class;
        Some(blocks.swap_remove(at))
    }
}

/// The size of the block that a request of `len` bytes gets.
fn class_of(len: usize) -> usize {
    if len <= CLASS_BYTES_MIN {
        return CLASS_BYTES_MIN;
    }
    let step = len.next_power_of_two() / 2 / CLASSES_PER_DOUBLING;
    len.div_ceil(step) * step
}

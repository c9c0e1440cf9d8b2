//! Memory that frames are read into and written from.
//!
//! Owns [`Region`] (one owner, 64-byte aligned, back to its pool on drop), and the seams for memory
//! this crate knows nothing about: [`Memory`], [`Ready`], [`Stager`]. Does not know CUDA: device
//! memory is whatever implements [`Memory`]. Invariants: a region has exactly one owner until it is
//! frozen, a frozen one is never written again, and there is no `unsafe` here.

mod block;
mod pool;
mod slice;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub use pool::RegionPool;
pub use slice::Slice;

use crate::error::TransportError;
use block::Block;
use pool::Home;

/// The alignment of every host region, in bytes.
pub const REGION_ALIGN_BYTES: usize = 64;

/// Where memory lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemKind {
    /// Ordinary host memory.
    Host,
    /// Host memory that a device reads and writes directly.
    Pinned,
    /// Memory of one CUDA device; the host cannot address it.
    Cuda {
        /// The device's index on its node.
        device: u32,
    },
}

/// Memory of a kind that this crate does not allocate itself.
pub trait Memory: Send + Sync {
    /// Where the memory lives.
    fn kind(&self) -> MemKind;
    /// Its length in bytes.
    fn len(&self) -> usize;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The bytes, where the host can address them.
    fn host(&self) -> Option<&[u8]>;
    /// The bytes for writing, where the host can address them.
    fn host_mut(&mut self) -> Option<&mut [u8]>;
    /// Where the memory is for the device that has it; for transports that take such addresses.
    fn device_address(&self) -> Option<u64> {
        None
    }
    /// For the [`Stager`] that knows the concrete type.
    fn as_any(&self) -> &dyn Any;
    /// For the [`Stager`] that knows the concrete type.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// Something that must have happened before memory may be read (a device event).
pub trait Ready: Send + Sync {
    /// Waits; false when the deadline passed first.
    fn wait(&self, deadline: Instant) -> bool;
}

/// Copies between device and host regions; implemented where the device is known.
pub trait Stager: Send + Sync {
    /// Copies a slice of any kind into a host or pinned region of at least its length.
    ///
    /// # Errors
    /// When the device refuses the copy or the sizes disagree.
    fn to_host(&self, from: &Slice, into: &mut Region) -> Result<(), TransportError>;

    /// Copies a host or pinned slice into a region of any kind of at least its length.
    ///
    /// # Errors
    /// When the device refuses the copy or the sizes disagree.
    fn to_device(&self, from: &Slice, into: &mut Region) -> Result<(), TransportError>;
}

/// Uniquely owned memory; goes back to its pool on drop.
pub struct Region {
    storage: Storage,
    len: usize,
    home: Option<Home>,
}

enum Storage {
    /// The block is over-allocated so that `offset` makes it aligned; it never grows or moves.
    Host {
        block: Block,
        offset: usize,
    },
    Foreign(Box<dyn Memory>),
}

impl Region {
    /// Zeroed host memory that belongs to no pool.
    pub fn host(len: usize) -> Self {
        Self { storage: host_storage(len), len, home: None }
    }

    /// Host memory with a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut region = Self::host(bytes.len());
        region.bytes_mut().copy_from_slice(bytes);
        region
    }

    /// Memory of another kind.
    pub fn from_memory(memory: Box<dyn Memory>) -> Self {
        let len = memory.len();
        Self { storage: Storage::Foreign(memory), len, home: None }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the memory lives.
    pub fn kind(&self) -> MemKind {
        match &self.storage {
            Storage::Host { .. } => MemKind::Host,
            Storage::Foreign(memory) => memory.kind(),
        }
    }

    /// The bytes; empty when the host cannot address this kind of memory (use a [`Stager`]).
    pub fn bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Host { block, offset } => block.bytes().get(*offset..*offset + self.len),
            Storage::Foreign(memory) => memory.host().and_then(|bytes| bytes.get(..self.len)),
        }
        .unwrap_or_default()
    }

    /// The bytes for writing; empty when the host cannot address this kind of memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        match &mut self.storage {
            Storage::Host { block, offset } => block.bytes_mut().get_mut(*offset..*offset + len),
            Storage::Foreign(memory) => memory.host_mut().and_then(|bytes| bytes.get_mut(..len)),
        }
        .unwrap_or_default()
    }

    /// The foreign memory, for the [`Stager`] that knows its type.
    pub fn memory(&self) -> Option<&dyn Memory> {
        match &self.storage {
            Storage::Host { .. } => None,
            Storage::Foreign(memory) => Some(memory.as_ref()),
        }
    }

    /// The foreign memory for writing.
    pub fn memory_mut(&mut self) -> Option<&mut dyn Memory> {
        match &mut self.storage {
            Storage::Host { .. } => None,
            Storage::Foreign(memory) => Some(memory.as_mut()),
        }
    }

    /// Ends writing: a shared read-only view of the first `len` bytes (at most the region's).
    pub fn freeze(self, len: usize) -> Slice {
        Slice::of(self, len)
    }

    /// No memory at all.
    fn hollow() -> Self {
        Self { storage: Storage::Host { block: Block::none(), offset: 0 }, len: 0, home: None }
    }

    /// A counter for views of this region, which has held another one before.
    fn counter(&self) -> Option<Arc<Self>> {
        self.home.as_ref()?.counter()
    }

    /// The end of the last view of this region, whose `counter` is hollow now.
    fn go_home(self, counter: Arc<Self>) {
        if let Some(home) = &self.home {
            home.keep(counter);
        }
    }

    /// Pooled memory: `len` bytes of a block of a size class.
    fn pooled(block: Block, len: usize, home: Home) -> Self {
        let offset = alignment_offset(&block);
        Self { storage: Storage::Host { block, offset }, len, home: Some(home) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        if let Storage::Host { block, .. } = &mut self.storage {
            home.take_back(std::mem::replace(block, Block::none()));
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes, {:?})", self.len, self.kind())
    }
}

fn host_storage(len: usize) -> Storage {
    let block = Block::zeroed(len + REGION_ALIGN_BYTES - 1);
    let offset = alignment_offset(&block);
    Storage::Host { block, offset }
}

fn alignment_offset(block: &Block) -> usize {
    let over = block.bytes().as_ptr().addr() % REGION_ALIGN_BYTES;
    if over == 0 { 0 } else { REGION_ALIGN_BYTES - over }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn host_regions_are_aligned_zeroed_and_of_their_length() {
        for len in [0, 1, 63, 64, 65, 4096, 1 << 20, block::MAPPED_BYTES_MIN] {
            let mut region = Region::host(len);
            assert_eq!(region.bytes().len(), len);
            assert!(region.bytes().as_ptr().addr().is_multiple_of(REGION_ALIGN_BYTES) || len == 0);
            assert!(region.bytes().iter().all(|byte| *byte == 0));
            region.bytes_mut().fill(7);
            assert!(region.freeze(len).bytes().iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn a_frozen_region_becomes_bytes_without_a_copy() {
        let slice = Region::copy_of(&[1, 2, 3, 4]).freeze(3);
        let bytes = bytes::Bytes::from(slice.clone());
        assert_eq!(bytes.as_ptr(), slice.bytes().as_ptr());
        assert_eq!(&bytes[..], &[1, 2, 3]);
        assert_eq!(slice.part(1..3).unwrap().bytes(), &[2, 3]);
        assert!(slice.part(1..4).is_none());
    }

    #[test]
    fn a_pool_gives_blocks_again_and_retains_no_more_than_its_bound() {
        let pool = RegionPool::new(10_000);
        let first = pool.allocate(5_000);
        let address = first.bytes().as_ptr();
        drop(first);
        let again = pool.allocate(4_900);
        assert_eq!(again.bytes().as_ptr(), address);
        let others: Vec<_> = (0..4).map(|_| pool.allocate(5_000)).collect();
        drop(others);
        drop(again);
        assert!(pool.retained_bytes() <= 10_000);
    }

    #[test]
    fn views_of_pooled_regions_use_the_same_counter_again() {
        let pool = RegionPool::new(1 << 20);
        let view = |byte| {
            let mut region = pool.allocate(100);
            region.bytes_mut().fill(byte);
            region.freeze(100)
        };
        let first = view(1);
        let counter = std::ptr::from_ref(first.region()).addr();
        let part = first.part(10..20).unwrap();
        drop(first);
        assert_eq!(part.bytes(), &[1; 10], "a view lives as long as it is held");
        let other = view(2);
        assert_ne!(std::ptr::from_ref(other.region()).addr(), counter);
        drop(part);
        let again = view(3);
        assert_eq!(std::ptr::from_ref(again.region()).addr(), counter);
        assert_eq!((other.bytes(), again.bytes()), (&[2; 100][..], &[3; 100][..]));
        assert!(again.into_region().unwrap().bytes().iter().all(|byte| *byte == 3));
    }

    #[test]
    fn the_sole_owner_of_a_slice_gets_its_region_back() {
        let slice = Region::copy_of(&[9; 8]).freeze(8);
        let second = slice.clone();
        let slice = slice.into_region().unwrap_err();
        drop(second);
        assert_eq!(slice.into_region().unwrap().bytes(), &[9; 8]);
    }
}

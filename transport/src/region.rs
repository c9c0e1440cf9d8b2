//! Memory that frames are read into and written from.
//!
//! Owns [`Region`] (one owner, 64-byte aligned, back to its pool on drop), and the seams for memory
//! this crate knows nothing about: [`DeviceMemory`], [`Memory`], [`Ready`]. Does not know CUDA, nor
//! how tensors get into device memory. Invariants: a region has exactly one owner until it is
//! frozen, a frozen one is never written again, and there is no `unsafe` here.

mod block;
mod pool;
mod registrations;
mod slice;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub(crate) use pool::DevicePool;
pub use pool::{DEVICE_POOL_BYTES_MAX, RegionPool};
pub(crate) use registrations::Registrations;
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

impl MemKind {
    /// Whether only a device can address it.
    pub fn is_device(self) -> bool {
        matches!(self, Self::Cuda { .. })
    }
}

/// A device in whose memory frames may lie, where what carries them takes that.
pub trait DeviceMemory: Send + Sync + fmt::Debug {
    /// What kind of memory it has.
    fn kind(&self) -> MemKind;

    /// New memory of `len` bytes, whatever is in it.
    ///
    /// # Errors
    /// [`TransportError::Device`] when it has none left.
    fn allocate(&self, len: usize) -> Result<Box<dyn Memory>, TransportError>;

    /// Lets the calling thread use the device; whoever touches its memory calls this before.
    fn enter(&self);
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
    /// Copies `len` bytes from `offset` on of memory of the same kind, which nobody writes to;
    /// they are there when this returns.
    ///
    /// # Errors
    /// [`TransportError::Device`], or a mismatch where there is no such way.
    fn copy_from(
        &mut self,
        from: &dyn Memory,
        offset: usize,
        len: usize,
    ) -> Result<(), TransportError> {
        let _ = (offset, len);
        Err(no_way(from.kind(), self.kind()))
    }
    /// Whether nothing that a device was told to do with the memory goes on; a pool gives it out
    /// again only then.
    fn is_idle(&self) -> bool {
        true
    }
    /// For whoever knows the concrete type.
    fn as_any(&self) -> &dyn Any;
    /// For whoever knows the concrete type.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// Something that must have happened before memory may be read (a device event).
pub trait Ready: Send + Sync {
    /// Waits; false when the deadline passed first.
    fn wait(&self, deadline: Instant) -> bool;
}

/// Uniquely owned memory; goes back to its pool on drop.
pub struct Region {
    block: Block,
    /// Where it begins in its block: host memory is over-allocated, so that this makes it aligned.
    offset: usize,
    len: usize,
    home: Option<Home>,
}

impl Region {
    /// Zeroed host memory that belongs to no pool.
    pub fn host(len: usize) -> Self {
        let block = Block::zeroed(len + REGION_ALIGN_BYTES - 1);
        Self { offset: alignment_offset(&block), block, len, home: None }
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
        Self { block: Block::foreign(memory), offset: 0, len, home: None }
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
        self.block.kind()
    }

    /// The bytes; empty when the host cannot address this kind of memory.
    pub fn bytes(&self) -> &[u8] {
        self.block.bytes().get(self.offset..self.offset + self.len).unwrap_or_default()
    }

    /// The bytes for writing; empty when the host cannot address this kind of memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let (offset, len) = (self.offset, self.len);
        self.block.bytes_mut().get_mut(offset..offset + len).unwrap_or_default()
    }

    /// Copies a payload that is ready to the beginning of this region, whichever memory of one
    /// process the two are in.
    ///
    /// # Errors
    /// When there is no way between the two kinds of memory, or not enough room.
    pub(crate) fn fill(&mut self, from: &Slice) -> Result<(), TransportError> {
        if from.len() > self.len {
            return Err(TransportError::mismatch("bytes and their place", from.len(), self.len));
        }
        let kind = self.kind();
        match (self.block.memory_mut(), from.region().memory()) {
            (Some(into), Some(memory)) if kind.is_device() && memory.kind() == kind => {
                into.copy_from(memory, from.offset(), from.len())
            }
            _ => match self.bytes_mut().get_mut(..from.len()) {
                Some(into) if from.bytes().len() == from.len() => {
                    into.copy_from_slice(from.bytes());
                    Ok(())
                }
                _ => Err(no_way(from.kind(), kind)),
            },
        }
    }

    /// The foreign memory, for whoever knows its type.
    pub fn memory(&self) -> Option<&dyn Memory> {
        self.block.memory()
    }

    /// The foreign memory for writing.
    pub fn memory_mut(&mut self) -> Option<&mut dyn Memory> {
        self.block.memory_mut()
    }

    /// Ends writing: a shared read-only view of the first `len` bytes (at most the region's).
    pub fn freeze(self, len: usize) -> Slice {
        Slice::of(self, len)
    }

    /// The whole block and what was registered of it; none for memory that is not used again.
    pub(crate) fn pooled_block(&self) -> Option<PooledBlock<'_>> {
        self.home.as_ref()?;
        let address = match self.block.memory() {
            Some(memory) if memory.kind().is_device() => memory.device_address()?,
            _ => self.block.bytes().as_ptr().expose_provenance() as u64,
        };
        let len = self.block.memory().map_or(self.block.bytes().len(), Memory::len);
        Some(PooledBlock { address, len, registrations: &self.block.registrations })
    }

    /// Frees its memory when it is dropped, instead of giving it to its pool: for memory that
    /// something may still write to that nobody can wait for.
    pub(crate) fn leave_pool(&mut self) {
        if let Some(home) = self.home.take() {
            home.forget();
        }
    }

    /// No memory at all.
    fn hollow() -> Self {
        Self { block: Block::none(), offset: 0, len: 0, home: None }
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
        Self { offset: alignment_offset(&block), block, len, home: Some(home) }
    }
}

/// A block that is used again and again.
pub(crate) struct PooledBlock<'a> {
    /// Where it is: for the host, or for its device.
    pub(crate) address: u64,
    pub(crate) len: usize,
    pub(crate) registrations: &'a Registrations,
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.take_back(std::mem::replace(&mut self.block, Block::none()));
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes, {:?})", self.len, self.kind())
    }
}

/// Where a region begins in its block; memory of devices is aligned by whoever made it.
fn alignment_offset(block: &Block) -> usize {
    if block.memory().is_some() {
        return 0;
    }
    let over = block.bytes().as_ptr().addr() % REGION_ALIGN_BYTES;
    if over == 0 { 0 } else { REGION_ALIGN_BYTES - over }
}

fn no_way(from: MemKind, to: MemKind) -> TransportError {
    TransportError::mismatch("memory kinds", format!("{from:?}"), format!("{to:?}"))
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
    fn a_region_that_leaves_its_pool_is_not_given_out_again() {
        let pool = RegionPool::new(1 << 20);
        let mut region = pool.allocate(5_000);
        region.bytes_mut().fill(7);
        region.leave_pool();
        assert_eq!((pool.lent_bytes(), region.bytes()), (0, &[7; 5_000][..]));
        drop(region);
        assert_eq!((pool.lent_bytes(), pool.retained_bytes()), (0, 0));
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

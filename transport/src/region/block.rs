//! The memory under host regions.
//!
//! Owns where it comes from: the heap, or for large blocks a mapping that asks the kernel for huge
//! pages. Payloads are copied from and to memory that no cache holds, where looking up a page of
//! 4 KiB after the other costs as much as moving its bytes. Where the kernel has no huge pages to
//! give, or is set never to, a mapping has ordinary ones. Invariant: a block is zeroed when it is
//! made, and never grows or moves.

use memmap2::MmapMut;

/// The smallest block that is mapped, in bytes: two huge pages of 2 MiB.
pub(super) const MAPPED_BYTES_MIN: usize = 4 << 20;

pub(super) enum Block {
    Heap(Vec<u8>),
    Mapped(MmapMut),
}

impl Block {
    pub(super) fn zeroed(len: usize) -> Self {
        if len >= MAPPED_BYTES_MIN
            && let Ok(mapping) = MmapMut::map_anon(len)
        {
            ask_for_huge_pages(&mapping);
            return Self::Mapped(mapping);
        }
        Self::Heap(vec![0; len])
    }

    /// No memory at all.
    pub(super) fn none() -> Self {
        Self::Heap(Vec::new())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Mapped(mapping) => mapping,
        }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Mapped(mapping) => mapping,
        }
    }
}

#[cfg(target_os = "linux")]
fn ask_for_huge_pages(mapping: &MmapMut) {
    // A kernel without them refuses, and the mapping is as good as the heap.
    let _ = mapping.advise(memmap2::Advice::HugePage);
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: &MmapMut) {}

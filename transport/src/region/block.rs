//! The memory under regions.
//!
//! Owns where host memory comes from: the heap, or for large blocks a mapping that asks the kernel
//! for huge pages. Payloads are copied from and to memory that no cache holds, where looking up a
//! page of 4 KiB after the other costs as much as moving its bytes. Where the kernel has no huge
//! pages to give, or is set never to, a mapping has ordinary ones. Memory of other kinds is
//! whatever implements [`Memory`]. Invariants: host memory is zeroed when it is made; a block never
//! grows or moves, and what was registered of it is given up before it.

use memmap2::MmapMut;

use super::{MemKind, Memory, Registrations};

/// The smallest block that is mapped, in bytes: two huge pages of 2 MiB.
pub(super) const MAPPED_BYTES_MIN: usize = 4 << 20;

/// Fields are dropped in this order.
pub(super) struct Block {
    pub(super) registrations: Registrations,
    held: Held,
}

enum Held {
    Heap(Vec<u8>),
    Mapped(MmapMut),
    Foreign(Box<dyn Memory>),
}

impl Block {
    pub(super) fn zeroed(len: usize) -> Self {
        if len >= MAPPED_BYTES_MIN
            && let Ok(mapping) = MmapMut::map_anon(len)
        {
            ask_for_huge_pages(&mapping);
            return Self::of(Held::Mapped(mapping));
        }
        Self::of(Held::Heap(vec![0; len]))
    }

    pub(super) fn foreign(memory: Box<dyn Memory>) -> Self {
        Self::of(Held::Foreign(memory))
    }

    /// No memory at all.
    pub(super) fn none() -> Self {
        Self::of(Held::Heap(Vec::new()))
    }

    fn of(held: Held) -> Self {
        Self { registrations: Registrations::default(), held }
    }

    pub(super) fn kind(&self) -> MemKind {
        self.memory().map_or(MemKind::Host, Memory::kind)
    }

    pub(super) fn memory(&self) -> Option<&dyn Memory> {
        match &self.held {
            Held::Foreign(memory) => Some(memory.as_ref()),
            Held::Heap(_) | Held::Mapped(_) => None,
        }
    }

    pub(super) fn memory_mut(&mut self) -> Option<&mut dyn Memory> {
        match &mut self.held {
            Held::Foreign(memory) => Some(memory.as_mut()),
            Held::Heap(_) | Held::Mapped(_) => None,
        }
    }

    /// Whether nothing that was started with this memory goes on.
    pub(super) fn is_idle(&self) -> bool {
        self.memory().is_none_or(Memory::is_idle)
    }

    /// All of it; nothing where the host cannot address it.
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.held {
            Held::Heap(bytes) => bytes,
            Held::Mapped(mapping) => mapping,
            Held::Foreign(memory) => memory.host().unwrap_or_default(),
        }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.held {
            Held::Heap(bytes) => bytes,
            Held::Mapped(mapping) => mapping,
            Held::Foreign(memory) => memory.host_mut().unwrap_or_default(),
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

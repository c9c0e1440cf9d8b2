//! Memory as UCX is told of it.
//!
//! Owns the way from a region or slice to an address, a length and a memory type. Invariant: an
//! address is used only while the region or slice it came from is kept in the flights.

use ucx_sys::bindings as ucp;

use crate::region::{MemKind, Region, Slice};

/// Where the bytes of one operation are.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) at: *mut u8,
    pub(super) len: usize,
    memory_type: ucp::ucs_memory_type_t,
}

impl Place {
    /// The bytes of a slice; `None` for memory that has no address here.
    pub(super) fn of_slice(slice: &Slice) -> Option<Self> {
        let at = match slice.kind() {
            MemKind::Host | MemKind::Pinned => slice.bytes().as_ptr().cast_mut(),
            MemKind::Cuda { .. } => {
                device_address(slice.region())?.wrapping_byte_add(slice.offset())
            }
        };
        Some(Self { at, len: slice.len(), memory_type: memory_type(slice.kind()) })
    }

    /// The first `len` bytes of a region for writing.
    pub(super) fn of_region(region: &mut Region, len: usize) -> Option<Self> {
        if len > region.len() {
            return None;
        }
        let kind = region.kind();
        let at = match kind {
            MemKind::Host | MemKind::Pinned => region.bytes_mut().get_mut(..len)?.as_mut_ptr(),
            MemKind::Cuda { .. } => device_address(region)?,
        };
        Some(Self { at, len, memory_type: memory_type(kind) })
    }

    /// Spares UCX the looking up of what kind of memory this is.
    pub(super) fn describe(&self, param: &mut ucp::ucp_request_param_t) {
        param.op_attr_mask |= ucp::UCP_OP_ATTR_FIELD_MEMORY_TYPE;
        param.memory_type = self.memory_type;
    }
}

fn device_address(region: &Region) -> Option<*mut u8> {
    let address = region.memory()?.device_address()?;
    Some(std::ptr::with_exposed_provenance_mut(usize::try_from(address).ok()?))
}

fn memory_type(kind: MemKind) -> ucp::ucs_memory_type_t {
    match kind {
        MemKind::Host | MemKind::Pinned => ucp::UCS_MEMORY_TYPE_HOST,
        MemKind::Cuda { .. } => ucp::UCS_MEMORY_TYPE_CUDA,
    }
}

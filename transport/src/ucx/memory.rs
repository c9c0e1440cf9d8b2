//! Memory as UCX is told of it.
//!
//! Owns the way from a region or slice to an address, a length, a memory type and a handle, and the
//! handles: a pooled block of [`MAPPED_BYTES_MIN`] and more is mapped when it is first used, and
//! unmapped when its pool frees it. Invariants: an address is used only while the region or slice
//! it came from is kept in the flights, so nothing is unmapped under an operation; at most
//! [`MAPPED_BYTES_MAX`] of a context are mapped, what is beyond UCX registers by itself each time.

use std::any::Any;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ucx_sys::bindings as ucp;

use super::context::{Context, check};
use crate::region::{MemKind, Region, Slice};

/// The smallest block that is mapped, in bytes: smaller payloads are copied.
const MAPPED_BYTES_MIN: usize = 64 << 10;

/// The most bytes of one context that are mapped.
const MAPPED_BYTES_MAX: usize = 2 << 30;

/// Where the bytes of one operation are.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) at: *mut u8,
    pub(super) len: usize,
    memory_type: ucp::ucs_memory_type_t,
    /// Of the block under it; null where that is not mapped.
    handle: ucp::ucp_mem_h,
}

impl Place {
    /// The bytes of a slice; `None` for memory that has no address here.
    pub(super) fn of_slice(slice: &Slice, context: &Arc<Context>) -> Option<Self> {
        let at = match slice.kind() {
            MemKind::Host | MemKind::Pinned => slice.bytes().as_ptr().cast_mut(),
            MemKind::Cuda { .. } => {
                device_address(slice.region())?.wrapping_byte_add(slice.offset())
            }
        };
        let handle = handle(slice.region(), context);
        Some(Self { at, len: slice.len(), memory_type: memory_type(slice.kind()), handle })
    }

    /// The first `len` bytes of a region for writing.
    pub(super) fn of_region(
        region: &mut Region,
        len: usize,
        context: &Arc<Context>,
    ) -> Option<Self> {
        if len > region.len() {
            return None;
        }
        let kind = region.kind();
        let at = match kind {
            MemKind::Host | MemKind::Pinned => region.bytes_mut().get_mut(..len)?.as_mut_ptr(),
            MemKind::Cuda { .. } => device_address(region)?,
        };
        let handle = handle(region, context);
        Some(Self { at, len, memory_type: memory_type(kind), handle })
    }

    /// Whether only a device can address it.
    pub(super) fn is_on_device(&self) -> bool {
        self.memory_type != ucp::UCS_MEMORY_TYPE_HOST
    }

    /// Spares UCX the looking up of what kind of memory this is, and its registration.
    pub(super) fn describe(&self, param: &mut ucp::ucp_request_param_t) {
        param.op_attr_mask |= ucp::UCP_OP_ATTR_FIELD_MEMORY_TYPE;
        param.memory_type = self.memory_type;
        if !self.handle.is_null() {
            param.op_attr_mask |= ucp::UCP_OP_ATTR_FIELD_MEMH;
            param.memh = self.handle;
        }
    }
}

/// UCX's name for the block under a region; null where it has none.
fn handle(region: &Region, context: &Arc<Context>) -> ucp::ucp_mem_h {
    let found = region.pooled_block().filter(|block| block.len >= MAPPED_BYTES_MIN);
    let Some(block) = found else { return ptr::null_mut() };
    let made = block.registrations.get_or_make(Arc::as_ptr(context).addr(), || {
        let mapping = Mapping::of(block.address, block.len, region.kind(), context)?;
        Some(Arc::new(mapping) as Arc<dyn Any + Send + Sync>)
    });
    let mapping = made.and_then(|made| made.downcast::<Mapping>().ok());
    mapping.map_or(ptr::null_mut(), |mapping| mapping.handle)
}

/// A block that a context knows.
struct Mapping {
    handle: ucp::ucp_mem_h,
    len: usize,
    context: Arc<Context>,
}

// SAFETY: UCX's name for memory; its functions lock the context, which is made to be shared.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing is changed through a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// None where UCX cannot map it, or too much is mapped; UCX does without then.
    fn of(address: u64, len: usize, kind: MemKind, context: &Arc<Context>) -> Option<Self> {
        let mapped = &context.mapped_bytes;
        if mapped.fetch_add(len, Ordering::Relaxed) + len > MAPPED_BYTES_MAX {
            mapped.fetch_sub(len, Ordering::Relaxed);
            return None;
        }
        let mut mapping = Self { handle: ptr::null_mut(), len, context: Arc::clone(context) };
        let fields = ucp::UCP_MEM_MAP_PARAM_FIELD_ADDRESS
            | ucp::UCP_MEM_MAP_PARAM_FIELD_LENGTH
            | ucp::UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
        // SAFETY: all-zero is a valid value of this C structure; the mask says what is set.
        let mut params: ucp::ucp_mem_map_params_t = unsafe { std::mem::zeroed() };
        params.field_mask = u64::from(fields);
        params.address = ptr::with_exposed_provenance_mut::<c_void>(usize::try_from(address).ok()?);
        params.length = len;
        params.memory_type = memory_type(kind);
        context.enter();
        // SAFETY: the block lives longer than this mapping, which is among its registrations.
        let status =
            unsafe { context.library.ucp.ucp_mem_map(context.raw(), &params, &mut mapping.handle) };
        match check(context.library, "map memory", status) {
            Ok(()) => Some(mapping),
            Err(error) => {
                tracing::debug!(%error, ?kind, len, "a block is not mapped");
                mapping.handle = ptr::null_mut();
                None
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.context.mapped_bytes.fetch_sub(self.len, Ordering::Relaxed);
        if self.handle.is_null() {
            return;
        }
        self.context.enter();
        // SAFETY: mapped once and unmapped once; operations that used it have ended, because they
        // kept its block.
        let status =
            unsafe { self.context.library.ucp.ucp_mem_unmap(self.context.raw(), self.handle) };
        if let Err(error) = check(self.context.library, "unmap memory", status) {
            tracing::warn!(%error, "a block stays mapped");
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::UcxConfig;
    use super::super::context::Path;
    use super::*;
    use crate::region::RegionPool;

    const LEN: usize = 1 << 20;

    fn contexts() -> Vec<Arc<Context>> {
        let Ok(library) = super::super::library() else { return Vec::new() };
        let open = |path| Context::open(library, path, &UcxConfig::default(), None).unwrap();
        [Path::SharedMemory, Path::Network].map(|path| Arc::new(open(path))).into()
    }

    #[test]
    fn a_block_is_mapped_once_with_each_context_and_unmapped_when_its_pool_frees_it() {
        let contexts = contexts();
        let pool = RegionPool::new(2 * LEN);
        for (index, context) in contexts.iter().enumerate() {
            let mut region = pool.allocate(LEN);
            let first = Place::of_region(&mut region, LEN, context).unwrap().handle;
            assert!(!first.is_null());
            let mapped = context.mapped_bytes.load(Ordering::Relaxed);
            assert!((LEN..2 * LEN).contains(&mapped), "{mapped}");
            // A view of it, and the block when it is given out again.
            let slice = region.freeze(LEN);
            let part = slice.part(5..70_000).unwrap();
            assert_eq!(Place::of_slice(&part, context).unwrap().handle, first);
            drop((slice, part));
            let mut again = pool.allocate(LEN - 100);
            assert_eq!(Place::of_region(&mut again, 7, context).unwrap().handle, first);
            assert_eq!(context.mapped_bytes.load(Ordering::Relaxed), mapped);
            assert_eq!(Arc::strong_count(context), 2);
            // The same block with all contexts up to this one.
            let all = contexts.iter().filter(|context| Arc::strong_count(context) > 1).count();
            assert_eq!(all, index + 1);
        }
        // More than the pool keeps, and memory of no pool.
        let many: Vec<_> = (0..6).map(|_| pool.allocate(LEN)).collect();
        for (context, region) in contexts.iter().cycle().zip(many) {
            assert!(!Place::of_slice(&region.freeze(LEN), context).unwrap().handle.is_null());
        }
        for context in &contexts {
            assert!(Arc::strong_count(context) <= 3, "{}", Arc::strong_count(context));
            let own = Region::host(LEN).freeze(LEN);
            assert!(Place::of_slice(&own, context).unwrap().handle.is_null());
        }
        drop(pool);
        for context in &contexts {
            assert_eq!(Arc::strong_count(context), 1, "a mapping is left");
            assert_eq!(context.mapped_bytes.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn no_more_is_mapped_than_the_bound() {
        for context in contexts() {
            context.mapped_bytes.store(MAPPED_BYTES_MAX - LEN, Ordering::Relaxed);
            let pool = RegionPool::new(0);
            let mut region = pool.allocate(LEN);
            assert!(Place::of_region(&mut region, LEN, &context).unwrap().handle.is_null());
            assert_eq!(context.mapped_bytes.load(Ordering::Relaxed), MAPPED_BYTES_MAX - LEN);
        }
    }
}

//! The numbers of a picture `[B, C, H, W]` on the CPU, without copying them.

use candle_core::{CpuStorage, Result, Storage, Tensor};

/// Calls `read` with the elements of a contiguous f32 tensor on the CPU.
pub(super) fn with_elements<R>(x: &Tensor, read: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(data)), Some((start, end))) => match data.get(start..end) {
            Some(elements) => read(elements),
            None => candle_core::bail!("layout {layout:?} reaches beyond its storage"),
        },
        _ => candle_core::bail!("expected a contiguous f32 tensor on the cpu, got {:?}", x),
    }
}

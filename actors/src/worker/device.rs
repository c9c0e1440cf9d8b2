//! From a manifest's words to a device that computes, and to its memory for frames.

use std::sync::Arc;

use candle_core::Device;
use ditmesh_transport::region::DeviceMemory;

use crate::manifest::DeviceKind;

/// The memory of the device that frames may lie in; none where that is the host's, or cannot be
/// had: then frames are staged, and opening the device says what is wrong with it.
pub(crate) fn frame_memory(kind: DeviceKind, index: usize) -> Option<Arc<dyn DeviceMemory>> {
    match kind {
        DeviceKind::Cpu => None,
        DeviceKind::Cuda => gpu_memory(index),
    }
}

#[cfg(feature = "cuda")]
fn gpu_memory(index: usize) -> Option<Arc<dyn DeviceMemory>> {
    let opened = crate::gpu_memory::GpuMemory::open(index);
    opened.inspect_err(|error| tracing::warn!(%error, "frames of this gpu are staged")).ok()
}

#[cfg(not(feature = "cuda"))]
fn gpu_memory(_: usize) -> Option<Arc<dyn DeviceMemory>> {
    None
}

/// Opens the device; a GPU by its index on this host.
///
/// # Errors
/// In words, when it is not there or this build cannot use it.
pub(crate) fn open(kind: DeviceKind, index: usize) -> Result<Device, String> {
    match kind {
        DeviceKind::Cpu => Ok(Device::Cpu),
        DeviceKind::Cuda => open_gpu(index),
    }
}

#[cfg(feature = "cuda")]
fn open_gpu(index: usize) -> Result<Device, String> {
    ditmesh_model::cuda::open(index)
        .map_err(|error| format!("cannot use gpu {index} of this host: {error}"))
}

#[cfg(not(feature = "cuda"))]
fn open_gpu(index: usize) -> Result<Device, String> {
    Err(format!(
        "this ditmesh was built without support for gpus and cannot use gpu {index}; build it with \
         `--features cuda`"
    ))
}

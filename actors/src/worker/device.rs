//! From a manifest's words to a device that computes.

use candle_core::Device;

use crate::manifest::DeviceKind;

/// Opens the device; a GPU by its index on this host.
///
/// # Errors
/// In words, when it is not there or this build cannot use it.
pub(super) fn open(kind: DeviceKind, index: usize) -> Result<Device, String> {
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

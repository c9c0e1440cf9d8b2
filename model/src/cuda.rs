//! NVIDIA GPUs: opening one, fused kernels, and the way between its memory and the host's.
//!
//! Owns the kernels, which NVRTC compiles for the GPU at hand when they are first used, the pinned
//! memory through which frames pass, and the blocks of those that stay on the GPU. Every kernel has
//! the meaning of its namesake in [`crate::kernels`]. Does not own layers or the choice of a
//! device.
//!
//! Invariants: all work of a device runs on its one stream, in the order of the calls; sums are
//! taken in a fixed order, so that a result is the same to the bit from run to run.

mod attention;
mod frames;
mod program;
mod rows;
mod staging;

use candle_core::{CudaDevice, CudaStorage, Device, Result, Storage, Tensor};

pub(crate) use attention::attention;
pub use frames::{FrameBlock, FrameDevice, Written};
pub(crate) use rows::{epilogue, norm_modulate};
pub use staging::{STAGING_CHUNK_BYTES, Staging};

/// Opens GPU `index` of this host, on a stream of its own, so that several ranks can share a GPU
/// in one process.
///
/// # Errors
/// When there is no such GPU or its driver cannot be used.
pub fn open(index: usize) -> Result<Device> {
    Device::new_cuda_with_stream(index)
}

/// The GPU `tensor` is on.
fn device_of(tensor: &Tensor) -> Result<CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) => Ok(device.clone()),
        other => candle_core::bail!("a gpu kernel was given a tensor on {:?}", other.location()),
    }
}

fn on_gpu(storage: &Storage) -> Result<&CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => candle_core::bail!("a gpu kernel was given a tensor of another device"),
    }
}

/// A new tensor of what a kernel wrote.
fn wrap(
    data: cudarc::driver::CudaSlice<f32>,
    device: &CudaDevice,
    shape: impl Into<candle_core::Shape>,
) -> Tensor {
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(data, device.clone()));
    Tensor::from_storage(storage, shape, candle_core::op::BackpropOp::none(), false)
}

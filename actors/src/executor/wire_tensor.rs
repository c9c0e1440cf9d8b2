//! Tensors to payload bytes and back: one copy each way.
//!
//! Owns the byte order (little-endian, as every supported host) and the check that a frame is the
//! message the plan says.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use ditmesh_model::error::ModelError;
use ditmesh_model::strided;
use ditmesh_transport::Transport;
use ditmesh_transport::frame::{Dtype, FrameMeta};
use ditmesh_transport::ids::Epoch;
use ditmesh_transport::link::Received;
use ditmesh_transport::region::Slice;

use super::error::ExecuteError;
use super::port::Port;
use crate::plan::message::Message;

/// The metadata of `message` in the mesh of `epoch`.
pub(crate) fn meta(message: &Message, epoch: Epoch) -> FrameMeta {
    FrameMeta {
        dtype: message.dtype.code(),
        shape: message.shape.iter().map(|&dim| dim as u32).collect(),
        step: u32::from(message.step),
        patch: u32::from(message.patch),
        residual: message.residual,
        epoch,
        priority: message.kind.priority(),
        ..FrameMeta::default()
    }
}

/// Copies a tensor of any strides into memory the transport can send.
pub(super) fn to_slice(
    tensor: &Tensor,
    transport: &dyn Transport,
    port: &mut Port,
) -> Result<Slice, ModelError> {
    let len = tensor.elem_count() * tensor.dtype().size_in_bytes();
    let mut region = transport.allocate(len);
    let target = region
        .bytes_mut()
        .get_mut(..len)
        .ok_or_else(|| ModelError::Invalid("the transport gave less memory than asked".into()))?;
    if tensor.dtype() == DType::F32 {
        let floats = bytemuck::try_cast_slice_mut(target).map_err(|error| {
            ModelError::Invalid(format!("memory to send from is not aligned: {error}"))
        })?;
        match tensor.device().is_cpu() {
            true => strided::copy_into(tensor, floats)?,
            false => port.take_off(tensor, floats)?,
        }
        return Ok(region.freeze(len));
    }
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
    let bytes: &[u8] = match &*storage {
        Storage::Cpu(CpuStorage::F64(data)) => data.get(range).map(bytemuck::cast_slice),
        Storage::Cpu(CpuStorage::U8(data)) => data.get(range),
        _ => None,
    }
    .filter(|bytes| bytes.len() == len)
    .ok_or_else(|| {
        ModelError::Invalid("only f32, f64 and u8 tensors in host memory travel".into())
    })?;
    target.copy_from_slice(bytes);
    Ok(region.freeze(len))
}

/// A payload that travelled as it is, as a tensor.
pub(super) fn to_tensor(
    bytes: &[u8],
    message: &Message,
    port: &mut Port,
) -> Result<Tensor, ExecuteError> {
    let shape = message.shape.as_slice();
    Ok(match message.dtype {
        Dtype::F32 => port.put(message.kind, floats(bytes)?, shape)?,
        Dtype::F64 => Tensor::from_slice(doubles(bytes)?, shape, &Device::Cpu)?,
        _ => Tensor::from_slice(bytes, shape, &Device::Cpu)?,
    })
}

/// The payload as floats. Regions are aligned far beyond a float's four bytes.
pub(crate) fn floats(bytes: &[u8]) -> Result<&[f32], ModelError> {
    bytemuck::try_cast_slice(bytes)
        .map_err(|error| ModelError::Invalid(format!("payload is not a float array: {error}")))
}

/// The payload as doubles.
fn doubles(bytes: &[u8]) -> Result<&[f64], ModelError> {
    bytemuck::try_cast_slice(bytes)
        .map_err(|error| ModelError::Invalid(format!("payload is not an array of f64: {error}")))
}

/// That shape, dtype, step, patch and epoch are those of the plan.
pub(crate) fn check(
    received: &Received,
    message: &Message,
    peer: usize,
    epoch: Epoch,
) -> Result<(), ExecuteError> {
    check_frame(received, message, peer, epoch, false)
}

/// As [`check`], of a frame that comes without its payload.
pub(crate) fn check_reuse(
    received: &Received,
    message: &Message,
    peer: usize,
    epoch: Epoch,
) -> Result<(), ExecuteError> {
    check_frame(received, message, peer, epoch, true)
}

fn check_frame(
    received: &Received,
    message: &Message,
    peer: usize,
    epoch: Epoch,
    reuse: bool,
) -> Result<(), ExecuteError> {
    let (found, expected) = (&received.meta, meta(message, epoch));
    let same = found.dtype == expected.dtype
        && found.shape == expected.shape
        && found.step == expected.step
        && found.patch == expected.patch
        && found.epoch == expected.epoch
        && found.reuse == reuse
        && found.residual == expected.residual
        && received.len == if reuse { 0 } else { message.bytes() };
    if same {
        return Ok(());
    }
    Err(ExecuteError::Mismatch {
        peer,
        expected: format!("{message} in epoch {epoch}, reuse {reuse}"),
        found: format!(
            "step {}, patch {}, shape {:?}, dtype {}, {} bytes in epoch {}, reuse {}, residual {}",
            found.step,
            found.patch,
            found.shape,
            found.dtype,
            received.len,
            found.epoch,
            found.reuse,
            found.residual
        ),
    })
}

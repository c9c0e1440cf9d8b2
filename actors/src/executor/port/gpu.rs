//! A GPU's end of a frame.
//!
//! Owns the pinned memory of staged frames; direct ones lie in blocks of the fabric's.

use std::sync::Arc;

use candle_core::{Device, DeviceLocation, Tensor};
use ditmesh_model::cuda::Staging;
use ditmesh_model::error::ModelError;
use ditmesh_transport::region::{MemKind, Ready, Region};

use super::DeviceEnd;
use crate::gpu_memory::{GpuBlock, GpuReady};

/// The end of `device`, where that is a GPU.
///
/// # Errors
/// When its pinned memory cannot be had.
pub(super) fn end_of(device: &Device) -> Result<Option<Box<dyn DeviceEnd>>, ModelError> {
    let DeviceLocation::Cuda { gpu_id } = device.location() else { return Ok(None) };
    let kind = MemKind::Cuda { device: u32::try_from(gpu_id).unwrap_or(u32::MAX) };
    let staging = Staging::new(device)?;
    Ok(Some(Box::new(GpuEnd { device: device.clone(), kind, staging })))
}

struct GpuEnd {
    device: Device,
    kind: MemKind,
    staging: Staging,
}

impl DeviceEnd for GpuEnd {
    fn kind(&self) -> MemKind {
        self.kind
    }

    fn to_host(&mut self, tensor: &Tensor, host: &mut [f32]) -> Result<(), ModelError> {
        Ok(self.staging.to_host(tensor, host)?)
    }

    fn to_device(&mut self, floats: &[f32], shape: &[usize]) -> Result<Tensor, ModelError> {
        Ok(self.staging.to_device(floats, shape)?)
    }

    fn write(
        &mut self,
        tensor: &Tensor,
        region: &mut Region,
    ) -> Result<Arc<dyn Ready>, ModelError> {
        Ok(Arc::new(GpuReady(block(region)?.block.write(tensor)?)))
    }

    fn read(&mut self, region: &mut Region, shape: &[usize]) -> Result<Tensor, ModelError> {
        Ok(block(region)?.block.read(shape, &self.device)?)
    }
}

fn block(region: &mut Region) -> Result<&mut GpuBlock, ModelError> {
    let kind = region.kind();
    let memory = region.memory_mut().and_then(|memory| memory.as_any_mut().downcast_mut());
    memory.ok_or_else(|| ModelError::Invalid(format!("a frame in {kind:?} is no gpu's block")))
}

//! The device's end of a frame: from its tensors to memory that travels, and back.
//!
//! Owns the pinned memory of a GPU. Latents, text and pictures live in host memory wherever the
//! device computes; hidden states, queries, keys and values live on the device.

use candle_core::{Device, Tensor};
use ditmesh_model::error::ModelError;

use crate::plan::message::MessageKind;

/// Copies between a device and host memory.
pub(super) struct Port {
    device: Device,
    #[cfg(feature = "cuda")]
    staging: Option<ditmesh_model::cuda::Staging>,
}

impl Port {
    /// The end of `device`.
    ///
    /// # Errors
    /// When a GPU's pinned memory cannot be had.
    pub(super) fn new(device: Device) -> Result<Self, ModelError> {
        #[cfg(feature = "cuda")]
        let staging = match device.is_cuda() {
            true => Some(ditmesh_model::cuda::Staging::new(&device)?),
            false => None,
        };
        Ok(Self {
            device,
            #[cfg(feature = "cuda")]
            staging,
        })
    }

    /// Copies an f32 tensor on the device to `host`, which has as many elements.
    ///
    /// # Errors
    /// When the tensor is elsewhere, of another size, or the copy fails.
    pub(super) fn take_off(&mut self, tensor: &Tensor, host: &mut [f32]) -> Result<(), ModelError> {
        #[cfg(feature = "cuda")]
        if let Some(staging) = &mut self.staging {
            return Ok(staging.to_host(tensor, host)?);
        }
        let what = format!(
            "a tensor on {:?} and {} floats of host memory have no way between them",
            tensor.device().location(),
            host.len()
        );
        Err(ModelError::Invalid(what))
    }

    /// `floats` as a tensor where messages of this kind live.
    ///
    /// # Errors
    /// When the shape has another size, or the copy fails.
    pub(super) fn put(
        &mut self,
        kind: MessageKind,
        floats: &[f32],
        shape: &[usize],
    ) -> Result<Tensor, ModelError> {
        if is_on_device(kind) {
            #[cfg(feature = "cuda")]
            if let Some(staging) = &mut self.staging {
                return Ok(staging.to_device(floats, shape)?);
            }
            return Ok(Tensor::from_slice(floats, shape, &self.device)?);
        }
        Ok(Tensor::from_slice(floats, shape, &Device::Cpu)?)
    }
}

/// Whether the tensor of a message lives where the device computes, on either side.
fn is_on_device(kind: MessageKind) -> bool {
    matches!(
        kind,
        MessageKind::Activation
            | MessageKind::UlyssesQkv
            | MessageKind::UlyssesOut
            | MessageKind::RingKv
            | MessageKind::RingFresh
            | MessageKind::BandHalo
            | MessageKind::BandMap
    )
}

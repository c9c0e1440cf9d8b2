//! The device's end of a frame: from its tensors to memory that travels, and back.
//!
//! Owns which way a frame takes. Latents, text and pictures live in host memory wherever the device
//! computes; hidden states, queries, keys and values live on the device. Their frames lie in the
//! device's memory where what carries them takes that (*direct*), and pass through pinned host
//! memory where it does not (*staged*). Both ends of a link know which: the kind of a message says
//! where its tensor is, the plan whether it is coded, which is the host's work, and the link what
//! both take.

#[cfg(feature = "cuda")]
mod gpu;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use ditmesh_model::error::ModelError;
use ditmesh_transport::Transport;
use ditmesh_transport::error::TransportError;
use ditmesh_transport::link::Link;
use ditmesh_transport::region::{MemKind, Ready, Region, Slice};

use crate::plan::message::{Message, MessageKind};

/// A device that has memory of its own.
pub(super) trait DeviceEnd: Send {
    /// What kind of memory.
    fn kind(&self) -> MemKind;

    /// Copies an f32 tensor to host memory of as many elements, which is there when this returns.
    fn to_host(&mut self, tensor: &Tensor, host: &mut [f32]) -> Result<(), ModelError>;

    /// A new tensor with what is in host memory, which is free when this returns.
    fn to_device(&mut self, floats: &[f32], shape: &[usize]) -> Result<Tensor, ModelError>;

    /// Has an f32 tensor copied to the device's own memory, which may be read when what is returned
    /// has happened.
    fn write(&mut self, tensor: &Tensor, region: &mut Region)
    -> Result<Arc<dyn Ready>, ModelError>;

    /// A new tensor with what is in the device's own memory, which is not idle before that is
    /// copied.
    fn read(&mut self, region: &mut Region, shape: &[usize]) -> Result<Tensor, ModelError>;
}

/// Copies between a device and memory that travels.
pub(super) struct Port {
    device: Device,
    end: Option<Box<dyn DeviceEnd>>,
}

impl Port {
    /// The end of `device`.
    ///
    /// # Errors
    /// When a GPU's pinned memory cannot be had.
    pub(super) fn new(device: Device) -> Result<Self, ModelError> {
        #[cfg(feature = "cuda")]
        let end = gpu::end_of(&device)?;
        #[cfg(not(feature = "cuda"))]
        let end = None;
        Ok(Self { device, end })
    }

    /// Whether frames to and from a peer stay on the device, in words; none where the device has no
    /// memory of its own.
    pub(super) fn describe(&self, link: &dyn Link) -> Option<&'static str> {
        let end = self.end.as_ref()?;
        Some(match link.takes(end.kind()) {
            true => "device memory direct",
            false => "staged, because its carrier takes host memory only",
        })
    }

    /// Whether an uncoded `message` over `link` stays on the device.
    pub(super) fn is_direct(&self, message: &Message, link: &dyn Link) -> bool {
        let end = self.end.as_ref();
        is_on_device(message.kind) && end.is_some_and(|end| link.takes(end.kind()))
    }

    /// The payload of a direct frame; to be sent at once, it waits for the device by itself.
    ///
    /// # Errors
    /// When the device refuses the copy or has no memory left.
    pub(super) fn write(
        &mut self,
        tensor: &Tensor,
        message: &Message,
        transport: &dyn Transport,
    ) -> Result<Slice, ModelError> {
        let len = message.bytes();
        let mut region = transport.allocate_on_device(len).map_err(invalid)?;
        let ready = self.own()?.write(tensor, &mut region)?;
        Ok(region.freeze(len).with_ready(ready))
    }

    /// The tensor of a direct frame that came.
    ///
    /// # Errors
    /// When the device refuses the copy.
    pub(super) fn read(
        &mut self,
        mut region: Region,
        message: &Message,
    ) -> Result<Tensor, ModelError> {
        self.own()?.read(&mut region, &message.shape)
    }

    /// Copies an f32 tensor on the device to `host`, which has as many elements.
    ///
    /// # Errors
    /// When the tensor is elsewhere, of another size, or the copy fails.
    pub(super) fn take_off(&mut self, tensor: &Tensor, host: &mut [f32]) -> Result<(), ModelError> {
        self.own()?.to_host(tensor, host)
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
        match &mut self.end {
            Some(end) if is_on_device(kind) => end.to_device(floats, shape),
            None if is_on_device(kind) => Ok(Tensor::from_slice(floats, shape, &self.device)?),
            _ => Ok(Tensor::from_slice(floats, shape, &Device::Cpu)?),
        }
    }

    fn own(&mut self) -> Result<&mut (dyn DeviceEnd + 'static), ModelError> {
        let device = self.device.location();
        let missing = || ModelError::Invalid(format!("{device:?} has no memory of its own"));
        self.end.as_deref_mut().ok_or_else(missing)
    }
}

fn invalid(error: TransportError) -> ModelError {
    ModelError::Invalid(error.to_string())
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

#[cfg(test)]
mod tests;

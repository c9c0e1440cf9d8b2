//! From a tensor to the payload of its message and back, in the bytes that the plan asks for.
//!
//! Owns the floats on their way to fewer bytes, and what both ends of an edge hold
//! ([`Reconstructions`]). What travels as it is takes a shorter way, of one copy: through host
//! memory that of [`super::wire_tensor`], on the device that of its [`Port`].

use candle_core::{DType, Device, Tensor};
use ditmesh_model::error::ModelError;
use ditmesh_model::strided;
use ditmesh_transport::Transport;
use ditmesh_transport::codec;
use ditmesh_transport::error::TransportError;
use ditmesh_transport::frame::Dtype;
use ditmesh_transport::link::{Link, Received};
use ditmesh_transport::region::{Region, Slice};

use super::error::ExecuteError;
use super::port::Port;
use super::reconstruction::Reconstructions;
use super::wire_tensor;
use crate::plan::message::Message;

/// What a rank packs and unpacks with, in one run.
pub(super) struct Packing {
    port: Port,
    held: Option<Reconstructions>,
    floats: Vec<f32>,
}

impl Packing {
    /// For a rank on the device of `port`.
    pub(super) fn new(port: Port, held: Option<Reconstructions>) -> Self {
        Self { port, held, floats: Vec::new() }
    }

    /// Whether `message` is more than a copy of its tensor.
    fn is_coded(&self, message: &Message) -> bool {
        matches!(message.dtype, Dtype::F16 | Dtype::Bf16 | Dtype::I8Rows)
            || self.held.as_ref().is_some_and(|held| held.covers(message))
    }

    /// Whether frames to and from a peer stay on the device, in words; none where there is none.
    pub(super) fn describe(&self, link: &dyn Link) -> Option<&'static str> {
        self.port.describe(link)
    }

    /// Where the payload of `message` goes when it comes over `link`.
    pub(super) fn place(
        &self,
        message: &Message,
        (link, transport): (&dyn Link, &dyn Transport),
    ) -> Result<Region, TransportError> {
        match !self.is_coded(message) && self.port.is_direct(message, link) {
            true => transport.allocate_on_device(message.bytes()),
            false => Ok(transport.allocate(message.bytes())),
        }
    }

    /// The payload of `message` over `link`, of a tensor of its shape and any strides.
    pub(super) fn pack(
        &mut self,
        tensor: &Tensor,
        message: &Message,
        (link, transport): (&dyn Link, &dyn Transport),
    ) -> Result<Slice, ExecuteError> {
        if !self.is_coded(message) {
            if self.port.is_direct(message, link) {
                return Ok(self.port.write(tensor, message, transport)?);
            }
            return Ok(wire_tensor::to_slice(tensor, transport, &mut self.port)?);
        }
        self.take_floats(tensor)?;
        let len = message.bytes();
        let mut region = transport.allocate(len);
        let payload = region.bytes_mut().get_mut(..len);
        let payload = payload.ok_or_else(|| {
            ModelError::Invalid("the transport gave less memory than asked".into())
        })?;
        self.write(message, payload).map_err(|source| coding(message, &source))?;
        Ok(region.freeze(len))
    }

    fn write(&mut self, message: &Message, payload: &mut [u8]) -> Result<(), TransportError> {
        match &mut self.held {
            Some(held) if held.covers(message) => held.write(message, &self.floats, payload),
            _ => codec::encode(message.dtype, row(message), &self.floats, payload),
        }
    }

    /// The tensor that came as `message`.
    pub(super) fn unpack(
        &mut self,
        received: Received,
        message: &Message,
    ) -> Result<Tensor, ExecuteError> {
        if received.region.kind().is_device() {
            return Ok(self.port.read(received.region, message)?);
        }
        let payload = received.region.bytes().get(..received.len).unwrap_or_default();
        if !self.is_coded(message) {
            return wire_tensor::to_tensor(payload, message, &mut self.port);
        }
        self.read(message, payload).map_err(|source| coding(message, &source))?;
        Ok(self.port.put(message.kind, &self.floats, &message.shape)?)
    }

    fn read(&mut self, message: &Message, payload: &[u8]) -> Result<(), TransportError> {
        self.floats.resize(message.shape.iter().product(), 0.0);
        match &mut self.held {
            Some(held) if held.covers(message) => held.read(message, payload, &mut self.floats),
            _ => codec::decode(message.dtype, row(message), payload, &mut self.floats),
        }
    }

    /// What the receiver of `message` makes of `tensor`, in host memory: where both ends must go on
    /// with the same numbers.
    pub(super) fn as_received(
        &mut self,
        tensor: &Tensor,
        message: &Message,
    ) -> Result<Tensor, ExecuteError> {
        if message.dtype == Dtype::F32 {
            return Ok(tensor.clone());
        }
        self.take_floats(tensor)?;
        let mut payload = vec![0; message.bytes()];
        let (dtype, row) = (message.dtype, row(message));
        let coded = codec::encode(dtype, row, &self.floats, &mut payload)
            .and_then(|()| codec::decode(dtype, row, &payload, &mut self.floats));
        coded.map_err(|source| coding(message, &source))?;
        Ok(Tensor::from_slice(&self.floats, message.shape.as_slice(), &Device::Cpu)?)
    }

    /// Copies the tensor to `floats` in row-major order.
    fn take_floats(&mut self, tensor: &Tensor) -> Result<(), ModelError> {
        if tensor.dtype() != DType::F32 {
            let what = format!("{:?} does not travel in fewer bytes, only f32", tensor.dtype());
            return Err(ModelError::Invalid(what));
        }
        self.floats.resize(tensor.elem_count(), 0.0);
        match tensor.device().is_cpu() {
            true => strided::copy_into(tensor, &mut self.floats),
            false => self.port.take_off(tensor, &mut self.floats),
        }
    }
}

/// Elements of a row: the innermost dimension.
fn row(message: &Message) -> usize {
    message.shape.last().copied().unwrap_or(1)
}

fn coding(message: &Message, source: &TransportError) -> ExecuteError {
    ModelError::Invalid(format!("{message}: {source}")).into()
}

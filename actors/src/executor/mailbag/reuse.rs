//! Frames without payload: of blocks that a step cache does not run, and decisions.
//!
//! Owns the metadata of both. A reuse frame stands in the place of one with payload, so its place
//! was posted at full size.

use std::time::Instant;

use ditmesh_transport::frame::FrameMeta;
use ditmesh_transport::region::Slice;

use super::super::error::ExecuteError;
use super::super::wire_tensor;
use super::Mailbag;
use crate::plan::message::Message;

/// A decision to reuse in [`FrameMeta::decision`].
const REUSE: u32 = 1;
/// A decision to compute.
const COMPUTE: u32 = 0;

impl Mailbag {
    /// Sends the frame of `message` without its payload.
    pub(in crate::executor) fn send_reuse(
        &mut self,
        peer: usize,
        message: &Message,
    ) -> Result<(), ExecuteError> {
        let meta = FrameMeta { reuse: true, ..wire_tensor::meta(message, self.epoch) };
        self.transmit(peer, message, meta, Slice::empty())
    }

    /// Waits for the frame of `message` that comes without its payload.
    pub(in crate::executor) fn receive_reuse(
        &mut self,
        peer: usize,
        message: &Message,
        deadline: Instant,
    ) -> Result<(), ExecuteError> {
        let received = self.take(peer, message, deadline)?;
        wire_tensor::check_reuse(&received, message, peer, self.epoch)
    }

    /// Tells whether a pass is reused.
    pub(in crate::executor) fn send_decision(
        &mut self,
        peer: usize,
        message: &Message,
        reuse: bool,
    ) -> Result<(), ExecuteError> {
        let decision = Some(if reuse { REUSE } else { COMPUTE });
        let meta = FrameMeta { decision, ..wire_tensor::meta(message, self.epoch) };
        self.transmit(peer, message, meta, Slice::empty())
    }

    /// Waits to be told whether a pass is reused.
    pub(in crate::executor) fn receive_decision(
        &mut self,
        peer: usize,
        message: &Message,
    ) -> Result<bool, ExecuteError> {
        let received = self.take(peer, message, self.deadline())?;
        wire_tensor::check(&received, message, peer, self.epoch)?;
        match received.meta.decision {
            Some(REUSE) => Ok(true),
            Some(COMPUTE) => Ok(false),
            found => Err(ExecuteError::Mismatch {
                peer,
                expected: format!("{message} with decision {COMPUTE} or {REUSE}"),
                found: format!("decision {found:?}"),
            }),
        }
    }
}

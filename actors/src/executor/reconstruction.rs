//! What both ends of a pipeline edge hold of the hidden states that went over it, where those
//! travel as changes.
//!
//! Owns the floats and which of them a message covers. The sender keeps what the receiver has made
//! of its changes and not what it computed, so both ends hold the same to the bit
//! ([`ditmesh_transport::codec`]) and the error of one step is part of the next step's change.
//!
//! Invariants: a rank has at most one edge of each direction; every row crosses it once in each
//! step, with its strip or with all of them, and in order.

#[cfg(test)]
mod tests;

use std::ops::Range;

use ditmesh_transport::codec;
use ditmesh_transport::error::TransportError;

use crate::plan::Plan;
use crate::plan::mesh::Coordinates;
use crate::plan::message::{Message, MessageKind};
use crate::plan::program::Patch;

/// Both edges of a rank in one run.
pub(super) struct Reconstructions {
    /// Tokens of this rank's rows before each strip, and all of them.
    tokens: Vec<usize>,
    batch: usize,
    hidden: usize,
    /// `[B, T, hidden]` of all own tokens, what the next stage holds.
    sent: Vec<f32>,
    /// The same of what came from the stage before.
    received: Vec<f32>,
}

impl Reconstructions {
    /// For a run whose hidden states travel as changes.
    pub(super) fn new(plan: &Plan, at: Coordinates) -> Option<Self> {
        if !plan.run.wire.residual || plan.mesh.stages() == 1 {
            return None;
        }
        let of_strip = |strip| plan.rows(at.sp, Patch::Strip(strip)).len();
        let mut tokens = vec![0];
        for strip in 0..plan.strips.len() {
            let before = tokens.last().copied().unwrap_or(0);
            tokens.push(before + of_strip(strip) * plan.grid.tokens_per_row());
        }
        let (batch, hidden) = (plan.batch(), plan.model.hidden());
        let floats = batch * hidden * tokens.last().copied().unwrap_or(0);
        let edge = |is: bool| if is { vec![0.0; floats] } else { Vec::new() };
        let (sent, received) = (edge(at.stage + 1 < plan.mesh.stages()), edge(at.stage > 0));
        Some(Self { tokens, batch, hidden, sent, received })
    }

    /// Whether `message` goes through here: a change, or what changes start from.
    pub(super) fn covers(&self, message: &Message) -> bool {
        message.kind == MessageKind::Activation
    }

    /// Writes `values` as the payload of `message`, and keeps what the receiver makes of it.
    pub(super) fn write(
        &mut self,
        message: &Message,
        values: &[f32],
        payload: &mut [u8],
    ) -> Result<(), TransportError> {
        let (dtype, row) = (message.dtype, self.hidden);
        for Piece { own, held, record } in self.pieces(message) {
            let beyond = || beyond(message);
            let values = values.get(own).ok_or_else(beyond)?;
            let payload = payload.get_mut(record).ok_or_else(beyond)?;
            let held = self.sent.get_mut(held).ok_or_else(beyond)?;
            if message.residual {
                codec::encode_change(dtype, row, values, held, payload)?;
            } else {
                codec::encode(dtype, row, values, payload)?;
                codec::decode(dtype, row, payload, held)?;
            }
        }
        Ok(())
    }

    /// Reads the payload of `message` into `values`, and keeps it.
    pub(super) fn read(
        &mut self,
        message: &Message,
        payload: &[u8],
        values: &mut [f32],
    ) -> Result<(), TransportError> {
        let (dtype, row) = (message.dtype, self.hidden);
        for Piece { own, held, record } in self.pieces(message) {
            let beyond = || beyond(message);
            let payload = payload.get(record).ok_or_else(beyond)?;
            let held = self.received.get_mut(held).ok_or_else(beyond)?;
            if message.residual {
                codec::decode_change(dtype, row, payload, held)?;
            } else {
                codec::decode(dtype, row, payload, held)?;
            }
            values.get_mut(own).ok_or_else(beyond)?.copy_from_slice(held);
        }
        Ok(())
    }

    /// The parts of `message`, one for each row of the batch.
    fn pieces(&self, message: &Message) -> Vec<Piece> {
        let at = |index: usize| self.tokens.get(index).copied().unwrap_or(0);
        let all = at(self.tokens.len().saturating_sub(1));
        let tokens = match message.patch() {
            Patch::All => 0..all,
            Patch::Strip(strip) => at(strip)..at(strip + 1),
        };
        let (hidden, bytes) = (self.hidden, message.dtype.row_bytes(self.hidden));
        let piece = |index: usize| {
            let own = index * tokens.len()..(index + 1) * tokens.len();
            let held = index * all + tokens.start..index * all + tokens.end;
            Piece {
                own: scaled(&own, hidden),
                held: scaled(&held, hidden),
                record: scaled(&own, bytes),
            }
        };
        (0..self.batch).map(piece).collect()
    }
}

/// Where one row of the batch is in a message's floats, in those held, and in the payload.
struct Piece {
    own: Range<usize>,
    held: Range<usize>,
    record: Range<usize>,
}

fn scaled(range: &Range<usize>, by: usize) -> Range<usize> {
    range.start * by..range.end * by
}

fn beyond(message: &Message) -> TransportError {
    TransportError::mismatch("floats and rows", message, "those held of the edge")
}

//! The sequence group as the numerics see it: an [`Exchanger`] over the rank's frames.

use std::time::Instant;

use candle_core::Tensor;
use ditmesh_model::error::ModelError;
use ditmesh_model::exchange::Exchanger;
use ditmesh_model::phase::{Phase, Transfer};

use super::error::ExecuteError;
use super::mailbag::Mailbag;
use crate::plan::message::Message;
use crate::request::Wire;

/// One forward pass's view of the sequence group.
pub(super) struct Group<'a> {
    pub(super) bag: &'a mut Mailbag,
    /// Ranks in member order.
    pub(super) ranks: Vec<usize>,
    pub(super) step: usize,
    pub(super) patch: Option<usize>,
    wire: Wire,
    /// The error behind a [`ModelError::Exchange`], with its type kept.
    pub(super) error: Option<ExecuteError>,
}

impl<'a> Group<'a> {
    pub(super) fn new(
        bag: &'a mut Mailbag,
        ranks: Vec<usize>,
        step: usize,
        patch: Option<usize>,
        wire: Wire,
    ) -> Self {
        Self { bag, ranks, step, patch, wire, error: None }
    }

    fn keep(&mut self, error: ExecuteError) -> ModelError {
        let text = error.to_string();
        self.error = Some(error);
        ModelError::Exchange(text)
    }

    /// Ranks and messages of one side of an exchange.
    fn frames(&self, transfer: &Transfer) -> Result<Vec<(usize, Message)>, ModelError> {
        let frame = |(member, shape): &(usize, Vec<usize>)| {
            let shape = shape.clone();
            let rank = self.ranks.get(*member).copied().ok_or_else(|| {
                let members = self.ranks.len();
                ModelError::Exchange(format!("member {member} is not in a group of {members}"))
            })?;
            let message = Message::of_exchange(transfer.id, self.step, self.patch, shape);
            Ok((rank, message.on_wire(&self.wire)))
        };
        transfer.pieces.iter().map(frame).collect()
    }
}

impl Exchanger for Group<'_> {
    fn start(&mut self, transfer: &Transfer, pieces: Vec<Tensor>) -> Result<(), ModelError> {
        for ((rank, message), piece) in self.frames(transfer)?.into_iter().zip(pieces) {
            if let Err(error) = self.bag.send(rank, &message, &piece) {
                return Err(self.keep(error));
            }
        }
        Ok(())
    }

    fn wait(&mut self, transfer: &Transfer, deadline: Instant) -> Result<Vec<Tensor>, ModelError> {
        let mut pieces = Vec::with_capacity(transfer.pieces.len());
        for (rank, message) in self.frames(transfer)? {
            match self.bag.receive(rank, &message, deadline) {
                Ok(piece) => pieces.push(piece),
                Err(error) => return Err(self.keep(error)),
            }
        }
        Ok(pieces)
    }

    fn start_reused(&mut self, transfer: &Transfer) -> Result<(), ModelError> {
        for (rank, message) in self.frames(transfer)? {
            if let Err(error) = self.bag.send_reuse(rank, &message) {
                return Err(self.keep(error));
            }
        }
        Ok(())
    }

    fn wait_reused(&mut self, transfer: &Transfer, deadline: Instant) -> Result<(), ModelError> {
        for (rank, message) in self.frames(transfer)? {
            if let Err(error) = self.bag.receive_reuse(rank, &message, deadline) {
                return Err(self.keep(error));
            }
        }
        Ok(())
    }

    fn proceed(&mut self, phase: &Phase) -> Result<(), ModelError> {
        self.bag.clock.phase(phase);
        match self.bag.check_abort() {
            Ok(()) => Ok(()),
            Err(error) => Err(self.keep(error)),
        }
    }
}

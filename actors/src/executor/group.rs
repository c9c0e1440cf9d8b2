//! The sequence group as the numerics see it: an [`Exchanger`] over the rank's frames.

use std::time::Instant;

use candle_core::Tensor;
use ditmesh_model::error::ModelError;
use ditmesh_model::exchange::{ExchangeId, Exchanger};
use ditmesh_model::phase::{Exchange, Phase};

use super::error::ExecuteError;
use super::mailbag::Mailbag;
use crate::plan::message::Message;

/// One forward pass's view of the sequence group.
pub(super) struct Group<'a> {
    pub(super) bag: &'a mut Mailbag,
    /// Ranks in member order.
    pub(super) ranks: Vec<usize>,
    pub(super) step: usize,
    pub(super) patch: Option<usize>,
    /// The exchange that is under way, with the shapes the plan gives it.
    current: Option<Exchange>,
    /// The error behind a [`ModelError::Exchange`], with its type kept.
    pub(super) error: Option<ExecuteError>,
}

impl<'a> Group<'a> {
    pub(super) fn new(
        bag: &'a mut Mailbag,
        ranks: Vec<usize>,
        step: usize,
        patch: Option<usize>,
    ) -> Self {
        Self { bag, ranks, step, patch, current: None, error: None }
    }

    fn keep(&mut self, error: ExecuteError) -> ModelError {
        let text = error.to_string();
        self.error = Some(error);
        ModelError::Exchange(text)
    }

    fn message(&self, id: ExchangeId, shape: Vec<usize>) -> Message {
        Message::of_exchange(id, self.step, self.patch, shape)
    }

    /// Ranks and messages of one side of an exchange.
    fn frames(&self, id: ExchangeId, shapes: &[Option<Vec<usize>>]) -> Vec<(usize, Message)> {
        let pairs = self.ranks.iter().zip(shapes);
        pairs.filter_map(|(&rank, shape)| Some((rank, self.message(id, shape.clone()?)))).collect()
    }
}

impl Exchanger for Group<'_> {
    fn start(&mut self, id: ExchangeId, pieces: Vec<Option<Tensor>>) -> Result<(), ModelError> {
        for (member, piece) in pieces.into_iter().enumerate() {
            let (Some(piece), Some(&rank)) = (piece, self.ranks.get(member)) else { continue };
            let message = self.message(id, piece.dims().to_vec());
            if let Err(error) = self.bag.send(rank, &message, &piece) {
                return Err(self.keep(error));
            }
        }
        Ok(())
    }

    fn wait(
        &mut self,
        id: ExchangeId,
        deadline: Instant,
    ) -> Result<Vec<Option<Tensor>>, ModelError> {
        let shapes = match self.current.take() {
            Some(exchange) if exchange.id == id => exchange.receive,
            _ => return Err(ModelError::Exchange(format!("{id:?} was not announced"))),
        };
        let mut pieces = Vec::with_capacity(shapes.len());
        for (member, shape) in shapes.into_iter().enumerate() {
            let (Some(shape), Some(&rank)) = (shape, self.ranks.get(member)) else {
                pieces.push(None);
                continue;
            };
            let message = self.message(id, shape);
            match self.bag.receive(rank, &message, deadline) {
                Ok(piece) => pieces.push(Some(piece)),
                Err(error) => return Err(self.keep(error)),
            }
        }
        Ok(pieces)
    }

    fn start_reused(&mut self, exchange: &Exchange) -> Result<(), ModelError> {
        for (rank, message) in self.frames(exchange.id, &exchange.send) {
            if let Err(error) = self.bag.send_reuse(rank, &message) {
                return Err(self.keep(error));
            }
        }
        Ok(())
    }

    fn wait_reused(&mut self, exchange: &Exchange, deadline: Instant) -> Result<(), ModelError> {
        for (rank, message) in self.frames(exchange.id, &exchange.receive) {
            if let Err(error) = self.bag.receive_reuse(rank, &message, deadline) {
                return Err(self.keep(error));
            }
        }
        Ok(())
    }

    fn proceed(&mut self, phase: &Phase) -> Result<(), ModelError> {
        self.bag.clock.phase(phase);
        if let Phase::Exchange(exchange) = phase {
            self.current = Some(exchange.clone());
        }
        match self.bag.check_abort() {
            Ok(()) => Ok(()),
            Err(error) => Err(self.keep(error)),
        }
    }
}

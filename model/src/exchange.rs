//! How a computation reaches its peers: the one door between the numerics and the network.
//!
//! Owns the trait only. No async, no addresses: peers are indices into the sequence group. The
//! implementation lives with the actors.

use std::time::Instant;

use candle_core::Tensor;

use crate::error::ModelError;
use crate::phase::{Phase, Transfer};

/// Names one exchange inside a forward pass; equal on all members of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExchangeId {
    /// Transformer block, counted over the whole model.
    pub block: usize,
    /// Which exchange of that block.
    pub kind: ExchangeKind,
    /// Round of the ring, else 0.
    pub round: usize,
}

/// The exchanges a block can contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExchangeKind {
    /// Ulysses: queries, keys and values, scattered over heads and gathered over tokens.
    UlyssesQkv,
    /// Ulysses: attention output, scattered over tokens and gathered over heads.
    UlyssesOut,
    /// Ring: keys and values on their way around.
    RingKv,
    /// Ring under PipeFusion: keys and values of the rows of one pass, to all.
    RingFresh,
}

impl ExchangeKind {
    /// Its name in accounts of time and in traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::UlyssesQkv => "ulysses_qkv",
            Self::UlyssesOut => "ulysses_out",
            Self::RingKv => "ring_kv",
            Self::RingFresh => "ring_fresh",
        }
    }
}

/// Moves tensors between the members of a sequence group while the compute thread goes on.
pub trait Exchanger {
    /// Starts sending the pieces of `transfer`, in its order. Returns without waiting for the
    /// network. One exchange may start in several parts, for different members.
    ///
    /// # Errors
    /// When a piece is not of its shape, a peer is lost or the run was aborted.
    fn start(&mut self, transfer: &Transfer, pieces: Vec<Tensor>) -> Result<(), ModelError>;

    /// Waits for the pieces of `transfer`, in its order.
    ///
    /// # Errors
    /// When a peer is lost, the run was aborted or `deadline` has passed.
    fn wait(&mut self, transfer: &Transfer, deadline: Instant) -> Result<Vec<Tensor>, ModelError>;

    /// Sends the frames of `transfer` without payload: the block it belongs to is not run.
    ///
    /// # Errors
    /// When a peer is lost or the run was aborted.
    fn start_reused(&mut self, transfer: &Transfer) -> Result<(), ModelError>;

    /// Waits for the frames of `transfer` that the other members send without payload.
    ///
    /// # Errors
    /// When a frame has a payload, a peer is lost, the run was aborted or `deadline` has passed.
    fn wait_reused(&mut self, transfer: &Transfer, deadline: Instant) -> Result<(), ModelError>;

    /// Called before each phase of a forward pass: the place to notice an abort and to account for
    /// time.
    ///
    /// # Errors
    /// [`ModelError::Aborted`] when the run was aborted.
    fn proceed(&mut self, phase: &Phase) -> Result<(), ModelError>;
}

/// The exchanger of a rank that has no peers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Exchanger for Alone {
    fn start(&mut self, transfer: &Transfer, _: Vec<Tensor>) -> Result<(), ModelError> {
        Err(ModelError::Exchange(format!("{:?} on a rank without peers", transfer.id)))
    }

    fn wait(&mut self, transfer: &Transfer, _: Instant) -> Result<Vec<Tensor>, ModelError> {
        Err(ModelError::Exchange(format!("{:?} on a rank without peers", transfer.id)))
    }

    fn start_reused(&mut self, transfer: &Transfer) -> Result<(), ModelError> {
        Err(ModelError::Exchange(format!("{:?} on a rank without peers", transfer.id)))
    }

    fn wait_reused(&mut self, transfer: &Transfer, _: Instant) -> Result<(), ModelError> {
        Err(ModelError::Exchange(format!("{:?} on a rank without peers", transfer.id)))
    }

    fn proceed(&mut self, _: &Phase) -> Result<(), ModelError> {
        Ok(())
    }
}

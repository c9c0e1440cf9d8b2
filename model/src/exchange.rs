//! How a computation reaches its peers: the one door between the numerics and the network.
//!
//! Owns the trait only. No async, no addresses: peers are indices into the sequence group. The
//! implementation lives with the actors.

use std::time::Instant;

use candle_core::Tensor;

use crate::error::ModelError;
use crate::phase::{Exchange, Phase};

/// Names one exchange inside a forward pass; equal on all members of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExchangeId {
    /// Transformer block, counted over the whole model.
    pub block: usize,
    /// Which exchange of that block.
    pub kind: ExchangeKind,
}

/// The exchanges a block can contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExchangeKind {
    /// Ulysses: queries, keys and values, scattered over heads and gathered over tokens.
    UlyssesQkv,
    /// Ulysses: attention output, scattered over tokens and gathered over heads.
    UlyssesOut,
}

impl ExchangeKind {
    /// Its name in accounts of time and in traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::UlyssesQkv => "ulysses_qkv",
            Self::UlyssesOut => "ulysses_out",
        }
    }
}

/// Moves tensors between the members of a sequence group while the compute thread goes on.
pub trait Exchanger {
    /// Starts sending `pieces[i]` to member `i`; the entry of this rank itself is `None`, as is
    /// one for a member that gets nothing. Returns without waiting for the network.
    ///
    /// # Errors
    /// When a peer is lost or the run was aborted.
    fn start(&mut self, id: ExchangeId, pieces: Vec<Option<Tensor>>) -> Result<(), ModelError>;

    /// Waits for what the other members sent in exchange `id`: entry `i` came from member `i`, and
    /// is `None` for this rank itself and for members that send nothing.
    ///
    /// # Errors
    /// When a peer is lost, the run was aborted or `deadline` has passed.
    fn wait(
        &mut self,
        id: ExchangeId,
        deadline: Instant,
    ) -> Result<Vec<Option<Tensor>>, ModelError>;

    /// Sends the frames of `exchange` without payload: the blocks it belongs to are not run.
    ///
    /// # Errors
    /// When a peer is lost or the run was aborted.
    fn start_reused(&mut self, exchange: &Exchange) -> Result<(), ModelError>;

    /// Waits for the frames of `exchange` that the other members send without payload.
    ///
    /// # Errors
    /// When a frame has a payload, a peer is lost, the run was aborted or `deadline` has passed.
    fn wait_reused(&mut self, exchange: &Exchange, deadline: Instant) -> Result<(), ModelError>;

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
    fn start(&mut self, id: ExchangeId, _: Vec<Option<Tensor>>) -> Result<(), ModelError> {
        Err(ModelError::Exchange(format!("{id:?} on a rank without peers")))
    }

    fn wait(&mut self, id: ExchangeId, _: Instant) -> Result<Vec<Option<Tensor>>, ModelError> {
        Err(ModelError::Exchange(format!("{id:?} on a rank without peers")))
    }

    fn start_reused(&mut self, exchange: &Exchange) -> Result<(), ModelError> {
        Err(ModelError::Exchange(format!("{:?} on a rank without peers", exchange.id)))
    }

    fn wait_reused(&mut self, exchange: &Exchange, _: Instant) -> Result<(), ModelError> {
        Err(ModelError::Exchange(format!("{:?} on a rank without peers", exchange.id)))
    }

    fn proceed(&mut self, _: &Phase) -> Result<(), ModelError> {
        Ok(())
    }
}

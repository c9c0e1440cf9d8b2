//! How a decoder of a band of rows reaches the decoders of the other bands.
//!
//! Owns the trait only. No async, no addresses: members are indices among the decoding ranks. The
//! implementation lives with the actors.

use std::time::Instant;

use candle_core::Tensor;

use super::phase::BandExchange;
use crate::error::ModelError;

/// Moves tensors between the members that decode one picture.
pub trait BandExchanger {
    /// Starts sending `pieces[i]` to member `i`, in the shapes of `exchange.send`; entries that
    /// are `None` there are `None` here. Returns without waiting for the network.
    ///
    /// # Errors
    /// When a member is lost or the run was aborted.
    fn start(
        &mut self,
        exchange: &BandExchange,
        pieces: Vec<Option<Tensor>>,
    ) -> Result<(), ModelError>;

    /// Waits for what the other members sent: entry `i` came from member `i` and has the shape of
    /// `exchange.receive[i]`.
    ///
    /// # Errors
    /// When a member is lost, the run was aborted or `deadline` has passed.
    fn wait(
        &mut self,
        exchange: &BandExchange,
        deadline: Instant,
    ) -> Result<Vec<Option<Tensor>>, ModelError>;

    /// Called before each layer: the place to notice an abort.
    ///
    /// # Errors
    /// [`ModelError::Aborted`] when the run was aborted.
    fn proceed(&mut self) -> Result<(), ModelError>;
}

/// The exchanger of a rank that decodes alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct AloneInBand;

impl BandExchanger for AloneInBand {
    fn start(&mut self, exchange: &BandExchange, _: Vec<Option<Tensor>>) -> Result<(), ModelError> {
        Err(ModelError::Exchange(format!("{:?} on a rank that decodes alone", exchange.id)))
    }

    fn wait(
        &mut self,
        exchange: &BandExchange,
        _: Instant,
    ) -> Result<Vec<Option<Tensor>>, ModelError> {
        Err(ModelError::Exchange(format!("{:?} on a rank that decodes alone", exchange.id)))
    }

    fn proceed(&mut self) -> Result<(), ModelError> {
        Ok(())
    }
}

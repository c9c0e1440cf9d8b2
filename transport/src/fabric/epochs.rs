//! Which epochs a fabric may still form.
//!
//! Owns one rule: an epoch is formed at most once, and none below the highest. A failed attempt may
//! be repeated with the same epoch.

use crate::error::TransportError;
use crate::ids::Epoch;

#[derive(Debug, Default)]
pub(crate) struct Epochs {
    highest: Option<Epoch>,
    taken: bool,
}

impl Epochs {
    /// Begins to form `epoch`.
    pub(crate) fn begin(&mut self, epoch: Epoch) -> Result<(), TransportError> {
        self.check(epoch)?;
        if self.is_taken(epoch) {
            return Err(TransportError::StaleEpoch { current: epoch, offered: epoch });
        }
        self.highest = Some(epoch);
        self.taken = true;
        Ok(())
    }

    /// The attempt failed.
    pub(crate) fn give_up(&mut self, epoch: Epoch) {
        if self.highest == Some(epoch) {
            self.taken = false;
        }
    }

    /// Whether `epoch` is being formed or was formed.
    pub(crate) fn is_taken(&self, epoch: Epoch) -> bool {
        self.taken && self.highest == Some(epoch)
    }

    /// Whether a peer may still ask for `epoch`.
    pub(crate) fn check(&self, epoch: Epoch) -> Result<(), TransportError> {
        match self.highest {
            Some(current) if epoch < current => {
                Err(TransportError::StaleEpoch { current, offered: epoch })
            }
            _ => Ok(()),
        }
    }
}

//! Which epochs a fabric may still form.
//!
//! Owns one rule: an epoch is formed at most once, and begun only above all that were begun before.
//! Several may be under way at a time (a coordinator is a member of every replica's mesh), and a
//! peer may come for each of them. A failed attempt at the highest may be repeated.

use std::collections::BTreeSet;

use crate::error::TransportError;
use crate::ids::Epoch;

#[derive(Debug, Default)]
pub(crate) struct Epochs {
    highest: Option<Epoch>,
    taken: bool,
    under_way: BTreeSet<Epoch>,
}

impl Epochs {
    /// Begins to form `epoch`.
    pub(crate) fn begin(&mut self, epoch: Epoch) -> Result<(), TransportError> {
        match self.highest {
            Some(current) if epoch < current || self.is_taken(epoch) => {
                Err(TransportError::StaleEpoch { current, offered: epoch })
            }
            _ => {
                self.highest = Some(epoch);
                self.taken = true;
                self.under_way.insert(epoch);
                Ok(())
            }
        }
    }

    /// The attempt is over.
    pub(crate) fn end(&mut self, epoch: Epoch, formed: bool) {
        self.under_way.remove(&epoch);
        if !formed && self.highest == Some(epoch) {
            self.taken = false;
        }
    }

    /// Whether `epoch`, the highest, is being formed or was formed.
    pub(crate) fn is_taken(&self, epoch: Epoch) -> bool {
        self.taken && self.highest == Some(epoch)
    }

    /// Whether a peer may still ask for `epoch`.
    pub(crate) fn check(&self, epoch: Epoch) -> Result<(), TransportError> {
        match self.highest {
            Some(current) if epoch < current && !self.under_way.contains(&epoch) => {
                Err(TransportError::StaleEpoch { current, offered: epoch })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_epoch_is_welcome_only_while_it_is_under_way() {
        let mut epochs = Epochs::default();
        for epoch in [Epoch(2), Epoch(3)] {
            assert!(epochs.begin(epoch).is_ok());
        }
        assert!(epochs.check(Epoch(2)).is_ok() && epochs.check(Epoch(1)).is_err());
        epochs.end(Epoch(2), true);
        assert!(epochs.check(Epoch(2)).is_err());
        assert!(epochs.begin(Epoch(2)).is_err() && epochs.begin(Epoch(3)).is_err());
        epochs.end(Epoch(3), false);
        assert!(epochs.begin(Epoch(3)).is_ok());
    }
}

//! What carriers have made of a block of memory, once for as long as it lives.
//!
//! Owns the list, by carrier. Does not know what a registration is: it ends by being dropped, which
//! the block does before it frees its memory. Invariant: at most [`REGISTRATIONS_MAX`] of a block.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

/// The most carriers that a block is registered with: shared memory and the network.
pub(crate) const REGISTRATIONS_MAX: usize = 2;

type Made = Option<Arc<dyn Any + Send + Sync>>;

/// The registrations of one block.
#[derive(Default)]
pub(crate) struct Registrations {
    /// With whom, and what came of it; what could not be registered is not tried again.
    made: Mutex<Vec<(usize, Made)>>,
}

impl Registrations {
    /// That of carrier `with`; made by `make` the first time it is asked for.
    pub(crate) fn get_or_make(&self, with: usize, make: impl FnOnce() -> Made) -> Made {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = made.iter().find(|(whose, _)| *whose == with) {
            return found.clone();
        }
        if made.len() >= REGISTRATIONS_MAX {
            return None;
        }
        let registration = make();
        made.push((with, registration.clone()));
        registration
    }
}

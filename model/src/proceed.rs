//! How a long computation learns that nobody wants its result any more: it asks between layers.
//!
//! Owns the question only. Who answers it, and why, is the caller's.

use crate::error::ModelError;

/// Asked before each layer of something long; an error ends the computation with that error.
pub type Proceed<'a> = &'a mut dyn FnMut() -> Result<(), ModelError>;

/// The answer of a caller that never stops.
///
/// # Errors
/// None.
pub fn always() -> Result<(), ModelError> {
    Ok(())
}

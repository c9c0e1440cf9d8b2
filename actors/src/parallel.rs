//! What each parallel method adds to a plan: operations, and nothing that is executed.
//!
//! Ulysses is not here: its exchanges sit inside a forward pass, where
//! [`ditmesh_model::phase::phases`] puts them.

pub mod cfg;
pub mod pipefusion;
pub mod step_cache;
pub mod vae;

//! A model folder in the diffusers layout: configurations, weight files, identity.
//!
//! Owns finding and reading files. Does not know what any tensor is for: components say which
//! names and shapes they expect. Invariants: nothing is read in whole but small text files; a
//! weight is read only when asked for; every failure is a [`CheckpointError`] naming its place.

mod config;
mod digest;
mod error;
mod folder;
mod header;
mod mapping;
mod source;
mod weights;

pub(crate) use config::read_bounded;
pub use config::{FloatValue, read_json};
pub use error::CheckpointError;
pub use folder::{Checkpoint, PipelineClass, partial_config, typed_config};
pub use header::header_bytes;
pub use source::{HEADER_SUFFIX, TensorSource};
pub use weights::Weights;

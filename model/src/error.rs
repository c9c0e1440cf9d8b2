//! The errors of running a model. Loading has its own, [`crate::checkpoint::CheckpointError`].

use thiserror::Error;

/// Why a computation could not be done.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A tensor operation failed; shapes are in the message.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::CheckpointError),
    /// What was asked for does not fit the model.
    #[error("{0}")]
    Invalid(String),
    /// An exchange with a peer failed; the message names the peer.
    #[error("exchange failed: {0}")]
    Exchange(String),
    /// The run was aborted while this computation was under way.
    #[error("run aborted: {0}")]
    Aborted(String),
}

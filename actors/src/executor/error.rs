//! Why a rank could not finish its program.

use ditmesh_model::error::ModelError;
use ditmesh_transport::error::TransportError;
use thiserror::Error;

/// The failure of one rank in one run.
#[derive(Debug, Error)]
pub enum ExecuteError {
    /// The run was aborted from outside.
    #[error("aborted: {0}")]
    Aborted(String),
    /// A frame did not come in time, or its peer is gone.
    #[error("{what} {direction} member {peer}: {source}")]
    Frame {
        /// Which message.
        what: String,
        /// `from` or `to`.
        direction: &'static str,
        /// The other member.
        peer: usize,
        /// What the transport said.
        source: Box<TransportError>,
    },
    /// A frame is not what the plan says.
    #[error("member {peer} sent {found}, the plan says {expected}")]
    Mismatch {
        /// The sender.
        peer: usize,
        /// What the plan says.
        expected: String,
        /// What came.
        found: String,
    },
    /// The computation itself.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A program that asks for something that is not there.
    #[error("{op} before {missing} is there")]
    Order {
        /// The operation.
        op: &'static str,
        /// What it needs.
        missing: &'static str,
    },
    /// More frames are waiting to be taken by their receivers than any sound plan has.
    #[error("{held} frames wait for their receivers, the limit is {limit}")]
    TooManySends {
        /// Frames held.
        held: usize,
        /// `SENDS_IN_FLIGHT_MAX`.
        limit: usize,
    },
}

impl ExecuteError {
    /// The peer that was waited for or lost, when that is the cause.
    pub fn peer(&self) -> Option<usize> {
        match self {
            Self::Frame { peer, .. } => Some(*peer),
            _ => None,
        }
    }
}

impl From<candle_core::Error> for ExecuteError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}

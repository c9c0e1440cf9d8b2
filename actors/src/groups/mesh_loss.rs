//! Why a mesh ended badly: the typed cause that a failing rank hands up the tree.
//!
//! Owns the cause, its words and whether forming the mesh again can help.

use crate::generation::GenerateError;
use crate::membership::Loss;
use crate::protocol::DeviceId;

/// Why a mesh is gone or did not form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MeshLoss {
    /// Membership says that a device is gone.
    #[error("device {device} (rank {rank}) was lost: {loss}")]
    Device { rank: u32, device: DeviceId, loss: Loss },
    /// A rank lost its link to another one.
    #[error("device {device} (rank {rank}) lost its link to {peer}: {cause}")]
    Link { rank: u32, device: DeviceId, peer: String, cause: String },
    /// Ranks that did not end an aborted run in time.
    #[error("{devices} did not stop run {run} within {milliseconds} ms")]
    Stuck { devices: String, run: u64, milliseconds: u64 },
    /// A rank could not load its partition or reach its peers.
    #[error("device {device} (rank {rank}) could not join the mesh: {cause}")]
    FormFailed { rank: u32, device: DeviceId, cause: String },
    /// The controller could not reach the ranks.
    #[error("the coordinator could not join the mesh: {cause}")]
    Controller { cause: String },
    /// Ranks that were not formed in time.
    #[error("{devices} did not join the mesh within {milliseconds} ms")]
    FormTimedOut { devices: String, milliseconds: u64 },
    /// Ranks that formed something else than was planned.
    #[error("the ranks do not agree: {cause}")]
    Disagreement { cause: String },
    /// An actor of the tree ended without a cause of ours.
    #[error("a group actor failed: {cause}")]
    Actor { cause: String },
}

impl MeshLoss {
    /// Whether the same mesh can be formed again as soon as its devices are ready.
    pub(crate) fn retry(&self) -> bool {
        matches!(self, Self::Device { .. } | Self::Link { .. } | Self::Stuck { .. })
    }

    /// What the request that ran on the mesh ends with.
    pub(crate) fn to_error(&self) -> GenerateError {
        if self.retry() {
            GenerateError::Lost(self.to_string())
        } else {
            GenerateError::Failed(self.to_string())
        }
    }

    /// The cause that an actor failed with.
    pub(crate) fn from_failure(error: ractor::ActorProcessingErr) -> Self {
        match error.downcast::<Self>() {
            Ok(cause) => *cause,
            Err(error) => Self::Actor { cause: error.to_string() },
        }
    }
}

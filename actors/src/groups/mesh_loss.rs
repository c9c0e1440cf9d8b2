//! Why a mesh ended badly: the typed cause that a failing rank hands up the tree.
//!
//! Owns the cause, its words and whether forming the mesh again can help.

use crate::generation::GenerateError;
use crate::membership::{Loss, MembershipEvent};
use crate::protocol::{DeviceId, FormFault};

/// Whether a mesh that was lost is formed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// As soon as its devices are ready.
    WhenReady,
    /// As well, but not for ever: nobody has said that a device is gone.
    AFewTimes,
    /// Not by itself: it would fail again.
    Never,
}

/// Why a mesh is gone or did not form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MeshLoss {
    /// Membership says that a device is gone.
    #[error("device {device} (rank {rank}) was lost: {loss}")]
    Device { rank: u32, device: DeviceId, loss: Loss },
    /// A rank lost its link to another one.
    #[error("device {device} (rank {rank}) lost its link to {peer}: {cause}")]
    Link { rank: u32, device: DeviceId, peer: String, to: Option<DeviceId>, cause: String },
    /// Ranks that did not end an aborted run in time.
    #[error("{devices} did not stop run {run} within {milliseconds} ms")]
    Stuck { devices: String, run: u64, milliseconds: u64 },
    /// A run that did not go on although all its ranks are heard and stopped when they were told
    /// to.
    #[error("a run did not go on: {cause}")]
    Stalled { cause: String },
    /// A rank could not load its partition or reach its peers.
    #[error("device {device} (rank {rank}) could not join the mesh: {cause}")]
    FormFailed { rank: u32, device: DeviceId, fault: FormFault, cause: String },
    /// The controller could not reach the ranks.
    #[error("the coordinator could not join the mesh: {cause}")]
    Controller { cause: String },
    /// Ranks that were not formed in time.
    #[error("{devices} did not join the mesh within {milliseconds} ms")]
    FormTimedOut { devices: String, milliseconds: u64 },
    /// Ranks that formed something else than was planned.
    #[error("the ranks do not agree: {cause}")]
    Disagreement { cause: String },
    /// Another mesh takes over.
    #[error("{cause}")]
    GaveWay { cause: String },
    /// An actor of the tree ended without a cause of ours.
    #[error("a group actor failed: {cause}")]
    Actor { cause: String },
}

impl MeshLoss {
    /// Whether forming the same mesh again can help.
    pub(crate) fn retry(&self) -> Retry {
        match self {
            Self::Device { .. } | Self::Link { .. } | Self::Stuck { .. } | Self::Stalled { .. } => {
                Retry::WhenReady
            }
            Self::FormFailed { fault: FormFault::Links { .. }, .. } | Self::Controller { .. } => {
                Retry::AFewTimes
            }
            _ => Retry::Never,
        }
    }

    /// The device that could not load its part.
    pub(crate) fn unfit(&self) -> Option<DeviceId> {
        match self {
            Self::FormFailed { device, fault: FormFault::Loading, .. } => Some(device.clone()),
            _ => None,
        }
    }

    /// Who is gone, for people.
    pub(crate) fn who(&self) -> String {
        match self {
            Self::Device { loss: Loss::Node { node, .. }, .. } => format!("node {node}"),
            Self::Device { device, .. } | Self::FormFailed { device, .. } => {
                format!("device {device}")
            }
            Self::Link { device, peer, .. } => format!("the link of device {device} to {peer}"),
            Self::Stuck { devices, .. } | Self::FormTimedOut { devices, .. } => devices.clone(),
            Self::Controller { .. } => "a link of the coordinator".into(),
            Self::Stalled { .. }
            | Self::Disagreement { .. }
            | Self::GaveWay { .. }
            | Self::Actor { .. } => "the mesh".into(),
        }
    }

    /// The same, where it is known which devices did not stop.
    pub(crate) fn naming(&self, stuck: &[DeviceId]) -> Self {
        match self {
            &Self::Stuck { run, milliseconds, .. } if !stuck.is_empty() => {
                let names: Vec<String> = stuck.iter().map(ToString::to_string).collect();
                let several = if names.len() > 1 { "s" } else { "" };
                let devices = format!("device{several} {}", names.join(", "));
                Self::Stuck { devices, run, milliseconds }
            }
            loss => loss.clone(),
        }
    }

    /// What membership should know of it; `devices` of the mesh by rank.
    pub(crate) fn about_links(&self, devices: &[DeviceId]) -> Option<MembershipEvent> {
        match self {
            Self::Link { device, to: Some(to), .. } => {
                Some(MembershipEvent::LinkLost { by: device.clone(), to: to.clone() })
            }
            Self::FormFailed { device: by, fault: FormFault::Links { unanswered }, .. } => {
                let to = unanswered.and_then(|rank| devices.get(rank as usize)).cloned();
                let by = by.clone();
                Some(match to {
                    Some(to) => MembershipEvent::LinkLost { by, to },
                    None => MembershipEvent::Unlinked { by },
                })
            }
            _ => None,
        }
    }

    /// What the request that ran on the mesh ends with.
    pub(crate) fn to_error(&self) -> GenerateError {
        match self.retry() {
            Retry::WhenReady => GenerateError::Lost(self.to_string()),
            Retry::AFewTimes | Retry::Never => GenerateError::Failed(self.to_string()),
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

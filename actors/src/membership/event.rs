//! What membership is told, and what it says to do about it.

use std::time::Duration;

use super::{Incarnation, Loss, Member};
use crate::protocol::DeviceId;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipEvent {
    /// A member passed the handshake.
    Joined {
        /// Who.
        member: Member,
        /// Which life of it.
        incarnation: Incarnation,
        /// Where its data plane listens; empty for agents.
        address: String,
    },
    /// A message came from a member.
    Heard {
        /// Who.
        member: Member,
        /// Which life of it.
        incarnation: Incarnation,
    },
    /// A member's session ended.
    SessionClosed {
        /// Who.
        member: Member,
        /// Which life of it.
        incarnation: Incarnation,
        /// Why.
        reason: String,
    },
    /// An agent saw its worker process end.
    WorkerExited {
        /// Which device.
        device: DeviceId,
        /// Incarnation the agent gave to that process.
        incarnation: Incarnation,
        /// `exit status: 1`, `signal: 9 (SIGKILL)`.
        status: String,
    },
    /// A device is heard, but does not end what it computes.
    Hung {
        /// Which.
        device: DeviceId,
        /// What it was given to stop.
        milliseconds: u64,
    },
    /// A node joins the cluster that may not have been in it before, with so many devices.
    Admitted {
        /// Its name.
        node: String,
        /// How many devices it brings.
        devices: usize,
    },
    /// A node is to leave within this time.
    Leave {
        /// Its name.
        node: String,
        /// How long what runs there may take to end.
        drain: Duration,
    },
    /// No mesh uses a device of this node any more.
    Vacated {
        /// Its name.
        node: String,
    },
    /// Somebody says that a node is gone for good.
    ForceLeave {
        /// Its name.
        node: String,
    },
    /// A worker has lost its link to another one.
    LinkLost {
        /// Who says so.
        by: DeviceId,
        /// Whom it lost.
        to: DeviceId,
    },
    /// A worker could not be linked to the members of a mesh.
    Unlinked {
        /// Who says so.
        by: DeviceId,
    },
    /// Time passed.
    Tick,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipCommand {
    /// Welcome the member that just joined.
    Accept(Member, Incarnation),
    /// Turn it away.
    Refuse(Member, Incarnation, Refusal),
    /// Close the session of a member that is no longer one.
    CloseSession(Member, Incarnation, Loss),
    /// A member is overdue.
    Suspect(Member, Duration),
    /// A suspect was heard again.
    Recovered(Member),
    /// A node's agent is there.
    NodeReady(String),
    /// A node's agent is gone.
    NodeLost(String, Loss),
    /// A device can join a mesh.
    DeviceReady(DeviceId),
    /// A device that was ready is gone.
    DeviceLost(DeviceId, Loss),
    /// A device is to be used no more; what runs on it may end.
    DeviceLeaving(DeviceId),
    /// Tell a node that it may end.
    Release(String),
    /// A member flaps: it is not counted on for so long.
    Quarantined(Member, Duration),
    /// Other links count as cut than before.
    CutsChanged,
}

/// Why a member is turned away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not in the manifest.
    #[error("{0} is not in the manifest of this cluster")]
    Unknown(Member),
    /// It was told to go, for good.
    #[error("{0} was forced to leave; `ditmesh token` makes a token with which it can join again")]
    Forced(Member),
    /// Another life of it is newer.
    #[error("{member} offers incarnation {offered}, but incarnation {current} was here already")]
    Stale {
        /// Who.
        member: Member,
        /// What it offered.
        offered: Incarnation,
        /// The newest one seen.
        current: Incarnation,
    },
}

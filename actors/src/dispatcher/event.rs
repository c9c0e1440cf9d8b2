//! What the dispatcher is told, and what it says to do about it.

use std::time::Duration;

use super::{MeshNeed, Need, OpenMeshes, ReplicaId, RequestId, Room, RunNumber};
use crate::generation::GenerateError;
use crate::request::Degrees;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum DispatcherEvent {
    /// A caller wants a picture.
    Submitted {
        /// Its request.
        request: RequestId,
        /// What it needs.
        need: Need,
        /// How long it may wait; `None` as long as it takes, but for a mesh.
        deadline: Option<Duration>,
        /// How much of that it has waited before it came here.
        waited: Duration,
    },
    /// A request, submitted or about to be, is not to be started yet: what it goes on from is on
    /// its way.
    Withheld {
        /// Which.
        request: RequestId,
    },
    /// A request that was withheld can be started.
    Released {
        /// Which.
        request: RequestId,
        /// What it needs, if that is something else by now.
        need: Option<Need>,
    },
    /// The caller does not want it any more.
    Cancelled {
        /// Its request.
        request: RequestId,
    },
    /// A replica of a mesh with these degrees is formed and free.
    ReplicaReady {
        /// Which.
        replica: ReplicaId,
        /// Degrees of the whole mesh.
        degrees: Degrees,
        /// What it takes.
        room: Room,
    },
    /// A run has ended on all its ranks.
    RunEnded {
        /// Which.
        run: RunNumber,
    },
    /// A replica is gone; of the requests it ran those that can go on wait for another one.
    ReplicaLost {
        /// Which.
        replica: ReplicaId,
        /// Requests that go on elsewhere, and what they need there.
        going_on: Vec<(RequestId, Need)>,
        /// Result of the others.
        error: GenerateError,
    },
    /// Requests with open degrees run on these meshes from now on.
    Open(OpenMeshes),
    /// A replica gives way to another mesh: it takes no new run.
    Retired {
        /// Which.
        replica: ReplicaId,
    },
    /// A mesh for this need could not be formed.
    FormFailed {
        /// Which.
        mesh: MeshNeed,
        /// Result of the requests that want it.
        error: GenerateError,
    },
    /// There is no mesh, and this is why.
    MeshAbsent {
        /// For people.
        cause: String,
    },
    /// Time passed.
    Tick,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq)]
pub enum DispatcherCommand {
    /// Tell the caller that `ahead` requests come first.
    Queued {
        /// Its request.
        request: RequestId,
        /// Requests before it, running ones included.
        ahead: u32,
    },
    /// Tell the caller what keeps the first request from a mesh.
    Waits {
        /// Which.
        request: RequestId,
        /// For people.
        cause: String,
    },
    /// Run requests, one or several of one shape.
    Start {
        /// The run's number.
        run: RunNumber,
        /// Which, in order.
        requests: Vec<RequestId>,
        /// Where.
        replica: ReplicaId,
    },
    /// Stop a run whose requests were all cancelled.
    Abort {
        /// Which.
        run: RunNumber,
        /// Where.
        replica: ReplicaId,
    },
    /// Form a mesh for this need; the present one is idle.
    Want {
        /// Which.
        mesh: MeshNeed,
    },
    /// A retired replica has ended its last run.
    Idle {
        /// Which.
        replica: ReplicaId,
    },
    /// End a request without a picture.
    Fail {
        /// Which.
        request: RequestId,
        /// Its result.
        error: GenerateError,
    },
}

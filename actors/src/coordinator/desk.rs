//! The coordinator's desk: the engines that it asks and the books that it keeps, without anything
//! that carries their word out.
//!
//! Owns who is alive, which mesh is formed, which request is next, the requests without a result,
//! the runs they are in and what outlives this life of the coordinator. Knows no actor, no session
//! and no clock, so that the simulation works at the very same desk.
//!
//! Invariants: a run ends once, by its ranks and the controller or by the loss of its mesh; a
//! request is in at most one run, and has one result.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::formation::Formation;
use super::memory::Memory;
use super::progress::Progress;
use super::recovery::open_mesh;
use super::requests::Request;
use super::run::{ControllerFault, Picture, Run, Verdict};
use crate::checkpoint::{Checkpoint, CheckpointStore};
use crate::controller::Inputs;
use crate::dispatcher::{
    Dispatcher, DispatcherEvent, MeshNeed, Need, ReplicaId, RequestId, RunNumber,
};
use crate::generation::{GenerateError, UpdateSink};
use crate::groups::MeshLoss;
use crate::manifest::Manifest;
use crate::membership::{Membership, Now};
use crate::plan::{Plan, PlanError, batch};
use crate::protocol::{DeviceId, RankOutcome, RunSpec, ToCoordinator};
use crate::request::{Degrees, Event, GenerateRequest};

/// The desk.
pub(super) struct Desk {
    pub(super) membership: Membership,
    /// Once the model is known.
    pub(super) formation: Option<Formation>,
    pub(super) dispatcher: Dispatcher,
    pub(super) memory: Memory,
    pub(super) requests: BTreeMap<RequestId, Request>,
    pub(super) runs: BTreeMap<RunNumber, Run>,
    /// The node that the coordinator is on.
    pub(super) host: String,
    /// A coordinator that did not look for so long did not run itself.
    suspect: Duration,
    /// When it last looked whether runs go on.
    looked: Now,
}

/// A run that is about to begin.
pub(super) struct Beginning<'a> {
    pub(super) run: RunNumber,
    pub(super) requests: &'a [RequestId],
    pub(super) replica: ReplicaId,
    /// Degrees of the whole mesh, and which replica this is.
    pub(super) place: (Degrees, u32),
    /// By rank.
    pub(super) devices: Vec<DeviceId>,
    pub(super) plan: Arc<Plan>,
    pub(super) checkpoints: Arc<CheckpointStore>,
    pub(super) progress: Progress,
}

/// What the controller's part of a run is given.
pub(super) struct Begun {
    pub(super) pictures: Vec<Picture>,
    /// Tensors of its own request, where it has some.
    pub(super) inputs: Inputs,
    pub(super) verdict: oneshot::Receiver<Verdict>,
}

/// What a run is whose ranks and controller are all done with it.
pub(super) enum Settled {
    Over,
    /// The controller alone knows that a link is broken: the mesh is to be told.
    Broken {
        replica: ReplicaId,
        cause: String,
    },
    /// Its mesh will be reported lost.
    Lost,
}

impl Desk {
    pub(super) fn new(manifest: &Manifest, memory: Memory) -> Self {
        let health = &manifest.health;
        let wait_ms = health.form_deadline_ms + manifest.launcher.ready_deadline_ms;
        Self {
            membership: memory.membership(manifest),
            formation: None,
            dispatcher: Dispatcher::new(Duration::from_millis(wait_ms.into())),
            memory,
            requests: BTreeMap::new(),
            runs: BTreeMap::new(),
            host: manifest.coordinator_node().to_owned(),
            suspect: Duration::from_millis(health.suspect_ms.into()),
            looked: Now::ZERO,
        }
    }

    /// Books a request that needs `mesh` and `bytes`; what the dispatcher is told of it.
    pub(super) fn take_in(
        &mut self,
        id: RequestId,
        request: GenerateRequest,
        (spec, mesh, bytes): (RunSpec, MeshNeed, u64),
        sink: UpdateSink,
        span: tracing::Span,
    ) -> DispatcherEvent {
        let journey = self.memory.journey_of(id);
        let mesh = if journey.is_under_way() { open_mesh(&spec) } else { mesh };
        let first_step = journey.steps();
        let shape = batch::shape(&RunSpec { first_step, ..spec.clone() });
        let deadline = request.deadline_s.map(|seconds| Duration::from_secs(seconds.into()));
        let waited = self.memory.waited(id);
        self.requests.insert(id, Request::new(request, spec, bytes, journey, sink, span));
        let need = Need { mesh, bytes, shape };
        DispatcherEvent::Submitted { request: id, need, deadline, waited }
    }

    /// The run of several requests of one shape, and where it goes on; `spec` says what a request
    /// is on the mesh, `plan` plans there.
    pub(super) fn plan_run(
        &self,
        requests: &[RequestId],
        spec: impl Fn(&Request) -> Result<RunSpec, PlanError>,
        plan: impl Fn(&RunSpec) -> Result<Plan, PlanError>,
    ) -> Result<(Plan, Option<Arc<Checkpoint>>), PlanError> {
        let requests_here = requests.iter().filter_map(|id| self.requests.get(id));
        let specs: Vec<RunSpec> = requests_here.map(spec).collect::<Result<_, _>>()?;
        let spec = batch::join(&specs)
            .ok_or_else(|| PlanError::Value("none of its requests is left".into()))?;
        if let Some(resume) = self.resume_of(requests) {
            let first_step = resume.step as u32 + 1;
            let plan = plan(&RunSpec { first_step, ..spec.clone() })?;
            let expected = plan.resume_message().map(|message| message.shape);
            if expected.as_ref() == Some(&resume.state.shape) {
                return Ok((plan, Some(resume)));
            }
            tracing::warn!(?expected, found = ?resume.state.shape, "a checkpoint does not fit");
        }
        Ok((plan(&spec)?, None))
    }

    /// A run begins.
    pub(super) fn begin(&mut self, beginning: Beginning) -> Begun {
        let Beginning { run, requests, replica, place, devices, plan, checkpoints, progress } =
            beginning;
        // A request with tensors of its own is alone.
        let (mut images, mut pictures, mut inputs) = (Vec::new(), Vec::new(), Inputs::default());
        for &id in requests {
            let Some(request) = self.requests.get_mut(&id) else { continue };
            for warning in &plan.warnings {
                request.sink.event(Event::Warning(warning.clone()));
            }
            request.run = Some(run);
            if request.journey.since.is_none() {
                self.memory.note_begun(id);
            }
            let sink = request.sink.clone();
            if let Some(event) = request.journey.start(&plan, devices.len()) {
                sink.event(event);
            }
            let since = request.journey.since.unwrap_or_else(Instant::now);
            let resumptions = request.journey.resumptions.clone();
            pictures.push(Picture { sink: sink.clone(), since, resumptions });
            inputs = request.inputs.clone();
            images.push((id, sink));
        }
        let (verdict, awaited) = oneshot::channel();
        let of_run = Run::new(images, replica, plan, devices, place, checkpoints, verdict);
        self.runs.insert(run, of_run.watched(progress));
        Begun { pictures, inputs, verdict: awaited }
    }

    /// The mesh that a worker's message is about.
    pub(super) fn mesh_of(&mut self, message: &ToCoordinator) -> Option<ReplicaId> {
        match message {
            ToCoordinator::Formed { epoch, .. } | ToCoordinator::FormFailed { epoch, .. } => {
                Some(*epoch)
            }
            ToCoordinator::Proposed { run, .. } | ToCoordinator::Progress { run, .. } => {
                self.runs.get(run).map(|run| run.replica)
            }
            ToCoordinator::RunEnded { run, rank, .. } => {
                let run = self.runs.get_mut(run)?;
                run.rank_ended(*rank);
                Some(run.replica)
            }
            _ => None,
        }
    }

    /// Ends a request without a picture, and its run when that was the last one in it.
    pub(super) fn fail(&mut self, id: RequestId, error: GenerateError) {
        let Some(request) = self.requests.remove(&id) else { return };
        self.memory.forget(id);
        if let Some(run) = request.run.and_then(|run| self.runs.get_mut(&run))
            && run.leave(id) == 0
        {
            return run.decide(Verdict::Failed(error));
        }
        request.sink.result(Err(error));
    }

    /// A rank tells of its run.
    pub(super) fn progress(&mut self, now: Now, number: RunNumber, event: &Event) {
        let Some(run) = self.runs.get_mut(&number) else { return };
        match *event {
            Event::Step { step, of } => run.step_done(now, step, of),
            Event::Encoded => {
                run.encoded(now);
                let (replica, resumed) = (run.replica, run.is_resumed());
                self.held_up(now, replica);
                if resumed {
                    // Once is enough.
                    return;
                }
            }
            _ => {}
        }
        let Some(run) = self.runs.get(&number) else { return };
        run.images.iter().for_each(|(_, sink)| sink.event(event.clone()));
    }

    /// A run has done what others on its mesh may have waited for: they had no time meanwhile.
    fn held_up(&mut self, now: Now, replica: ReplicaId) {
        let runs = self.runs.values_mut().filter(|run| run.replica == replica);
        runs.for_each(|run| run.excuse(now));
    }

    /// Looks which runs do not go on, where, and why that is thought; each is named once.
    pub(super) fn stalls(&mut self, now: Now) -> Vec<(RunNumber, ReplicaId, String)> {
        let before = std::mem::replace(&mut self.looked, now);
        let slept = now.saturating_sub(before) > self.suspect;
        let mut held_up: BTreeMap<ReplicaId, Duration> = BTreeMap::new();
        for run in self.runs.values() {
            let longest = held_up.entry(run.replica).or_default();
            *longest = run.holds_up().unwrap_or_default().max(*longest);
        }
        let stalls = self.runs.iter_mut().filter_map(|(&number, run)| {
            let held_up = held_up.get(&run.replica).copied().unwrap_or_default();
            let cause = run.stalls(now, slept, held_up)?;
            tracing::warn!(run = number, cause, "a run does not go on");
            Some((number, run.replica, cause))
        });
        stalls.collect()
    }

    /// A rank failed; its mesh is stopping the others. When it lost a peer, membership or the
    /// others may know more: the request then waits for the end of the run or of the mesh.
    pub(super) fn rank_failed(
        &mut self,
        run: RunNumber,
        rank: u32,
        cause: &str,
        peer: Option<u32>,
    ) {
        let Some(run) = self.runs.get(&run) else { return };
        tracing::warn!(rank, cause, ?peer, "a rank failed");
        if peer.is_none() {
            let error = run.rank_failure(rank, cause, peer);
            let requests: Vec<RequestId> = run.images.iter().map(|(id, _)| *id).collect();
            requests.into_iter().for_each(|id| self.fail(id, error.clone()));
        }
    }

    /// All ranks have ended a run.
    pub(super) fn ranks_ended(&mut self, number: RunNumber, outcomes: Vec<(u32, RankOutcome)>) {
        if let Some(run) = self.runs.get_mut(&number) {
            run.ranks_ended(outcomes);
        }
    }

    /// The controller's part of a run is over; where it was, if the run is known.
    pub(super) fn controller_ended(
        &mut self,
        number: RunNumber,
        outcome: Result<(), ControllerFault>,
    ) -> Option<ReplicaId> {
        let run = self.runs.get_mut(&number)?;
        run.controller_ended(outcome);
        Some(run.replica)
    }

    /// Ends a run when both its ranks and the controller are done with it; one whose links failed
    /// is ended by the loss of its mesh. `None` while somebody is at it.
    pub(super) fn settle(&mut self, now: Now, number: RunNumber) -> Option<Settled> {
        let run = self.runs.get(&number).filter(|run| run.is_over())?;
        if run.is_lost() {
            let replica = run.replica;
            let broken = run.controller_loss().map(|cause| Settled::Broken { replica, cause });
            return Some(broken.unwrap_or(Settled::Lost));
        }
        let mut run = self.runs.remove(&number)?;
        for (id, _) in &run.images {
            self.requests.remove(id);
            self.memory.forget(*id);
        }
        run.conclude();
        self.held_up(now, run.replica);
        Some(Settled::Over)
    }

    /// Devices that are known by their not stopping, where a mesh is lost for that.
    pub(super) fn stuck(&self, loss: &MeshLoss) -> Vec<DeviceId> {
        match loss {
            MeshLoss::Stuck { run, .. } => {
                self.runs.get(run).map(Run::not_ended).unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }

    /// Nodes that drain and whose devices no mesh uses any more.
    pub(super) fn vacated(&self) -> Vec<String> {
        let formation = self.formation.as_ref();
        let used = |device: &DeviceId| formation.is_some_and(|f| f.is_used(device));
        let mut draining = self.membership.draining();
        draining.retain(|node| !self.membership.devices_of(node).iter().any(used));
        draining
    }
}

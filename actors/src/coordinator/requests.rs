//! Requests from submission to result.
//!
//! Owns the table of requests and what each is told. The order in which they run is the
//! dispatcher's; the run itself is in `run`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::ActorRef;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::formation::Formation;
use super::model::Model;
use super::progress::{Progress, StepLimit};
use super::recovery::{Journey, open_mesh};
use super::replicas::Replica;
use super::run::{self, ControllerFault, Picture, Run, Verdict};
use super::{CoordinatorMsg, State};
use crate::checkpoint::Checkpoint;
use crate::controller::Inputs;
use crate::dispatcher::{
    DispatcherEvent, MeshNeed, Need, QUEUE_REQUESTS_MAX, RequestId, RunNumber,
};
use crate::generation::{GenerateError, UpdateSink};
use crate::groups::ReplicaMsg;
use crate::plan::resolve::{check_degrees, resolve_at};
use crate::plan::{Plan, PlanError, batch};
use crate::protocol::{RankOutcome, RunSpec, Start};
use crate::request::{Degrees, Event, GenerateRequest};
use crate::trace_context;

/// A request that has no result yet.
pub(super) struct Request {
    pub(super) sink: UpdateSink,
    pub(super) spec: RunSpec,
    /// Without its tensors: it is resolved again for the mesh it runs on.
    request: Box<GenerateRequest>,
    inputs: Inputs,
    /// What a run of it holds on the device where that is most; 0 when nobody counts.
    pub(super) bytes: u64,
    pub(super) run: Option<u64>,
    pub(super) journey: Journey,
    /// From its submission to its result.
    span: tracing::Span,
}

impl Request {
    /// Whether it runs on whatever mesh there is.
    pub(super) fn is_open(&self) -> bool {
        self.request.degrees.is_none()
    }
}

impl State {
    /// Checks a request and queues it.
    pub(super) async fn submit(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        id: RequestId,
        mut request: GenerateRequest,
        sink: UpdateSink,
    ) {
        let model = match &self.model {
            None if self.early.len() < QUEUE_REQUESTS_MAX => {
                return self.early.push((id, request, sink));
            }
            None => {
                self.memory.forget(id);
                return sink.result(Err(GenerateError::Failed("too many requests".into())));
            }
            Some(Err(error)) => {
                self.memory.forget(id);
                return sink.result(Err(error.clone()));
            }
            Some(Ok(model)) => model,
        };
        let span = tracing::info_span!("request", request = id.cast_signed());
        trace_context::adopt(&span, request.traceparent.as_deref());
        match self.plan_request(model, &request) {
            Err(refusal) => {
                self.memory.forget(id);
                sink.result(Err(GenerateError::Refused(refusal)));
            }
            Ok((spec, degrees, mesh)) => {
                let bytes = self.run_bytes(&spec, degrees);
                let inputs = Inputs {
                    latents: request.latents.take().map(Arc::new),
                    prompt_embeds: request.prompt_embeds.take().map(Arc::new),
                    resume: None,
                    checkpoints: None,
                };
                let journey = self.memory.journey_of(id);
                let mesh = if journey.is_under_way() { open_mesh(&spec) } else { mesh };
                let first_step = journey.steps();
                let shape = batch::shape(&RunSpec { first_step, ..spec.clone() });
                let need = Need { mesh, bytes, shape };
                let deadline =
                    request.deadline_s.map(|seconds| Duration::from_secs(seconds.into()));
                let waited = self.memory.waited(id);
                let (request, run) = (Box::new(request), None);
                let request = Request { sink, spec, request, inputs, bytes, run, journey, span };
                self.requests.insert(id, request);
                let submitted = DispatcherEvent::Submitted { request: id, need, deadline, waited };
                self.dispatch(myself, submitted).await;
            }
        }
    }

    /// Starts a request on a replica; false when there is nothing to run.
    pub(super) fn start_run(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        number: RunNumber,
        requests: &[RequestId],
        epoch: u64,
    ) -> bool {
        let Some(Ok(model)) = &self.model else { return false };
        let replica = self.replicas.get(&epoch);
        let transport = replica.and_then(|replica| replica.transport.clone());
        let (Some(replica), Some(transport)) = (replica, transport) else {
            let error = GenerateError::Lost("its mesh is gone".into());
            requests.iter().for_each(|&id| self.fail_request(id, error.clone()));
            return false;
        };
        let (plan, resume) = match self.plan_run(model, replica, requests) {
            Ok((plan, resume)) => (Arc::new(plan), resume),
            Err(error) => {
                let error = GenerateError::Refused(error.to_string());
                requests.iter().for_each(|&id| self.fail_request(id, error.clone()));
                return false;
            }
        };
        let span = self.run_span(requests, number, epoch);
        let start = Start {
            epoch,
            run: number,
            spec: plan.run.clone(),
            propose: false,
            plan_digest: plan.digest(),
            op_deadline_ms: self.manifest.health.op_deadline_ms,
            traceparent: trace_context::of(&span),
        };
        // A replica that has ended is reported lost, and this run with it.
        let _ = replica.actor.cast(ReplicaMsg::Start(Arc::new(start)));
        let (devices, place) = (replica.devices.clone(), (replica.mesh, replica.data));
        let planned = model.planned(replica.step, &plan.run, replica.degrees, &replica.devices);
        let checkpoints = Arc::new(self.memory.store_for(requests, myself));
        // A request with tensors of its own is alone.
        let (mut images, mut pictures, mut inputs) = (Vec::new(), Vec::new(), Inputs::default());
        for &id in requests {
            let Some(request) = self.requests.get_mut(&id) else { continue };
            for warning in &plan.warnings {
                request.sink.event(Event::Warning(warning.clone()));
            }
            request.run = Some(number);
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
        let checkpoints_taken = Some(checkpoints.clone());
        let inputs = Inputs { resume, checkpoints: checkpoints_taken, ..inputs };
        let (verdict, awaited) = oneshot::channel();
        let task = run::Task {
            run: number,
            epoch,
            plan: plan.clone(),
            transport,
            inputs,
            pictures,
            verdict: awaited,
            coordinator: myself.clone(),
        };
        tokio::spawn(task.carry_out().instrument(span));
        let limit = StepLimit::of(&self.manifest.health);
        let progress = Progress::new(limit, planned, self.now());
        let run = Run::new(images, epoch, plan, devices, place, checkpoints, verdict);
        let run = run.watched(progress);
        self.runs.insert(number, run);
        true
    }

    /// The run of several requests of one shape on a replica, and where it goes on.
    fn plan_run(
        &self,
        model: &Model,
        replica: &Replica,
        requests: &[RequestId],
    ) -> Result<(Plan, Option<Arc<Checkpoint>>), PlanError> {
        let mut specs = Vec::with_capacity(requests.len());
        for request in requests.iter().filter_map(|id| self.requests.get(id)) {
            let patches = replica.num_pipeline_patch;
            let here = resolve_on(&request.request, model, replica.degrees, patches)?;
            let RunSpec { latents_given, embeds_tokens, .. } = request.spec;
            specs.push(RunSpec { latents_given, embeds_tokens, ..here });
        }
        let spec = batch::join(&specs)
            .ok_or_else(|| PlanError::Value("none of its requests is left".into()))?;
        let resume = self.resume_of(requests);
        let plan = |spec: &RunSpec| {
            let (degrees, layout) = (replica.degrees, replica.layout.clone());
            Plan::with_layout(degrees, layout, &model.spec, spec)
        };
        if let Some(resume) = resume {
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

    /// What a request asks for, with every default filled in, and the mesh it needs. Open degrees
    /// are filled in with those of the mesh of the moment, of one device before there is a mesh.
    fn plan_request(
        &self,
        model: &Model,
        request: &GenerateRequest,
    ) -> Result<(RunSpec, Degrees, MeshNeed), String> {
        let guided = request.is_guided();
        if let Some(degrees) = request.degrees {
            let known = self.formation.as_ref().map_or(0, Formation::known);
            check_degrees(&model.spec, degrees, known).map_err(|error| error.to_string())?;
            let spec = resolve_on(request, model, degrees, None).map_err(|e| e.to_string())?;
            return Ok((spec, degrees, MeshNeed::Exactly(degrees)));
        }
        let plan = self.formation.as_ref().and_then(|formation| formation.plan_for(guided));
        let (degrees, patches) = plan.map_or_else(
            || (model.fixed(guided).unwrap_or_default(), None),
            |plan| (plan.degrees, plan.num_pipeline_patch),
        );
        let spec =
            resolve_on(request, model, degrees, patches).map_err(|error| error.to_string())?;
        Ok((spec, degrees, MeshNeed::Open { guided }))
    }

    /// The span of a run, below that of its first request.
    fn run_span(&self, requests: &[RequestId], run: RunNumber, epoch: u64) -> tracing::Span {
        let first = requests.first().and_then(|id| self.requests.get(id));
        let parent = first.map_or_else(tracing::Span::none, |request| request.span.clone());
        let (run, epoch) = (run.cast_signed(), epoch.cast_signed());
        tracing::info_span!(parent: &parent, "run", run, epoch)
    }

    /// Stops a run that nobody wants any more.
    pub(super) fn abort_run(&mut self, run: RunNumber, epoch: u64) {
        if let Some(replica) = self.replicas.get(&epoch) {
            let cause = "its caller cancelled it".into();
            // A replica that has ended has stopped its run.
            let _ = replica.actor.cast(ReplicaMsg::Abort { run, cause });
        }
    }

    /// Ends a request without a picture, and its run when that was the last one in it.
    pub(super) fn fail_request(&mut self, id: RequestId, error: GenerateError) {
        let Some(request) = self.requests.remove(&id) else { return };
        self.memory.forget(id);
        if let Some(run) = request.run.and_then(|run| self.runs.get_mut(&run))
            && run.leave(id) == 0
        {
            return run.decide(Verdict::Failed(error));
        }
        request.sink.result(Err(error));
    }

    /// Ends all requests.
    pub(super) fn fail_all(&mut self, cause: &str) {
        self.withdraw_all(&GenerateError::Lost(cause.into()));
        for (_, _, sink) in std::mem::take(&mut self.early) {
            sink.result(Err(GenerateError::Lost(cause.into())));
        }
        let ids: Vec<RequestId> = self.requests.keys().copied().collect();
        for id in ids {
            self.fail_request(id, GenerateError::Lost(cause.into()));
        }
    }

    pub(super) fn progress(&mut self, number: u64, event: Event) {
        let now = self.now();
        let Some(run) = self.runs.get_mut(&number) else { return };
        match event {
            Event::Step { step, of } => run.step_done(now, step, of),
            Event::Encoded => {
                run.encoded(now);
                let (replica, resumed) = (run.replica, run.is_resumed());
                self.held_up(replica);
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
    fn held_up(&mut self, replica: u64) {
        let now = self.now();
        let runs = self.runs.values_mut().filter(|run| run.replica == replica);
        runs.for_each(|run| run.excuse(now));
    }

    /// Looks which runs do not go on; their meshes are given up.
    pub(super) fn watch_progress(&mut self) {
        let (now, suspect) = (self.now(), u64::from(self.manifest.health.suspect_ms));
        let before = std::mem::replace(&mut self.looked, now);
        let slept = now.saturating_sub(before) > Duration::from_millis(suspect);
        let mut held_up: BTreeMap<u64, Duration> = BTreeMap::new();
        for run in self.runs.values() {
            let longest = held_up.entry(run.replica).or_default();
            *longest = run.holds_up().unwrap_or_default().max(*longest);
        }
        for (&number, run) in &mut self.runs {
            let held_up = held_up.get(&run.replica).copied().unwrap_or_default();
            let Some(cause) = run.stalls(now, slept, held_up) else { continue };
            tracing::warn!(run = number, cause, "a run does not go on");
            if let Some(replica) = self.replicas.get(&run.replica) {
                // One that has ended has stopped its run.
                let _ = replica.actor.cast(ReplicaMsg::Stalled { run: number, cause });
            }
        }
    }

    /// A rank failed; its replica is stopping the others. When it lost a peer, membership or the
    /// others may know more: the request then waits for the end of the run or of the mesh.
    pub(super) fn rank_failed(&mut self, run: u64, rank: u32, cause: &str, peer: Option<u32>) {
        let Some(run) = self.runs.get(&run) else { return };
        tracing::warn!(rank, cause, ?peer, "a rank failed");
        if peer.is_none() {
            let error = run.rank_failure(rank, cause, peer);
            let requests: Vec<RequestId> = run.images.iter().map(|(id, _)| *id).collect();
            requests.into_iter().for_each(|id| self.fail_request(id, error.clone()));
        }
    }

    /// All ranks have ended a run.
    pub(super) async fn ranks_ended(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        number: u64,
        outcomes: Vec<(u32, RankOutcome)>,
    ) {
        let Some(run) = self.runs.get_mut(&number) else { return };
        run.ranks_ended(outcomes);
        self.settle(myself, number).await;
    }

    /// The controller's part of a run is over. When it failed the ranks are stopped, and what they
    /// say decides.
    pub(super) async fn controller_done(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        number: u64,
        outcome: Result<(), ControllerFault>,
    ) {
        let Some(run) = self.runs.get_mut(&number) else { return };
        let epoch = run.replica;
        if let (Err(fault), Some(replica)) = (&outcome, self.replicas.get(&epoch)) {
            let cause = format!("the coordinator failed: {fault}");
            // A replica that has ended has stopped its run.
            let _ = replica.actor.cast(ReplicaMsg::Abort { run: number, cause });
        }
        run.controller_ended(outcome);
        self.settle(myself, number).await;
    }

    /// Ends a run when both its ranks and the controller are done with it; one whose links failed
    /// is ended by the loss of its mesh.
    async fn settle(&mut self, myself: &ActorRef<CoordinatorMsg>, number: u64) {
        let Some(run) = self.runs.get(&number).filter(|run| run.is_over()) else { return };
        if run.is_lost() {
            // Its replica reports the loss; a link that only the controller misses it hears of
            // here.
            if let (Some(cause), Some(replica)) =
                (run.controller_loss(), self.replicas.get(&run.replica))
            {
                // One that has ended is lost already.
                let _ = replica.actor.cast(ReplicaMsg::ControllerFailed { cause });
            }
            return;
        }
        let Some(mut run) = self.runs.remove(&number) else { return };
        for (id, _) in &run.images {
            self.requests.remove(id);
            self.memory.forget(*id);
        }
        run.conclude();
        self.held_up(run.replica);
        self.dispatch(myself, DispatcherEvent::RunEnded { run: number }).await;
    }
}

/// A request on a mesh of `degrees`, with the plan's number of patches where it leaves that open.
fn resolve_on(
    request: &GenerateRequest,
    model: &Model,
    degrees: Degrees,
    patches: Option<u32>,
) -> Result<RunSpec, PlanError> {
    let num_pipeline_patch = request.num_pipeline_patch.or(patches);
    let wire = request.wire.or(Some(model.wire));
    let checkpoint_every = request.checkpoint_every.or(Some(model.checkpoint_every));
    let request = GenerateRequest { num_pipeline_patch, wire, checkpoint_every, ..request.clone() };
    resolve_at(&request, &model.spec, degrees, &model.pace(degrees))
}

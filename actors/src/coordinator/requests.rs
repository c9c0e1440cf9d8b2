//! Requests from submission to the start of their runs.
//!
//! Owns what a request asks for on the mesh that it runs on. The books are the desk's, the order in
//! which requests run is the dispatcher's; the run itself is in `run`.

use std::sync::Arc;

use ractor::ActorRef;
use tracing::Instrument;

use super::desk::{Beginning, Begun};
use super::formation::Formation;
use super::model::Model;
use super::progress::{Progress, StepLimit};
use super::recovery::Journey;
use super::replicas::Replica;
use super::run;
use super::{CoordinatorMsg, State};
use crate::checkpoint::Checkpoint;
use crate::controller::Inputs;
use crate::dispatcher::{MeshNeed, QUEUE_REQUESTS_MAX, RequestId, RunNumber};
use crate::generation::{GenerateError, UpdateSink};
use crate::groups::ReplicaMsg;
use crate::plan::resolve::{check_degrees, resolve_at};
use crate::plan::{Plan, PlanError};
use crate::protocol::{RunSpec, Start};
use crate::request::{Degrees, GenerateRequest};
use crate::trace_context;

/// A request that has no result yet.
pub(super) struct Request {
    pub(super) sink: UpdateSink,
    pub(super) spec: RunSpec,
    /// Without its tensors: it is resolved again for the mesh it runs on.
    request: Box<GenerateRequest>,
    pub(super) inputs: Inputs,
    /// What a run of it holds on the device where that is most; 0 when nobody counts.
    pub(super) bytes: u64,
    pub(super) run: Option<u64>,
    pub(super) journey: Journey,
    /// From its submission to its result.
    span: tracing::Span,
}

impl Request {
    /// Of what was asked, with the tensors that came along.
    pub(super) fn new(
        mut request: GenerateRequest,
        spec: RunSpec,
        bytes: u64,
        journey: Journey,
        sink: UpdateSink,
        span: tracing::Span,
    ) -> Self {
        let inputs = Inputs {
            latents: request.latents.take().map(Arc::new),
            prompt_embeds: request.prompt_embeds.take().map(Arc::new),
            ..Inputs::default()
        };
        Self { sink, spec, request: Box::new(request), inputs, bytes, run: None, journey, span }
    }

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
        request: GenerateRequest,
        sink: UpdateSink,
    ) {
        let model = match &self.model {
            None if self.early.len() < QUEUE_REQUESTS_MAX => {
                return self.early.push((id, request, sink));
            }
            None => {
                self.desk.memory.forget(id);
                return sink.result(Err(GenerateError::Failed("too many requests".into())));
            }
            Some(Err(error)) => {
                self.desk.memory.forget(id);
                return sink.result(Err(error.clone()));
            }
            Some(Ok(model)) => model,
        };
        let span = tracing::info_span!("request", request = id.cast_signed());
        trace_context::adopt(&span, request.traceparent.as_deref());
        match self.plan_request(model, &request) {
            Err(refusal) => {
                self.desk.memory.forget(id);
                sink.result(Err(GenerateError::Refused(refusal)));
            }
            Ok((spec, degrees, mesh)) => {
                let bytes = self.run_bytes(&spec, degrees);
                let asked = (spec, mesh, bytes);
                let submitted = self.desk.take_in(id, request, asked, sink, span);
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
            requests.iter().for_each(|&id| self.desk.fail(id, error.clone()));
            return false;
        };
        let (plan, resume) = match self.plan_run(model, replica, requests) {
            Ok((plan, resume)) => (Arc::new(plan), resume),
            Err(error) => {
                let error = GenerateError::Refused(error.to_string());
                requests.iter().for_each(|&id| self.desk.fail(id, error.clone()));
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
        let coordinator = myself.clone();
        let checkpoints = Arc::new(self.desk.memory.store_for(requests, move |key| {
            // A coordinator that has ended hands nothing on.
            let _ = coordinator.cast(CoordinatorMsg::Checkpointed(key));
        }));
        let limit = StepLimit::of(&self.manifest.health);
        let progress = Progress::new(limit, planned, self.now());
        let Begun { pictures, inputs, verdict } = self.desk.begin(Beginning {
            run: number,
            requests,
            replica: epoch,
            place,
            devices,
            plan: plan.clone(),
            checkpoints: checkpoints.clone(),
            progress,
        });
        let inputs = Inputs { resume, checkpoints: Some(checkpoints), ..inputs };
        let task = run::Task {
            run: number,
            epoch,
            plan,
            transport,
            inputs,
            pictures,
            verdict,
            coordinator: myself.clone(),
        };
        tokio::spawn(task.carry_out().instrument(span));
        true
    }

    /// The run of several requests of one shape on a replica, and where it goes on.
    fn plan_run(
        &self,
        model: &Model,
        replica: &Replica,
        requests: &[RequestId],
    ) -> Result<(Plan, Option<Arc<Checkpoint>>), PlanError> {
        let spec = |request: &Request| {
            let patches = replica.num_pipeline_patch;
            let here = resolve_on(&request.request, model, replica.degrees, patches)?;
            let RunSpec { latents_given, embeds_tokens, .. } = request.spec;
            Ok(RunSpec { latents_given, embeds_tokens, ..here })
        };
        let plan = |spec: &RunSpec| {
            let (degrees, layout) = (replica.degrees, replica.layout.clone());
            Plan::with_layout(degrees, layout, &model.spec, spec)
        };
        self.desk.plan_run(requests, spec, plan)
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
            let known = self.desk.formation.as_ref().map_or(0, Formation::known);
            check_degrees(&model.spec, degrees, known).map_err(|error| error.to_string())?;
            let spec = resolve_on(request, model, degrees, None).map_err(|e| e.to_string())?;
            return Ok((spec, degrees, MeshNeed::Exactly(degrees)));
        }
        let plan = self.desk.formation.as_ref().and_then(|formation| formation.plan_for(guided));
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
        let first = requests.first().and_then(|id| self.desk.requests.get(id));
        let parent = first.map_or_else(tracing::Span::none, |request| request.span.clone());
        let (run, epoch) = (run.cast_signed(), epoch.cast_signed());
        tracing::info_span!(parent: &parent, "run", run, epoch)
    }

    /// Ends all requests.
    pub(super) fn fail_all(&mut self, cause: &str) {
        self.withdraw_all(&GenerateError::Lost(cause.into()));
        for (_, _, sink) in std::mem::take(&mut self.early) {
            sink.result(Err(GenerateError::Lost(cause.into())));
        }
        let ids: Vec<RequestId> = self.desk.requests.keys().copied().collect();
        for id in ids {
            self.desk.fail(id, GenerateError::Lost(cause.into()));
        }
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

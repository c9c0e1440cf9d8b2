//! Requests from submission to result.
//!
//! Owns the table of requests and what each is told. The order in which they run is the
//! dispatcher's; the run itself is in `run`.

use std::sync::Arc;

use ractor::ActorRef;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::model::Model;
use super::run::{self, Run};
use super::{CoordinatorMsg, State};
use crate::controller::Inputs;
use crate::dispatcher::{DispatcherEvent, Need, QUEUE_REQUESTS_MAX, RequestId, RunNumber};
use crate::generation::{GenerateError, UpdateSink};
use crate::groups::ReplicaMsg;
use crate::plan::Plan;
use crate::plan::resolve::{check_degrees, resolve};
use crate::protocol::{RankOutcome, RunSpec, Start};
use crate::request::{Degrees, Event, GenerateRequest};
use crate::trace_context;

/// A request that has no result yet.
pub(super) struct Request {
    pub(super) sink: UpdateSink,
    spec: RunSpec,
    inputs: Inputs,
    run: Option<u64>,
    /// From its submission to its result.
    span: tracing::Span,
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
            None => return sink.result(Err(GenerateError::Failed("too many requests".into()))),
            Some(Err(error)) => return sink.result(Err(error.clone())),
            Some(Ok(model)) => model,
        };
        let span = tracing::info_span!("request", request = id.cast_signed());
        trace_context::adopt(&span, request.traceparent.as_deref());
        match plan_request(model, &request) {
            Err(refusal) => sink.result(Err(GenerateError::Refused(refusal))),
            Ok((spec, degrees)) => {
                let bytes = self.run_bytes(&spec, degrees);
                let inputs = Inputs {
                    latents: request.latents.take(),
                    prompt_embeds: request.prompt_embeds.take(),
                    checkpoints: None,
                };
                self.requests.insert(id, Request { sink, spec, inputs, run: None, span });
                let need = Need { degrees, bytes, shape: None };
                let submitted = DispatcherEvent::Submitted { request: id, need };
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
        let Some(&id) = requests.first() else { return false };
        let Some(Ok(model)) = &self.model else { return false };
        let replica = self.replicas.get(&epoch);
        let transport = replica.and_then(|replica| replica.transport.clone());
        let (Some(replica), Some(transport)) = (replica, transport) else {
            self.fail_request(id, GenerateError::Lost("its mesh is gone".into()));
            return false;
        };
        let Some(request) = self.requests.get_mut(&id) else { return false };
        let plan = match Plan::new(replica.degrees, &model.spec, &request.spec) {
            Ok(plan) => Arc::new(plan),
            Err(error) => {
                self.fail_request(id, GenerateError::Refused(error.to_string()));
                return false;
            }
        };
        for warning in &plan.warnings {
            request.sink.event(Event::Warning(warning.clone()));
        }
        request.run = Some(number);
        let span = tracing::info_span!(
            parent: &request.span,
            "run",
            run = number.cast_signed(),
            epoch = epoch.cast_signed(),
        );
        let start = Start {
            epoch,
            run: number,
            spec: request.spec.clone(),
            propose: false,
            plan_digest: plan.digest(),
            op_deadline_ms: self.manifest.health.op_deadline_ms,
            traceparent: trace_context::of(&span),
        };
        // A replica that has ended is reported lost, and this run with it.
        let _ = replica.actor.cast(ReplicaMsg::Start(Arc::new(start)));
        let (verdict, awaited) = oneshot::channel();
        let task = run::Task {
            run: number,
            epoch,
            plan: plan.clone(),
            transport,
            inputs: std::mem::take(&mut request.inputs),
            sink: request.sink.clone(),
            verdict: awaited,
            coordinator: myself.clone(),
        };
        tokio::spawn(task.carry_out().instrument(span));
        let sink = request.sink.clone();
        let devices = replica.devices.clone();
        let place = (replica.mesh, replica.data);
        let run = Run::new(id, epoch, plan, devices, place, sink, verdict);
        self.runs.insert(number, run);
        true
    }

    /// Stops a run that nobody wants any more.
    pub(super) fn abort_run(&mut self, run: RunNumber, epoch: u64) {
        if let Some(replica) = self.replicas.get(&epoch) {
            let cause = "its caller cancelled it".into();
            // A replica that has ended has stopped its run.
            let _ = replica.actor.cast(ReplicaMsg::Abort { run, cause });
        }
    }

    /// Ends a request without a picture.
    pub(super) fn fail_request(&mut self, id: RequestId, error: GenerateError) {
        let Some(request) = self.requests.remove(&id) else { return };
        match request.run.and_then(|run| self.runs.get_mut(&run)) {
            Some(run) => run.decide(Err(error)),
            None => request.sink.result(Err(error)),
        }
    }

    /// Ends all requests.
    pub(super) fn fail_all(&mut self, cause: &str) {
        for (_, _, sink) in std::mem::take(&mut self.early) {
            sink.result(Err(GenerateError::Lost(cause.into())));
        }
        let ids: Vec<RequestId> = self.requests.keys().copied().collect();
        for id in ids {
            self.fail_request(id, GenerateError::Lost(cause.into()));
        }
    }

    pub(super) fn progress(&mut self, run: u64, event: Event) {
        if let Some(run) = self.runs.get(&run) {
            run.sink.event(event);
        }
    }

    /// A rank failed; its replica is stopping the others. When it lost a peer, membership or the
    /// others may know more: the request then waits for the end of the run or of the mesh.
    pub(super) fn rank_failed(&mut self, run: u64, rank: u32, cause: &str, peer: Option<u32>) {
        let Some(run) = self.runs.get(&run) else { return };
        tracing::warn!(rank, cause, ?peer, "a rank failed");
        if peer.is_none() {
            let (request, error) = (run.request, run.rank_failure(rank, cause, peer));
            self.fail_request(request, error);
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
        outcome: Result<(), String>,
    ) {
        let Some(run) = self.runs.get_mut(&number) else { return };
        let epoch = run.replica;
        if let (Err(cause), Some(replica)) = (&outcome, self.replicas.get(&epoch)) {
            let cause = format!("the coordinator failed: {cause}");
            // A replica that has ended has stopped its run.
            let _ = replica.actor.cast(ReplicaMsg::Abort { run: number, cause });
        }
        run.controller_ended(outcome);
        self.settle(myself, number).await;
    }

    /// Ends a run when both its ranks and the controller are done with it.
    async fn settle(&mut self, myself: &ActorRef<CoordinatorMsg>, number: u64) {
        if !self.runs.get(&number).is_some_and(Run::is_over) {
            return;
        }
        let Some(mut run) = self.runs.remove(&number) else { return };
        self.requests.remove(&run.request);
        run.conclude();
        self.dispatch(myself, DispatcherEvent::RunEnded { run: number }).await;
    }
}

/// What a request asks for, with every default filled in, and the mesh it needs.
fn plan_request(model: &Model, request: &GenerateRequest) -> Result<(RunSpec, Degrees), String> {
    let degrees = request.degrees.unwrap_or_else(|| model.degrees(request.is_guided()));
    check_degrees(&model.spec, degrees, model.devices.len()).map_err(|error| error.to_string())?;
    let spec = resolve(request, &model.spec, degrees).map_err(|error| error.to_string())?;
    Ok((spec, degrees))
}

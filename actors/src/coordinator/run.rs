//! One run: the coordinator's record of it, and the task that takes the result from the data plane
//! to the caller without passing through a mailbox.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_transport::ids::{Epoch, PeerId, RunId};
use ditmesh_transport::link::Transport;
use ractor::ActorRef;
use tokio::sync::oneshot;

use super::CoordinatorMsg;
use super::progress::Progress;
use crate::checkpoint::{Checkpoint, CheckpointStore};
use crate::controller::{self, Inputs};
use crate::dispatcher::RequestId;
use crate::generation::{GenerateError, UpdateSink};
use crate::membership::Now;
use crate::plan::Plan;
use crate::protocol::{DeviceId, RankOutcome};
use crate::request::wire::traffic_of;
use crate::request::{Degrees, Generation, Output, RankReport, Report, Resumption};
use crate::staleness::mean_kv_change;

/// Longest run; what bounds it in practice is the deadline of each wait in it.
pub(super) const RUN_MAX: Duration = Duration::from_secs(24 * 3600);

/// What the coordinator says of a run.
pub(super) enum Verdict {
    /// Its pictures are done.
    Done(Box<Report>),
    /// There will be no pictures.
    Failed(GenerateError),
    /// Its mesh is lost: its requests go on elsewhere, or are told there.
    Moved,
}

/// Why the controller's part failed.
#[derive(Debug)]
pub(crate) struct ControllerFault {
    cause: String,
    /// Whether a link is to blame.
    is_loss: bool,
}

impl std::fmt::Display for ControllerFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.cause)
    }
}

/// A run under way.
pub(super) struct Run {
    /// The requests it draws for, without those that have ended.
    pub(super) images: Vec<(RequestId, UpdateSink)>,
    pub(super) replica: u64,
    /// Denoising steps done, and in all.
    pub(super) step: (u32, u32),
    /// How the ranks ended, once all have.
    outcomes: Option<Vec<(u32, RankOutcome)>>,
    controller_done: bool,
    /// Why the controller's part failed; what a rank says explains it better.
    controller_failure: Option<ControllerFault>,
    /// Its requests as it was started, in order.
    drawn: Vec<RequestId>,
    checkpoints: Arc<CheckpointStore>,
    /// Steps of the whole denoising that are done.
    steps_done: u32,
    /// By rank, for people.
    devices: Vec<DeviceId>,
    /// Of the whole mesh, and which replica this is.
    place: (Degrees, u32),
    plan: Arc<Plan>,
    verdict: Option<oneshot::Sender<Verdict>>,
    started: Instant,
    progress: Option<Progress>,
    /// Whether it does not go on, and its mesh is given up.
    stalled: bool,
    /// Ranks that have ended it.
    ended: BTreeSet<u32>,
}

impl Run {
    pub(super) fn new(
        images: Vec<(RequestId, UpdateSink)>,
        replica: u64,
        plan: Arc<Plan>,
        devices: Vec<DeviceId>,
        place: (Degrees, u32),
        checkpoints: Arc<CheckpointStore>,
        verdict: oneshot::Sender<Verdict>,
    ) -> Self {
        Self {
            drawn: images.iter().map(|(id, _)| *id).collect(),
            checkpoints,
            steps_done: plan.run.first_step,
            images,
            replica,
            step: (0, 0),
            outcomes: None,
            controller_done: false,
            controller_failure: None,
            devices,
            place,
            plan,
            verdict: Some(verdict),
            started: Instant::now(),
            progress: None,
            stalled: false,
            ended: BTreeSet::new(),
        }
    }

    /// The same, with somebody who looks whether it goes on.
    pub(super) fn watched(self, progress: Progress) -> Self {
        Self { progress: Some(progress), ..self }
    }

    /// The prompt is encoded.
    pub(super) fn encoded(&mut self, now: Now) {
        let steps = (self.plan.run.first_step as usize) < self.plan.steps();
        if let Some(progress) = &mut self.progress {
            progress.encoded(now, steps);
        }
    }

    /// How long it may hold up other runs on its mesh, while it does.
    pub(super) fn holds_up(&self) -> Option<Duration> {
        self.progress.as_ref().and_then(Progress::holds_up)
    }

    /// It was held up until now.
    pub(super) fn excuse(&mut self, now: Now) {
        if let Some(progress) = &mut self.progress {
            progress.excuse(now);
        }
    }

    /// Looks whether it goes on, unless the coordinator `slept`, or others hold it up so long; why
    /// not, once.
    pub(super) fn stalls(&mut self, now: Now, slept: bool, held_up: Duration) -> Option<String> {
        let ending =
            self.verdict.is_none() || self.outcomes.is_some() || self.controller_failure.is_some();
        let progress = self.progress.as_mut().filter(|_| !self.stalled && !ending)?;
        if slept {
            progress.excuse(now);
        }
        let limit = progress.overdue(now, held_up)?.as_secs_f64();
        let what = progress.under_way(self.steps_done + 1);
        self.stalled = true;
        Some(format!("{what} did not end within {limit:.1} s"))
    }

    /// A rank has ended it.
    pub(super) fn rank_ended(&mut self, rank: u32) {
        self.ended.insert(rank);
    }

    /// Devices whose ranks have not.
    pub(super) fn not_ended(&self) -> Vec<DeviceId> {
        let ranks = self.devices.iter().enumerate();
        let at_it = ranks.filter(|(rank, _)| !self.ended.contains(&(*rank as u32)));
        at_it.map(|(_, device)| device.clone()).collect()
    }

    /// A request has ended without the run; how many are left. The last one stays in it, for the
    /// run's task to tell.
    pub(super) fn leave(&mut self, request: RequestId) -> usize {
        let left = self.images.iter().filter(|(id, _)| *id != request).count();
        if left > 0 {
            self.images.retain(|(id, _)| *id != request);
        }
        left
    }

    /// Its requests, in the order of its pictures; some may have ended.
    pub(super) fn drawn(&self) -> &[RequestId] {
        &self.drawn
    }

    /// Devices whose ranks send its checkpoints: those of the last stage.
    pub(super) fn producers(&self) -> impl Iterator<Item = &DeviceId> {
        let mesh = &self.plan.mesh;
        let last = mesh.stages() - 1;
        let ranks = self.devices.iter().enumerate();
        ranks.filter(move |(rank, _)| mesh.coordinates(*rank).stage == last).map(|(_, d)| d)
    }

    /// What is left of it when its mesh is lost.
    pub(super) fn newest_checkpoint(&self) -> Option<Arc<Checkpoint>> {
        self.checkpoints.newest()
    }

    /// Notes progress.
    pub(super) fn step_done(&mut self, now: Now, step: u32, of: u32) {
        self.step = (step, of);
        self.steps_done = self.steps_done.max(step);
        if let Some(progress) = &mut self.progress {
            progress.step_done(now, step >= of);
        }
    }

    /// From 1; one past the last while it decodes.
    pub(super) fn step_under_way(&self) -> u32 {
        self.steps_done + 1
    }

    /// Steps of the whole denoising, those that are done, and those that its newest checkpoint
    /// holds.
    pub(super) fn account(&self) -> (u32, u32, u32) {
        let kept = self.newest_checkpoint().map_or(self.plan.run.first_step, |c| c.step as u32 + 1);
        (self.plan.steps() as u32, self.steps_done, kept)
    }

    /// Whether it goes on from a checkpoint.
    pub(super) fn is_resumed(&self) -> bool {
        self.plan.run.first_step > 0
    }

    /// Tells the run's task how it ended; only the first word counts.
    pub(super) fn decide(&mut self, verdict: Verdict) {
        if let Some(sender) = self.verdict.take() {
            // A task that has ended has told the caller.
            let _ = sender.send(verdict);
        }
    }

    /// The controller's part is over.
    pub(super) fn controller_ended(&mut self, outcome: Result<(), ControllerFault>) {
        self.controller_done = true;
        self.controller_failure = outcome.err();
    }

    /// All ranks are done.
    pub(super) fn ranks_ended(&mut self, outcomes: Vec<(u32, RankOutcome)>) {
        let failed = !outcomes.iter().all(|(_, outcome)| matches!(outcome, RankOutcome::Done(_)));
        self.outcomes = Some(outcomes);
        if failed && !self.is_lost() {
            self.conclude();
        }
    }

    /// Whether ranks and controller are all done with it.
    pub(super) fn is_over(&self) -> bool {
        self.controller_done && self.outcomes.is_some()
    }

    /// Whether links failed and nothing else, or it does not go on: its mesh is lost, or will be.
    pub(super) fn is_lost(&self) -> bool {
        let done = |(_, outcome): &(u32, RankOutcome)| matches!(outcome, RankOutcome::Done(_));
        if self.stalled && !self.outcomes.as_ref().is_some_and(|all| all.iter().all(done)) {
            return true;
        }
        let mut failures =
            self.outcomes.iter().flatten().filter_map(|(_, outcome)| match outcome {
                RankOutcome::Failed { peer, .. } => Some(peer.is_some()),
                _ => None,
            });
        match failures.next() {
            Some(first) => first && failures.all(|is_loss| is_loss),
            None => self.controller_failure.as_ref().is_some_and(|fault| fault.is_loss),
        }
    }

    /// Why the mesh is of no more use, when only the controller knows.
    pub(super) fn controller_loss(&self) -> Option<String> {
        if self.stalled {
            return None;
        }
        let fault = self.controller_failure.as_ref().filter(|fault| fault.is_loss)?;
        let known = self.failure().is_some();
        (!known).then(|| fault.cause.clone())
    }

    /// Decides by what ranks and controller did.
    pub(super) fn conclude(&mut self) {
        let verdict = match (self.failure(), &self.controller_failure) {
            (Some(error), _) => Verdict::Failed(error),
            (None, Some(ControllerFault { cause, .. })) => {
                Verdict::Failed(GenerateError::Failed(format!("the coordinator failed: {cause}")))
            }
            (None, None) => self.report(),
        };
        self.decide(verdict);
    }

    /// What the request ends with when `rank` failed.
    pub(super) fn rank_failure(&self, rank: u32, cause: &str, peer: Option<u32>) -> GenerateError {
        let who = self.who(rank);
        match peer {
            Some(peer) => {
                let peer = self.who(peer);
                GenerateError::Lost(format!("{who} lost its link to {peer}: {cause}"))
            }
            None => GenerateError::Failed(format!("{who} failed: {cause}")),
        }
    }

    fn who(&self, rank: u32) -> String {
        match self.devices.get(rank as usize) {
            Some(device) => format!("device {device} (rank {rank})"),
            None => "the coordinator".into(),
        }
    }

    fn failure(&self) -> Option<GenerateError> {
        self.outcomes.iter().flatten().find_map(|(rank, outcome)| match outcome {
            RankOutcome::Failed { cause, peer } => Some(self.rank_failure(*rank, cause, *peer)),
            _ => None,
        })
    }

    fn report(&self) -> Verdict {
        let mut ranks = Vec::new();
        for (rank, outcome) in self.outcomes.iter().flatten() {
            match outcome {
                RankOutcome::Done(report) => ranks.push(RankReport::clone(report)),
                _ => {
                    let who = self.who(*rank);
                    let error = GenerateError::Failed(format!("{who} was stopped"));
                    return Verdict::Failed(error);
                }
            }
        }
        ranks.sort_by_key(|report| report.rank);
        Verdict::Done(Box::new(Report {
            epoch: self.replica,
            degrees: self.place.0,
            data: self.place.1,
            batch: self.plan.images() as u32,
            num_pipeline_patch: self.plan.strips.len() as u32,
            sync_steps: self.plan.run.sync_steps,
            sync_every: self.plan.run.sync_every,
            wire: self.plan.run.wire,
            traffic: traffic_of(ranks.iter().map(|rank| rank.traffic.as_slice())),
            vae_parallel: self.plan.run.vae_parallel,
            seconds: self.started.elapsed().as_secs_f64(),
            resumptions: Vec::new(),
            warnings: self.plan.warnings.clone(),
            kv_change: mean_kv_change(&ranks),
            ranks,
        }))
    }
}

/// Who gets a picture, and what its request went through.
pub(super) struct Picture {
    pub(super) sink: UpdateSink,
    pub(super) since: Instant,
    pub(super) resumptions: Vec<Resumption>,
}

impl Picture {
    fn done(&self, output: Output, report: &Report) {
        let mut report = report.clone();
        if !self.resumptions.is_empty() {
            report.seconds = self.since.elapsed().as_secs_f64();
            report.resumptions.clone_from(&self.resumptions);
        }
        self.sink.result(Ok(Generation { output, report }));
    }
}

/// The controller's part of a run.
pub(super) struct Task {
    pub(super) run: u64,
    pub(super) epoch: u64,
    pub(super) plan: Arc<Plan>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) inputs: Inputs,
    /// In order; one that has its result takes no other.
    pub(super) pictures: Vec<Picture>,
    pub(super) verdict: oneshot::Receiver<Verdict>,
    pub(super) coordinator: ActorRef<CoordinatorMsg>,
}

impl Task {
    /// Sends the inputs, takes the result, and tells the callers once the coordinator agrees.
    pub(super) async fn carry_out(self) {
        let Self { run, epoch, plan, transport, inputs, pictures, mut verdict, coordinator } = self;
        let (run_id, epoch) = (RunId(run), Epoch(epoch));
        let done = |outcome| {
            // A coordinator that has ended drops the verdict, which ends this task.
            let _ = coordinator.cast(CoordinatorMsg::ControllerDone(run, outcome));
        };
        let part = controller::run(&plan, transport.as_ref(), run_id, epoch, &inputs, RUN_MAX);
        let output = tokio::select! {
            output = part => output,
            early = &mut verdict => {
                // Success needs the controller's part: an early verdict is none.
                abort_links(&plan, transport.as_ref(), run_id);
                done(Ok(()));
                return tell(&pictures, early.ok(), None);
            }
        };
        let output = match output {
            Ok(output) => {
                done(Ok(()));
                Some(output)
            }
            Err(error) => {
                abort_links(&plan, transport.as_ref(), run_id);
                let (cause, is_loss) = (error.to_string(), error.is_loss());
                done(Err(ControllerFault { cause, is_loss }));
                None
            }
        };
        tell(&pictures, verdict.await.ok(), output);
    }
}

/// Tells the callers; without a verdict the coordinator has ended.
pub(super) fn tell(pictures: &[Picture], verdict: Option<Verdict>, outputs: Option<Vec<Output>>) {
    let error = match (verdict, outputs) {
        (Some(Verdict::Done(report)), Some(outputs)) => {
            let pictures = pictures.iter().zip(outputs);
            return pictures.for_each(|(picture, output)| picture.done(output, &report));
        }
        (Some(Verdict::Moved), _) => return,
        (Some(Verdict::Failed(error)), _) => error,
        (Some(Verdict::Done(_)), None) => {
            GenerateError::Failed("the run ended without a result".into())
        }
        (None, _) => GenerateError::Lost("the coordinator has stopped".into()),
    };
    pictures.iter().for_each(|picture| picture.sink.result(Err(error.clone())));
}

fn abort_links(plan: &Plan, transport: &dyn Transport, run: RunId) {
    for peer in plan.peers(plan.controller()) {
        if let Ok(link) = transport.link(PeerId(peer as u32)) {
            link.abort_run(run, "the request has ended");
        }
    }
}

//! The worker actor: one per device, owner of a partition of the DiT.
//!
//! Owns the device's compute thread, the links of the mesh it is in, and its runs. Takes
//! orders (form, start, enter, abort, dissolve) and reports; knows nothing of sessions or of who
//! sits at the other end of its orders.
//!
//! Invariants: an order of another epoch than its meshes' is refused with a report; at most
//! [`RUNS_PER_MESH_MAX`](crate::executor::agenda::RUNS_PER_MESH_MAX) runs of a mesh are under way;
//! a mesh that is dissolved has its links closed and its runs aborted, while weights stay loaded
//! for the next mesh. There is one mesh, and for a while the next one beside it.

pub(crate) mod affinity;
mod compute;
pub(crate) mod device;
pub(crate) mod forming;
mod measure;
mod runs;
mod shared_agenda;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ditmesh_transport::Transport;
use ditmesh_transport::fabric::Fabric;
use ditmesh_transport::ids::{Epoch, PeerId, RunId};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::mpsc;

use crate::executor::abort::AbortFlag;
use crate::executor::agenda::{AgendaError, Retired};
use crate::groups::conduct::ABORT_DEADLINE;
use crate::manifest::DeviceKind;
use crate::plan::Plan;
use crate::plan::layout::Layout;
use crate::protocol::{DeviceId, Form, RankOutcome, Start, ToCoordinator};
use crate::weights::Fetchers;
use compute::{ComputeThread, Loaded, Run};
use forming::FormDone;
use shared_agenda::SharedAgenda;

/// One device and how to use it.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Cluster name.
    pub cluster: String,
    /// Which device.
    pub device: DeviceId,
    /// Incarnation of this worker.
    pub incarnation: u64,
    /// What computes.
    pub kind: DeviceKind,
    /// Which GPU of the host, where the device is one.
    pub gpu: usize,
    /// Compute threads.
    pub threads: usize,
    /// Cores to pin them to; empty pins nothing.
    pub cores: Vec<usize>,
}

/// Orders to a worker.
#[derive(Debug)]
pub enum WorkerMsg {
    /// Join a mesh.
    Form(Form),
    /// Run a request.
    Start(Start),
    /// Take a proposed run in.
    Enter {
        /// The run.
        run: u64,
        /// After how many units of the mesh.
        after: u64,
    },
    /// Stop a run.
    Abort {
        /// The run.
        run: u64,
        /// Why.
        cause: String,
    },
    /// Measure a link of a mesh.
    Measure {
        /// Its epoch.
        epoch: u64,
        /// Of the order.
        number: u64,
        /// Two ranks, the first of which leads.
        pair: (u32, u32),
    },
    /// Leave a mesh.
    Dissolve {
        /// Its epoch.
        epoch: u64,
        /// Why.
        cause: String,
    },
    /// End the worker.
    Stop,
    /// From the worker to itself: a mesh is up, or is not.
    #[doc(hidden)]
    FormDone(FormDone),
    /// From the worker to itself: its computing has not come back from a mesh that it left.
    #[doc(hidden)]
    Hung {
        /// The mesh's epoch.
        epoch: u64,
    },
}

/// Starts a worker. What it reports ([`ToCoordinator::Formed`], `FormFailed`, `Progress`,
/// `RunEnded`) goes to `reports`.
///
/// # Errors
/// When the actor cannot be spawned or its compute thread cannot be started.
pub async fn spawn(
    config: WorkerConfig,
    fabric: Arc<dyn Fabric>,
    reports: mpsc::Sender<ToCoordinator>,
) -> Result<(ActorRef<WorkerMsg>, tokio::task::JoinHandle<()>), ractor::SpawnErr> {
    Actor::spawn(None, Worker, Args { config, fabric, reports }).await
}

struct Worker;

struct Args {
    config: WorkerConfig,
    fabric: Arc<dyn Fabric>,
    reports: mpsc::Sender<ToCoordinator>,
}

/// A mesh this worker is in.
struct Mesh {
    rank: usize,
    form: Form,
    loaded: Loaded,
    transport: Arc<dyn Transport>,
    agenda: Arc<SharedAgenda<Run>>,
    /// What stops each run, until another one starts after its end.
    runs: BTreeMap<u64, Arc<AbortFlag>>,
}

struct State {
    myself: ActorRef<WorkerMsg>,
    config: WorkerConfig,
    fabric: Arc<dyn Fabric>,
    reports: mpsc::Sender<ToCoordinator>,
    compute: ComputeThread,
    /// By epoch: the one that runs, and the next while that is built beside it.
    meshes: BTreeMap<u64, Mesh>,
    /// Fetches what this host lacks of a model.
    fetchers: Fetchers,
    /// Newest epoch ordered; an older one is refused.
    newest_epoch: u64,
    /// The tasks that form meshes, by epoch; what is not here any more is not wanted any more.
    forming: BTreeMap<u64, tokio::task::AbortHandle>,
}

impl Actor for Worker {
    type Msg = WorkerMsg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<WorkerMsg>,
        args: Args,
    ) -> Result<State, ActorProcessingErr> {
        let compute = ComputeThread::start(&args.config)?;
        let Args { config, fabric, reports } = args;
        Ok(State {
            myself,
            config,
            fabric,
            reports,
            compute,
            meshes: BTreeMap::new(),
            fetchers: Fetchers::default(),
            newest_epoch: 0,
            forming: BTreeMap::new(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<WorkerMsg>,
        message: WorkerMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WorkerMsg::Form(form) => state.form(form).await,
            WorkerMsg::FormDone(done) => state.formed(done).await,
            WorkerMsg::Start(start) => state.start(start).await,
            WorkerMsg::Enter { run, after } => state.enter(run, after).await,
            WorkerMsg::Abort { run, cause } => state.abort(run, &cause).await,
            WorkerMsg::Measure { epoch, number, pair } => state.measure(epoch, number, pair),
            WorkerMsg::Dissolve { epoch, cause } => state.dissolve(epoch, &cause).await,
            WorkerMsg::Hung { epoch } => {
                let within = ABORT_DEADLINE.as_secs();
                let cause = format!(
                    "its computing did not come back from the mesh of epoch \
                                     {epoch} within {within} s"
                );
                return Err(cause.into());
            }
            WorkerMsg::Stop => myself.stop(None),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<WorkerMsg>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.leave_all("the worker stops").await;
        state.fabric.close();
        state.compute.stop();
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<WorkerMsg>,
        event: SupervisionEvent,
        _: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        tracing::debug!(?event, "a worker supervises nobody");
        Ok(())
    }
}

impl State {
    async fn report(&self, report: ToCoordinator) {
        if self.reports.send(report).await.is_err() {
            tracing::debug!("nobody takes this worker's reports any more");
        }
    }

    async fn start(&mut self, start: Start) {
        let run = start.run;
        match self.try_start(start) {
            Ok(Some(after)) => self.report(ToCoordinator::Proposed { run, after }).await,
            Ok(None) => {}
            Err((rank, cause)) => self.report_failed(run, rank, cause).await,
        }
    }

    async fn report_failed(&self, run: u64, rank: u32, cause: String) {
        let outcome = RankOutcome::Failed { cause, peer: None };
        self.report(ToCoordinator::RunEnded { run, rank, outcome }).await;
    }

    /// Puts a run on the agenda; where it can come in, when it is only proposed.
    fn try_start(&mut self, start: Start) -> Result<Option<u64>, (u32, String)> {
        let newest = self.meshes.last_key_value().map(|(&epoch, mesh)| (epoch, mesh.form.rank));
        let Some(mesh) = self.meshes.get_mut(&start.epoch) else {
            return Err(match newest {
                None => (0, format!("epoch {} is not formed here", start.epoch)),
                Some((epoch, rank)) => {
                    (rank, format!("stale epoch {}: this is epoch {epoch}", start.epoch))
                }
            });
        };
        let rank = mesh.form.rank;
        let refuse = |cause: String| (rank, cause);
        let (model, degrees) = (&mesh.loaded.model.spec, mesh.form.degrees);
        let stages = degrees.pipefusion_degree as usize;
        let plan = Layout::from_ends(&mesh.form.stage_ends, model.blocks, stages)
            .and_then(|layout| Plan::with_layout(degrees, layout, model, &start.spec))
            .map_err(|error| refuse(error.to_string()))?;
        if plan.digest() != start.plan_digest {
            let cause = "this rank and the coordinator plan the run differently; run the same \
                         build and the same model on every node";
            return Err(refuse(cause.into()));
        }
        let (abort, entries) = (Arc::new(AbortFlag::default()), plan.entries(start.run));
        let run = Run {
            plan: Arc::new(plan),
            rank: mesh.rank,
            device: self.config.device.to_string(),
            run: RunId(start.run),
            epoch: Epoch(start.epoch),
            transport: Arc::clone(&mesh.transport),
            model: Arc::clone(&mesh.loaded.model),
            compute_on: mesh.loaded.device.clone(),
            abort: Arc::clone(&abort),
            wait_limit: Duration::from_millis(u64::from(start.op_deadline_ms)),
            traceparent: start.traceparent,
            reports: self.reports.clone(),
        };
        mesh.runs.retain(|&run, _| mesh.agenda.knows(run));
        let refused = |error: AgendaError| refuse(error.to_string());
        if start.propose {
            let after = mesh.agenda.propose(start.run, run, entries).map_err(refused)?;
            mesh.runs.insert(start.run, abort);
            return Ok(Some(after));
        }
        let asleep = mesh.agenda.append(start.run, run, entries).map_err(refused)?;
        mesh.runs.insert(start.run, abort);
        wake(&self.compute, mesh, start.run, asleep).map_err(refuse)?;
        Ok(None)
    }

    async fn enter(&mut self, run: u64, after: u64) {
        let Some(mesh) = self.meshes.values().find(|mesh| mesh.runs.contains_key(&run)) else {
            return;
        };
        let rank = mesh.form.rank;
        let entered = match mesh.agenda.admit(run, after) {
            Ok(asleep) => wake(&self.compute, mesh, run, asleep),
            // It has ended meanwhile, and was reported.
            Err(AgendaError::Unknown { .. }) => Ok(()),
            Err(error) => {
                mesh.agenda.retire(run);
                Err(error.to_string())
            }
        };
        if let Err(cause) = entered {
            self.report_failed(run, rank, cause).await;
        }
    }

    /// Stops a run; the others go on.
    async fn abort(&mut self, run: u64, cause: &str) {
        let known = |mesh: &&Mesh| mesh.runs.contains_key(&run);
        let Some(mesh) = self.meshes.values().find(known) else { return };
        let Some(abort) = mesh.runs.get(&run) else { return };
        abort.abort(cause);
        for member in &mesh.form.members {
            if let Ok(link) = mesh.transport.link(PeerId(member.rank)) {
                link.abort_run(RunId(run), cause);
            }
        }
        if mesh.agenda.retire(run) == Retired::Now {
            let (rank, outcome) = (mesh.form.rank, RankOutcome::Aborted);
            self.report(ToCoordinator::RunEnded { run, rank, outcome }).await;
        }
    }

    async fn dissolve(&mut self, epoch: u64, cause: &str) {
        self.stop_forming(epoch);
        self.leave(epoch, cause).await;
    }

    /// Leaves every mesh, and those that are being formed.
    async fn leave_all(&mut self, cause: &str) {
        let forming: Vec<u64> = self.forming.keys().copied().collect();
        forming.into_iter().for_each(|epoch| self.stop_forming(epoch));
        let epochs: Vec<u64> = self.meshes.keys().copied().collect();
        for epoch in epochs {
            self.leave(epoch, cause).await;
        }
    }

    /// Aborts the runs of a mesh and closes its links.
    async fn leave(&mut self, epoch: u64, cause: &str) {
        let runs =
            self.meshes.get(&epoch).map(|mesh| mesh.runs.keys().copied().collect::<Vec<_>>());
        for run in runs.unwrap_or_default() {
            self.abort(run, cause).await;
        }
        if let Some(mesh) = self.meshes.remove(&epoch) {
            mesh.transport.close(cause);
            self.await_return(epoch, mesh.agenda);
        }
    }

    /// A compute thread that does not come back from a mesh that is gone is of no use to the next
    /// one, and nobody else sees that: this worker ends, and another one is started.
    fn await_return(&self, epoch: u64, agenda: Arc<SharedAgenda<Run>>) {
        if !agenda.is_attended() {
            return;
        }
        let myself = self.myself.clone();
        tokio::spawn(async move {
            tokio::time::sleep(ABORT_DEADLINE).await;
            if agenda.is_attended() {
                // A worker that has ended hangs no longer.
                let _ = myself.cast(WorkerMsg::Hung { epoch });
            }
        });
    }
}

/// Calls the compute thread to the agenda, when it is not at it; `run` ends where that fails.
fn wake(compute: &ComputeThread, mesh: &Mesh, run: u64, asleep: bool) -> Result<(), String> {
    if !asleep {
        return Ok(());
    }
    compute.work_off(Arc::clone(&mesh.agenda)).inspect_err(|_| {
        mesh.agenda.not_called();
        mesh.agenda.retire(run);
    })
}

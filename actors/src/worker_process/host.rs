//! A worker actor and its tie to the coordinator, in whatever process.
//!
//! Owns the translation between the protocol and the worker's orders. Ends when told to, when the
//! coordinator is lost for good, or when the worker ends; its owner is told which.
//!
//! Invariant: a worker whose session is lost leaves its mesh, because the coordinator has given it
//! up; of callers that it turned away, each session is told at its first heartbeat and whenever
//! there are more.

use std::sync::Arc;
use std::time::Duration;

use ditmesh_transport::fabric::Fabric;
use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::{mpsc, oneshot};

use crate::protocol::{FromCoordinator, Party, ToCoordinator};
use crate::session::dial::Dialer;
use crate::session::handshake;
use crate::session::uplink::{Uplink, UplinkArgs, UplinkEvent, UplinkMsg};
use crate::worker::{self, WorkerConfig, WorkerMsg};

/// Reports of a worker that wait to be sent.
const REPORTS_MAX: usize = 256;

/// How long a worker goes on without a coordinator.
pub(crate) const WORKER_PATIENCE: Duration = Duration::from_secs(60);

/// How a host ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HostEnd {
    /// The coordinator or its owner said so.
    Told,
    /// The coordinator was lost for good, or refused this worker.
    Lost(String),
    /// The worker failed.
    Failed(String),
}

/// What a host is made of.
pub(crate) struct HostArgs {
    pub(crate) config: WorkerConfig,
    pub(crate) fabric: Arc<dyn Fabric>,
    pub(crate) dialer: Dialer,
    /// Told once how it ended.
    pub(crate) ended: oneshot::Sender<HostEnd>,
}

/// What a host is sent.
pub(crate) enum HostMsg {
    Uplink(UplinkEvent),
    Report(ToCoordinator),
    /// End, for this reason.
    Stop(String),
}

/// The actor.
pub(crate) struct WorkerHost;

/// A host at work.
pub(crate) struct State {
    worker: ActorRef<WorkerMsg>,
    fabric: Arc<dyn Fabric>,
    /// What this session was told of callers that were turned away.
    refused_told: u64,
    uplink: ActorRef<UplinkMsg>,
    epoch: u64,
    /// Worker and uplink, as long as they are there.
    children: usize,
    ended: Option<oneshot::Sender<HostEnd>>,
}

impl WorkerHost {
    /// Starts a worker and its uplink.
    ///
    /// # Errors
    /// When the worker does not start.
    pub(crate) async fn start(
        args: HostArgs,
    ) -> Result<(ActorRef<HostMsg>, tokio::task::JoinHandle<()>), SpawnErr> {
        Self::spawn(None, Self, args).await
    }
}

impl Actor for WorkerHost {
    type Msg = HostMsg;
    type State = State;
    type Arguments = HostArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<HostMsg>,
        args: HostArgs,
    ) -> Result<State, ActorProcessingErr> {
        let HostArgs { config, fabric, dialer, ended } = args;
        let party = Party::Worker { device: config.device.clone() };
        let mut hello = handshake::hello(&config.cluster, party, config.incarnation);
        hello.fabric_address = fabric.address().to_string();
        let (reports, mut reported) = mpsc::channel(REPORTS_MAX);
        let (worker, _) = worker::spawn(config, Arc::clone(&fabric), reports).await?;
        worker.get_cell().link(myself.get_cell());
        let forward = myself.clone();
        tokio::spawn(async move {
            while let Some(report) = reported.recv().await {
                if forward.cast(HostMsg::Report(report)).is_err() {
                    return;
                }
            }
        });
        let events = myself.clone();
        let uplink = UplinkArgs {
            dialer,
            hello,
            patience: Some(WORKER_PATIENCE),
            // A host that has ended needs no news.
            on_event: Box::new(move |event| drop(events.cast(HostMsg::Uplink(event)))),
        };
        let uplink = Uplink::start(uplink, myself.get_cell()).await?;
        let (epoch, refused_told, children, ended) = (0, 0, 2, Some(ended));
        Ok(State { worker, fabric, refused_told, uplink, epoch, children, ended })
    }

    async fn handle(
        &self,
        _myself: ActorRef<HostMsg>,
        message: HostMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            HostMsg::Report(report) => state.say(report),
            HostMsg::Uplink(UplinkEvent::Up) => state.refused_told = 0,
            HostMsg::Uplink(UplinkEvent::Down(cause)) => {
                let epoch = state.epoch;
                state.order(WorkerMsg::Dissolve { epoch, cause });
            }
            HostMsg::Uplink(UplinkEvent::GaveUp(cause)) => {
                state.end(HostEnd::Lost(cause.clone()), cause);
            }
            HostMsg::Uplink(UplinkEvent::Heard(order)) => state.hear(order),
            HostMsg::Stop(reason) => state.end(HostEnd::Told, reason),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<HostMsg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (actor, cause) = match event {
            SupervisionEvent::ActorFailed(actor, error) => (actor, error.to_string()),
            SupervisionEvent::ActorTerminated(actor, _, reason) => {
                (actor, reason.unwrap_or_else(|| "it ended".into()))
            }
            _ => return Ok(()),
        };
        state.children -= 1;
        if actor.get_id() == state.worker.get_id() {
            state.end(HostEnd::Failed(cause.clone()), cause);
        }
        if state.children == 0 {
            myself.stop(None);
        }
        Ok(())
    }
}

impl State {
    fn hear(&mut self, order: FromCoordinator) {
        match order {
            FromCoordinator::Form(form) => {
                self.epoch = self.epoch.max(form.epoch);
                // An uplink that has ended has told this host.
                let _ = self.uplink.cast(UplinkMsg::Epoch(self.epoch));
                self.order(WorkerMsg::Form(*form));
            }
            FromCoordinator::Measure { epoch, number, pair } => {
                self.order(WorkerMsg::Measure { epoch, number, pair });
            }
            FromCoordinator::Enter { run, after } => self.order(WorkerMsg::Enter { run, after }),
            FromCoordinator::Start(start) => self.order(WorkerMsg::Start(*start)),
            FromCoordinator::Abort { run, cause } => self.order(WorkerMsg::Abort { run, cause }),
            FromCoordinator::Dissolve { epoch, cause } => {
                self.order(WorkerMsg::Dissolve { epoch, cause });
            }
            FromCoordinator::Shutdown => {
                self.end(HostEnd::Told, "the cluster goes down".into());
            }
            FromCoordinator::Heartbeat { .. } => self.tell_refused(),
            FromCoordinator::Welcome { .. }
            | FromCoordinator::Refused { .. }
            | FromCoordinator::Recycle { .. }
            | FromCoordinator::HoldCopy(_)
            | FromCoordinator::SendCopy { .. }
            | FromCoordinator::DropCopy { .. }
            | FromCoordinator::Examine(_)
            | FromCoordinator::Reply { .. } => tracing::warn!("unexpected message"),
        }
    }

    /// Tells the coordinator how many callers were turned away, if that is news.
    fn tell_refused(&mut self) {
        let total = self.fabric.callers_refused();
        if total > self.refused_told {
            self.refused_told = total;
            self.say(ToCoordinator::CallersRefused(total));
        }
    }

    fn order(&self, order: WorkerMsg) {
        // A worker that has ended is noticed by supervision.
        let _ = self.worker.cast(order);
    }

    fn say(&self, report: ToCoordinator) {
        // An uplink that has ended has told this host.
        let _ = self.uplink.cast(UplinkMsg::Say(report));
    }

    /// Ends worker and uplink; this host ends when both have.
    fn end(&mut self, end: HostEnd, reason: String) {
        let Some(ended) = self.ended.take() else { return };
        // Whoever started this host may have gone.
        let _ = ended.send(end);
        // Both may have ended already.
        let _ = self.uplink.cast(UplinkMsg::Close(reason));
        let _ = self.worker.cast(WorkerMsg::Stop);
    }
}

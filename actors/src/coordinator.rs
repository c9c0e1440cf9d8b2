//! The coordinator: carries events to its desk, where the pure engines are (membership, formation,
//! dispatcher) and the books of requests and runs, and their commands to sessions and replicas.
//!
//! Owns the one actor that does so and what it must keep between two messages. Decides nothing
//! itself: who is alive is [`crate::membership`]'s, which mesh is formed is `formation`'s, which
//! request runs is [`crate::dispatcher`]'s, and what follows from that is `advance`'s. Tensors pass by it: they go from the data plane to the
//! caller in a task of each run.
//!
//! Invariant: whatever is lost (session, replica, device) arrives as one event, and every request
//! gets exactly one result.

mod acceptance;
mod admission;
mod advance;
mod clients;
mod copies;
mod desk;
mod examining;
mod formation;
mod handle;
mod hands;
mod holders;
mod joining;
mod leaving;
mod links;
mod members;
mod memory;
mod mesh_plan;
pub mod model;
mod progress;
mod recovery;
mod replicas;
mod requests;
mod room;
mod run;
#[cfg(test)]
mod simulation;
mod snapshot;
mod speeds;
mod switch;
mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use ditmesh_transport::control::ControlChannel;
use ditmesh_transport::fabric::Fabric;
use ditmesh_transport::join::Joining;
use ditmesh_transport::link::Transport;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) use handle::CoordinatorHandle;
pub(crate) use joining::Door;

use crate::agent::node_agent::unix_ms;
use crate::dispatcher::{DispatcherEvent, RequestId};
use crate::generation::{GenerateError, UpdateSink};
use crate::groups::{RankMsg, ReplicaReport};
use crate::journal::keeper::{Journal, Opened};
use crate::manifest::Manifest;
use crate::membership::Now;
use crate::protocol::{DeviceId, DeviceSpeed, Hello, RequestKey, ToCoordinator};
use crate::request::GenerateRequest;
use crate::session::SessionEnded;
use crate::status::ClusterStatus;
use acceptance::Acceptance;
use advance::Step;
use clients::Clients;
use desk::Desk;
use examining::Examinations;
use formation::FormationEvent;
use joining::Joins;
use links::MeasuredLinks;
use members::{Peer, Sessions};
use memory::Memory;
use mesh_plan::MeshPlans;
use model::Model;
use replicas::Replica;
use run::ControllerFault;

/// The actor.
pub(crate) struct Coordinator;

/// What it is made of.
pub(crate) struct CoordinatorArgs {
    pub(crate) manifest: Arc<Manifest>,
    /// Its own way onto the data plane, for the controller's part of each run.
    pub(crate) fabric: Arc<dyn Fabric>,
    /// Where it listens, for people.
    pub(crate) address: String,
    /// What it must not forget; `None` where it is not to outlive its process.
    pub(crate) journal: Option<(Journal, Opened)>,
    /// Where machines can join; `None` inside one process.
    pub(crate) door: Option<Door>,
}

/// What it is sent.
pub(crate) enum CoordinatorMsg {
    /// The model was looked up.
    Model(Box<Result<Model, GenerateError>>),
    /// What the live devices make for it.
    Planned(u64, Box<MeshPlans>),
    /// A machine asks to join.
    Joining(Joining),
    /// Somebody did not pass the handshake.
    TurnedAway,
    /// Somebody passed the handshake.
    Arrived(Box<Hello>, ControlChannel),
    /// A session delivered a message.
    Said(Peer, Box<ToCoordinator>, Option<Vec<u8>>),
    /// A caller wants a picture.
    Submit(RequestId, Box<GenerateRequest>, UpdateSink),
    /// As `Submit`, of a client that can ask again.
    SubmitKeyed(RequestKey, RequestId, Box<GenerateRequest>, UpdateSink),
    /// A request of a client is in the journal, or will not be.
    Written(RequestId, Result<(), String>),
    /// A caller does not want it any more.
    Cancel(RequestId),
    /// From the root of a replica's tree.
    Replica(ReplicaReport),
    /// The controller's links of a replica are up, or are not.
    ControllerJoined(u64, Result<Arc<dyn Transport>, String>),
    /// The controller's part of a run is over.
    ControllerDone(u64, Result<(), ControllerFault>),
    /// Describe everything.
    Status(oneshot::Sender<ClusterStatus>),
    /// A request's checkpoint is complete and no copy of it has been made.
    Checkpointed(RequestKey),
    /// Time passed.
    Tick,
}

impl std::fmt::Debug for CoordinatorMsg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CoordinatorMsg")
    }
}

impl From<ReplicaReport> for CoordinatorMsg {
    fn from(report: ReplicaReport) -> Self {
        Self::Replica(report)
    }
}

impl TryFrom<CoordinatorMsg> for ReplicaReport {
    type Error = ();

    fn try_from(message: CoordinatorMsg) -> Result<Self, ()> {
        match message {
            CoordinatorMsg::Replica(report) => Ok(report),
            _ => Err(()),
        }
    }
}

/// What it keeps.
pub(crate) struct State {
    manifest: Arc<Manifest>,
    fabric: Arc<dyn Fabric>,
    address: String,
    /// Zero of its time.
    started: Instant,
    ticking: JoinHandle<()>,
    model: Option<Result<Arc<Model>, GenerateError>>,
    /// When devices of the manifest that have not come are waited for no longer.
    settles: Option<Now>,
    desk: Desk,
    sessions: Sessions,
    absent: String,
    replicas: BTreeMap<u64, Replica>,
    links: MeasuredLinks,
    /// What agents said of their nodes' devices.
    speeds: BTreeMap<String, Vec<DeviceSpeed>>,
    /// Which replica each replica actor is.
    replica_actors: BTreeMap<ActorId, u64>,
    /// By device and epoch: while meshes change a device sits in two.
    proxies: BTreeMap<(DeviceId, u64), ActorRef<RankMsg>>,
    acceptance: Acceptance,
    /// Requests that came before the model was known.
    early: Vec<(RequestId, GenerateRequest, UpdateSink)>,
    clients: Clients,
    examinations: Examinations,
    joins: Joins,
    /// Machines that were not let in.
    joins_refused: u64,
    /// Callers that came through the endpoint and were turned away here.
    callers_refused: u64,
    handle: CoordinatorHandle,
}

impl Actor for Coordinator {
    type Msg = CoordinatorMsg;
    type State = State;
    type Arguments = (CoordinatorArgs, Arc<AtomicU64>);

    async fn pre_start(
        &self,
        myself: ActorRef<CoordinatorMsg>,
        (args, next_request): (CoordinatorArgs, Arc<AtomicU64>),
    ) -> Result<State, ActorProcessingErr> {
        let CoordinatorArgs { mut manifest, fabric, address, journal, door } = args;
        let joins = Joins::new(door, Arc::make_mut(&mut manifest));
        let canceller = myself.clone();
        let (memory, early) = Memory::of(journal, Now::ZERO, unix_ms(), &next_request, move |id| {
            // A coordinator that has ended has cancelled everything.
            let _ = canceller.cast(CoordinatorMsg::Cancel(id));
        });
        let tick = Duration::from_millis(u64::from(manifest.health.heartbeat_ms / 2).max(10));
        let lookup = (myself.clone(), manifest.clone());
        tokio::task::spawn_blocking(move || {
            let (coordinator, manifest) = lookup;
            // A coordinator that has ended needs no model.
            let _ = coordinator.cast(CoordinatorMsg::Model(Box::new(Model::of(&manifest))));
        });
        Ok(State {
            ticking: myself.send_interval(tick, || CoordinatorMsg::Tick),
            desk: Desk::new(&manifest, memory),
            handle: CoordinatorHandle::new(myself, next_request),
            manifest,
            fabric,
            address,
            started: Instant::now(),
            model: None,
            settles: None,
            sessions: Sessions::default(),
            absent: "looking up the model".into(),
            replicas: BTreeMap::new(),
            links: MeasuredLinks::default(),
            speeds: BTreeMap::new(),
            replica_actors: BTreeMap::new(),
            proxies: BTreeMap::new(),
            acceptance: Acceptance::default(),
            early,
            clients: Clients::default(),
            examinations: Examinations::default(),
            joins,
            joins_refused: 0,
            callers_refused: 0,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<CoordinatorMsg>,
        message: CoordinatorMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            CoordinatorMsg::Model(model) => state.model_known(&myself, *model).await,
            CoordinatorMsg::Planned(number, plans) => {
                let planned = FormationEvent::Planned { number, plans };
                state.form(&myself, planned).await;
            }
            CoordinatorMsg::Joining(joining) => state.joining(&myself, joining).await,
            CoordinatorMsg::TurnedAway => state.callers_refused += 1,
            CoordinatorMsg::Arrived(hello, channel) => {
                state.arrived(&myself, *hello, channel).await;
            }
            CoordinatorMsg::Said(peer, message, blob) => {
                state.said(&myself, peer, *message, blob).await;
            }
            CoordinatorMsg::Submit(id, request, sink) => {
                state.submit(&myself, id, *request, sink).await;
            }
            CoordinatorMsg::SubmitKeyed(key, id, request, sink) => {
                state.accept(&myself, key, id, request, sink);
            }
            CoordinatorMsg::Written(id, outcome) => state.written(&myself, id, outcome).await,
            CoordinatorMsg::Cancel(request) => {
                state.withdraw(request, GenerateError::Cancelled);
                let now = state.now();
                state.desk.leave_behind(now, request);
                let before = state.early.len();
                state.early.retain(|(early, _, _)| *early != request);
                if state.early.len() < before {
                    state.desk.memory.forget(request);
                }
                state.dispatch(&myself, DispatcherEvent::Cancelled { request }).await;
            }
            CoordinatorMsg::Replica(report) => state.replica_says(&myself, report).await,
            CoordinatorMsg::ControllerJoined(epoch, outcome) => {
                state.controller_joined(&myself, epoch, outcome).await;
            }
            CoordinatorMsg::ControllerDone(run, outcome) => {
                state.advance(&myself, Step::ControllerDone(run, outcome)).await;
            }
            CoordinatorMsg::Status(reply) => {
                // Whoever asked may have gone.
                let _ = reply.send(state.snapshot());
            }
            CoordinatorMsg::Checkpointed(key) => state.checkpointed(&myself, key).await,
            CoordinatorMsg::Tick => {
                for step in advance::tick() {
                    state.advance(&myself, step).await;
                }
                state.stop_awaiting(&myself).await;
                state.joins.tick();
                state.stop_awaiting_disk();
                state.measure_again();
                let now = state.now();
                state.desk.memory.give_up_orphans(now);
                state.end_examination();
            }
        }
        state.drop_copies(&myself).await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<CoordinatorMsg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(actor, error) = event {
            match error.downcast::<SessionEnded<Peer>>() {
                Ok(ended) => state.session_ended(&myself, *ended).await,
                Err(error) => state.child_failed(&myself, actor.get_id(), error).await,
            }
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<CoordinatorMsg>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.ticking.abort();
        state.fail_all("the coordinator has stopped");
        state.sessions.close_all("the coordinator has stopped");
        state.fabric.close();
        Ok(())
    }
}

impl State {
    fn now(&self) -> Now {
        self.started.elapsed()
    }
}

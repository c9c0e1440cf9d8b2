//! The coordinator: carries events to the pure engines (membership, formation, dispatcher) and
//! their commands to sessions, replicas and requests.
//!
//! Owns the one actor that does so and what it must keep between two messages. Decides nothing
//! itself: who is alive is [`crate::membership`]'s, which mesh is formed is `formation`'s, which
//! request runs is [`crate::dispatcher`]'s. Tensors pass by it: they go from the data plane to the
//! caller in a task of each run.
//!
//! Invariant: whatever is lost (session, replica, device) arrives as one event, and every request
//! gets exactly one result.

mod acceptance;
mod admission;
mod advance;
mod clients;
mod copies;
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

use crate::dispatcher::{Dispatcher, DispatcherEvent, RequestId};
use crate::generation::{GenerateError, UpdateSink};
use crate::groups::{RankMsg, ReplicaReport};
use crate::journal::keeper::{Journal, Opened};
use crate::manifest::Manifest;
use crate::membership::{Membership, MembershipEvent, Now};
use crate::protocol::{DeviceId, Hello, RequestKey, ToCoordinator};
use crate::request::GenerateRequest;
use crate::session::SessionEnded;
use crate::status::ClusterStatus;
use acceptance::Acceptance;
use clients::Clients;
use examining::Examinations;
use formation::{Formation, FormationEvent};
use joining::Joins;
use links::MeasuredLinks;
use members::{Peer, Sessions};
use memory::Memory;
use mesh_plan::MeshPlans;
use model::Model;
use replicas::Replica;
use requests::Request;
use run::{ControllerFault, Run};

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
    /// When it last looked whether runs go on.
    looked: Now,
    /// When devices of the manifest that have not come are waited for no longer.
    settles: Option<Now>,
    membership: Membership,
    sessions: Sessions,
    formation: Option<Formation>,
    absent: String,
    replicas: BTreeMap<u64, Replica>,
    links: MeasuredLinks,
    /// Which replica each replica actor is.
    replica_actors: BTreeMap<ActorId, u64>,
    /// By device and epoch: while meshes change a device sits in two.
    proxies: BTreeMap<(DeviceId, u64), ActorRef<RankMsg>>,
    dispatcher: Dispatcher,
    acceptance: Acceptance,
    requests: BTreeMap<RequestId, Request>,
    /// Requests that came before the model was known.
    early: Vec<(RequestId, GenerateRequest, UpdateSink)>,
    memory: Memory,
    runs: BTreeMap<u64, Run>,
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
        let (memory, early) = Memory::of(journal, &myself, &next_request);
        let health = &manifest.health;
        let tick = Duration::from_millis(u64::from(health.heartbeat_ms / 2).max(10));
        let wait_ms = health.form_deadline_ms + manifest.launcher.ready_deadline_ms;
        let lookup = (myself.clone(), manifest.clone());
        tokio::task::spawn_blocking(move || {
            let (coordinator, manifest) = lookup;
            // A coordinator that has ended needs no model.
            let _ = coordinator.cast(CoordinatorMsg::Model(Box::new(Model::of(&manifest))));
        });
        Ok(State {
            ticking: myself.send_interval(tick, || CoordinatorMsg::Tick),
            membership: memory.membership(&manifest),
            dispatcher: Dispatcher::new(Duration::from_millis(wait_ms.into())),
            handle: CoordinatorHandle::new(myself, next_request),
            manifest,
            fabric,
            address,
            started: Instant::now(),
            looked: Now::ZERO,
            model: None,
            settles: None,
            sessions: Sessions::default(),
            formation: None,
            absent: "looking up the model".into(),
            replicas: BTreeMap::new(),
            links: MeasuredLinks::default(),
            replica_actors: BTreeMap::new(),
            proxies: BTreeMap::new(),
            acceptance: Acceptance::default(),
            requests: BTreeMap::new(),
            early,
            memory,
            runs: BTreeMap::new(),
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
                state.leave_behind(request);
                let before = state.early.len();
                state.early.retain(|(early, _, _)| *early != request);
                if state.early.len() < before {
                    state.memory.forget(request);
                }
                state.dispatch(&myself, DispatcherEvent::Cancelled { request }).await;
            }
            CoordinatorMsg::Replica(report) => state.replica_says(&myself, report).await,
            CoordinatorMsg::ControllerJoined(epoch, outcome) => {
                state.controller_joined(&myself, epoch, outcome).await;
            }
            CoordinatorMsg::ControllerDone(run, outcome) => {
                state.controller_done(&myself, run, outcome).await;
            }
            CoordinatorMsg::Status(reply) => {
                // Whoever asked may have gone.
                let _ = reply.send(state.snapshot());
            }
            CoordinatorMsg::Checkpointed(key) => state.checkpointed(&myself, key).await,
            CoordinatorMsg::Tick => {
                state.member(&myself, MembershipEvent::Tick).await;
                state.watch_progress();
                state.stop_awaiting(&myself).await;
                state.let_go(&myself).await;
                state.joins.tick();
                state.stop_awaiting_disk();
                state.dispatch(&myself, DispatcherEvent::Tick).await;
                state.measure_again();
                state.memory.give_up_orphans();
                state.tend_copies(&myself).await;
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

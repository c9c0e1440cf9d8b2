//! The actor of one host: keeps its workers alive and the coordinator informed.
//!
//! Owns the workers' restart budgets and their incarnations, and the copies of checkpoints that it
//! holds for the coordinator. How a worker is started is its home's, and which devices are measured
//! before is `measuring`'s. Never touches a device or weights.
//!
//! Invariants: it ends only after all its workers have; a session's first word is what its devices
//! sustain, as far as that is known.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::{oneshot, watch};

use super::copies::HeldCopies;
use super::measuring::{Measuring, UnderWay};
use super::restarts::Restarts;
use super::worker_home::WorkerHome;
use crate::examine::{clock, host, ports};
use crate::membership::Incarnation;
use crate::protocol::examine::{Examination, Examine};
use crate::protocol::{DeviceId, DeviceSpeed, FromCoordinator, Party, ToCoordinator};
use crate::session::dial::Dialer;
use crate::session::handshake;
use crate::session::uplink::{Uplink, UplinkArgs, UplinkEvent, UplinkMsg};

/// Time beyond the draining for the coordinator to let a node go.
const RELEASE_MARGIN: Duration = Duration::from_secs(5);

/// How long this host and its ways to others are looked at.
const EXAMINE_MAX: Duration = Duration::from_secs(10);

/// How an agent ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AgentEnd {
    /// It was told to.
    Told,
    /// The coordinator will not have it.
    GaveUp(String),
}

/// What an agent is made of.
pub(crate) struct NodeAgentArgs {
    pub(crate) cluster: String,
    pub(crate) node: String,
    pub(crate) devices: usize,
    pub(crate) restarts_max: u32,
    pub(crate) dialer: Dialer,
    pub(crate) home: WorkerHome,
    /// How it learns what its devices sustain; `None` where nobody asks.
    pub(crate) measuring: Option<Measuring>,
    /// Told whether there is a session with the coordinator.
    pub(crate) joined: watch::Sender<bool>,
    /// Told once how it ended.
    pub(crate) ended: oneshot::Sender<AgentEnd>,
}

/// What an agent is sent.
#[derive(Debug)]
pub(crate) enum NodeAgentMsg {
    Uplink(UplinkEvent),
    /// A worker ended, as its home says it.
    WorkerEnded {
        index: usize,
        incarnation: Incarnation,
        status: String,
    },
    StartWorker {
        index: usize,
    },
    /// What the devices sustain, as far as that could be measured.
    Measured(Vec<DeviceSpeed>),
    /// This host was looked at.
    Examined(Box<Examination>),
    /// Leave the cluster, then end.
    Leave {
        drain: Duration,
    },
    /// End, after the workers.
    Stop,
}

/// The actor.
pub(crate) struct NodeAgent;

/// One worker.
struct Slot {
    restarts: Restarts,
    incarnation: Incarnation,
    started: Instant,
    /// Dropped to let the worker end, told to end it by force; `None` when there is none.
    life: Option<oneshot::Sender<()>>,
}

/// An agent at work.
pub(crate) struct State {
    node: String,
    home: WorkerHome,
    uplink: ActorRef<UplinkMsg>,
    slots: Vec<Slot>,
    copies: HeldCopies,
    /// This host is being looked at.
    examining: bool,
    /// Workers are started after the first welcome: one that joined before its agent would be taken
    /// for a worker of the agent's life before, and lost with it.
    begun: bool,
    /// Looked at first.
    measuring: Option<Measuring>,
    under_way: Option<UnderWay>,
    speeds: Vec<DeviceSpeed>,
    joined: watch::Sender<bool>,
    /// Told to leave, and waiting for the coordinator to let it go.
    leaving: bool,
    ended: Option<oneshot::Sender<AgentEnd>>,
    ending: Option<AgentEnd>,
}

impl NodeAgent {
    /// Starts an agent and its workers.
    ///
    /// # Errors
    /// When an actor cannot be started.
    pub(crate) async fn start(
        args: NodeAgentArgs,
    ) -> Result<(ActorRef<NodeAgentMsg>, tokio::task::JoinHandle<()>), SpawnErr> {
        Self::spawn(None, Self, args).await
    }
}

impl Actor for NodeAgent {
    type Msg = NodeAgentMsg;
    type State = State;
    type Arguments = NodeAgentArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<NodeAgentMsg>,
        args: NodeAgentArgs,
    ) -> Result<State, ActorProcessingErr> {
        let party = Party::Agent { node: args.node.clone() };
        let events = myself.clone();
        let uplink = UplinkArgs {
            dialer: args.dialer,
            hello: handshake::hello(&args.cluster, party, Incarnation::at(unix_ms()).0),
            patience: None,
            // An agent that has ended needs no news.
            on_event: Box::new(move |event| drop(events.cast(NodeAgentMsg::Uplink(event)))),
        };
        let uplink = Uplink::start(uplink, myself.get_cell()).await?;
        let slot = || Slot {
            restarts: Restarts::new(args.restarts_max),
            incarnation: Incarnation(0),
            started: Instant::now(),
            life: None,
        };
        let slots = std::iter::repeat_with(slot).take(args.devices).collect();
        let (ended, ending, begun) = (Some(args.ended), None, false);
        let NodeAgentArgs { node, home, measuring, joined, .. } = args;
        let (under_way, speeds) = (None, Vec::new());
        let (leaving, examining, copies) = (false, false, HeldCopies::default());
        Ok(State {
            node,
            home,
            uplink,
            slots,
            copies,
            examining,
            begun,
            measuring,
            under_way,
            speeds,
            joined,
            leaving,
            ended,
            ending,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<NodeAgentMsg>,
        message: NodeAgentMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            NodeAgentMsg::StartWorker { index } => state.start_worker(&myself, index).await,
            NodeAgentMsg::WorkerEnded { index, incarnation, status } => {
                state.worker_ended(&myself, index, incarnation, status);
            }
            NodeAgentMsg::Uplink(UplinkEvent::Heard(FromCoordinator::Shutdown))
            | NodeAgentMsg::Stop => state.end(&myself, AgentEnd::Told),
            NodeAgentMsg::Uplink(UplinkEvent::Heard(FromCoordinator::Recycle {
                device,
                incarnation,
            })) => state.recycle(&device, Incarnation(incarnation)),
            NodeAgentMsg::Uplink(UplinkEvent::GaveUp(cause)) => {
                state.give_up(&myself, cause);
            }
            NodeAgentMsg::Uplink(UplinkEvent::Up) => {
                state.joined.send_replace(true);
                state.tell_speeds();
                let held = state.copies.held();
                if !held.is_empty() {
                    state.say(ToCoordinator::CopiesHeld(held));
                }
                if !std::mem::replace(&mut state.begun, true) {
                    state.begin(&myself).await;
                }
            }
            NodeAgentMsg::Measured(speeds) => {
                (state.speeds, state.under_way) = (speeds, None);
                state.tell_speeds();
                state.start_workers(&myself).await;
            }
            NodeAgentMsg::Leave { drain } => state.leave(&myself, drain),
            NodeAgentMsg::Uplink(UplinkEvent::Down(_)) => {
                state.joined.send_replace(false);
                state.copies.stop_coming();
                if state.leaving {
                    // There is nobody to wait for.
                    state.end(&myself, AgentEnd::Told);
                }
            }
            NodeAgentMsg::Uplink(UplinkEvent::Heard(FromCoordinator::Examine(order))) => {
                state.examine(&myself, *order);
            }
            NodeAgentMsg::Examined(mut examination) => {
                state.examining = false;
                examination.sent_us = clock::unix_us();
                state.say(ToCoordinator::Examined(examination));
            }
            NodeAgentMsg::Uplink(UplinkEvent::Heard(order)) => state.about_copies(order),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<NodeAgentMsg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let cause = match event {
            SupervisionEvent::ActorFailed(_, error) => error.to_string(),
            SupervisionEvent::ActorTerminated(_, _, reason) => {
                reason.unwrap_or_else(|| "it ended".into())
            }
            _ => return Ok(()),
        };
        if state.ending.is_some() {
            // The uplink has said good-bye: the last thing this agent waited for.
            state.tell_end();
            myself.stop(None);
        } else {
            state.give_up(&myself, format!("its uplink failed: {cause}"));
        }
        Ok(())
    }
}

impl State {
    /// What the coordinator wants held, sent back or dropped; other orders are not for agents.
    fn about_copies(&mut self, order: FromCoordinator) {
        match order {
            FromCoordinator::HoldCopy(part) => {
                let (key, step) = (part.key, part.step);
                let bytes = self.copies.take(*part);
                self.say(ToCoordinator::CopyTaken { key, step, bytes });
            }
            FromCoordinator::SendCopy { key, step, offset } => {
                let part = self.copies.part(key, step, offset);
                self.say(ToCoordinator::CopyPart(Box::new(part)));
            }
            FromCoordinator::DropCopy { key } => self.copies.drop_copy(&key),
            _ => {}
        }
    }

    /// Looks at this host and its ways to others, beside everything else. One that comes while
    /// another is under way is not answered: whoever asked has given the other one up.
    fn examine(&mut self, myself: &ActorRef<NodeAgentMsg>, order: Examine) {
        if std::mem::replace(&mut self.examining, true) {
            return;
        }
        let (received_us, agent) = (clock::unix_us(), myself.clone());
        tokio::task::spawn_blocking(move || {
            let Examine { number, targets, payload_bytes_max } = order;
            let deadline = Instant::now() + EXAMINE_MAX;
            let findings = host::check();
            let seen = ports::look(&targets, payload_bytes_max, deadline);
            let done = Examination { number, received_us, sent_us: received_us, findings, seen };
            // An agent that has ended answers nobody.
            let _ = agent.cast(NodeAgentMsg::Examined(Box::new(done)));
        });
    }

    fn say(&self, message: ToCoordinator) {
        // An uplink that has ended has told this agent.
        let _ = self.uplink.cast(UplinkMsg::Say(message));
    }

    /// Asks the coordinator to let this node go; ends without its word when that takes too long.
    fn leave(&mut self, myself: &ActorRef<NodeAgentMsg>, drain: Duration) {
        if self.leaving {
            return;
        }
        self.leaving = true;
        if !*self.joined.borrow() {
            return self.end(myself, AgentEnd::Told);
        }
        tracing::info!(?drain, "leaving the cluster");
        let drain_ms = drain.as_millis().try_into().unwrap_or(u32::MAX);
        self.say(ToCoordinator::Leave { drain_ms });
        myself.send_after(drain + RELEASE_MARGIN, || NodeAgentMsg::Stop);
    }

    /// Looks at the devices, then starts their workers.
    async fn begin(&mut self, myself: &ActorRef<NodeAgentMsg>) {
        let Some(measuring) = self.measuring.take() else {
            return self.start_workers(myself).await;
        };
        let agent = myself.clone();
        // An agent that has ended starts no workers.
        let done = move |speeds| drop(agent.cast(NodeAgentMsg::Measured(speeds)));
        self.under_way = Some(measuring.begin(done));
    }

    fn tell_speeds(&self) {
        if !self.speeds.is_empty() {
            self.say(ToCoordinator::Speeds(self.speeds.clone()));
        }
    }

    async fn start_workers(&mut self, myself: &ActorRef<NodeAgentMsg>) {
        for index in 0..self.slots.len() {
            self.start_worker(myself, index).await;
        }
    }

    async fn start_worker(&mut self, myself: &ActorRef<NodeAgentMsg>, index: usize) {
        let device = self.device(index);
        let Some(slot) = self.slots.get_mut(index) else { return };
        if self.ending.is_some() || slot.life.is_some() {
            return;
        }
        let now = Incarnation::at(unix_ms());
        // The clock may have been set back.
        let after = Incarnation::at((slot.incarnation.0 >> 8) + 1);
        slot.incarnation = now.max(after);
        slot.started = Instant::now();
        let incarnation = slot.incarnation;
        let agent = myself.clone();
        let on_end = Box::new(move |status| {
            let ended = NodeAgentMsg::WorkerEnded { index, incarnation, status };
            // An agent that has ended has ended its workers.
            let _ = agent.cast(ended);
        });
        tracing::info!(%device, %incarnation, "starting a worker");
        match self.home.start(index, incarnation, on_end).await {
            Ok(life) => slot.life = Some(life),
            Err(cause) => {
                let ended = NodeAgentMsg::WorkerEnded { index, incarnation, status: cause };
                // To this actor itself: it cannot have ended.
                let _ = myself.cast(ended);
            }
        }
    }

    /// Ends a worker by force; its end starts the next one.
    fn recycle(&mut self, device: &DeviceId, incarnation: Incarnation) {
        let Some(slot) = self.slots.get_mut(device.index as usize) else { return };
        if device.node != self.node || !slot.incarnation.same_process(incarnation) {
            return;
        }
        if let Some(life) = slot.life.replace(closed_life()) {
            tracing::warn!(%device, "a worker that nobody hears is ended");
            // It may have ended this very moment.
            let _ = life.send(());
        }
    }

    fn worker_ended(
        &mut self,
        myself: &ActorRef<NodeAgentMsg>,
        index: usize,
        incarnation: Incarnation,
        status: String,
    ) {
        let device = self.device(index);
        let Some(slot) = self.slots.get_mut(index) else { return };
        if slot.incarnation != incarnation {
            return;
        }
        slot.life = None;
        if self.ending.is_some() {
            return self.leave_if_alone(myself);
        }
        tracing::warn!(%device, %status, "worker ended");
        let pause = slot.restarts.died(slot.started.elapsed());
        let (reported, incarnation) = (device.clone(), incarnation.0);
        self.say(ToCoordinator::WorkerExited { device: reported, incarnation, status });
        match pause {
            Some(pause) => {
                myself.send_after(pause, move || NodeAgentMsg::StartWorker { index });
            }
            None => tracing::error!(%device, "it died too often and is not started again"),
        }
    }

    /// Lets the workers end, then says good-bye.
    /// There is no coordinator any more; who was about to leave has left.
    fn give_up(&mut self, myself: &ActorRef<NodeAgentMsg>, cause: String) {
        if self.leaving {
            tracing::warn!(cause, "left without the coordinator's word");
            return self.end(myself, AgentEnd::Told);
        }
        self.end(myself, AgentEnd::GaveUp(cause));
    }

    fn end(&mut self, myself: &ActorRef<NodeAgentMsg>, end: AgentEnd) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(end);
        self.under_way = None;
        for slot in &mut self.slots {
            if let Some(life) = slot.life.take() {
                drop(life);
                slot.life = Some(closed_life());
            }
        }
        self.leave_if_alone(myself);
    }

    fn leave_if_alone(&mut self, myself: &ActorRef<NodeAgentMsg>) {
        if self.slots.iter().any(|slot| slot.life.is_some()) {
            return;
        }
        let farewell = UplinkMsg::Close("the agent has ended".into());
        if self.uplink.cast(farewell).is_err() {
            self.tell_end();
            myself.stop(None);
        }
    }

    fn tell_end(&mut self) {
        if let (Some(ended), Some(end)) = (self.ended.take(), self.ending.clone()) {
            // Whoever started this agent may have gone.
            let _ = ended.send(end);
        }
    }

    fn device(&self, index: usize) -> DeviceId {
        DeviceId { node: self.node.clone(), index: index as u32 }
    }
}

/// Stands for a worker that was told to end and has not yet.
fn closed_life() -> oneshot::Sender<()> {
    oneshot::channel().0
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
}

//! One life of the coordinator: the product's own desk, and what stands for its sessions, its
//! journal's disk, its groups' actors and its mailbox.
//!
//! Owns what is lost when it dies. What outlives it is the world's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use super::clients::Caller;
use super::controller::Task;
use super::meshes::Mesh;
use super::processes::node_of;
use super::runs::Report;
use super::world::{Order, Wake, World};
use super::{Sabotage, ms};
use crate::coordinator::advance::{Pending, Step, Turns, tick};
use crate::coordinator::desk::Desk;
use crate::coordinator::formation::{Formation, FormationEvent};
use crate::coordinator::memory::Memory;
use crate::dispatcher::{DispatcherEvent, MeshNeed, RequestId};
use crate::journal::Entry;
use crate::journal::keeper::{Journal, Opened, Untended};
use crate::manifest::{CoordinatorSection, Manifest};
use crate::membership::{Incarnation, Member, MembershipEvent, Now};
use crate::protocol::{DeviceId, RequestKey, ToCoordinator};
use crate::request::ModelSource;

const TICK: Now = ms(100);
/// Devices that have not come by then are waited for no longer.
const SETTLE: Now = ms(5_000);

/// What any request needs that names no degrees, or was lost.
const OPEN: MeshNeed = MeshNeed::Open { guided: true };

/// A member's session.
#[derive(Clone, Copy)]
pub(super) struct Session {
    pub(super) incarnation: Incarnation,
    /// Newest epoch the worker had been in when it came.
    pub(super) epoch: u64,
    /// Life of the process.
    pub(super) number: u64,
}

/// What others leave for the coordinator to look at.
#[derive(Clone)]
pub(super) struct Tray<T>(Arc<Mutex<Vec<T>>>);

impl<T> Tray<T> {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Vec::new())))
    }

    pub(super) fn put(&self, what: T) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    fn empty(&self) -> Vec<T> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One life of the coordinator.
pub(super) struct Coordinator {
    pub(super) number: u64,
    began: Now,
    settled: bool,
    pub(super) desk: Desk,
    journal: Untended,
    pub(super) sessions: BTreeMap<Member, Session>,
    /// Who has come and has no verdict yet.
    pub(super) arriving: Option<Session>,
    pub(super) meshes: BTreeMap<u64, Mesh>,
    /// Places of meshes whose proxies stand.
    pub(super) seated: BTreeSet<(DeviceId, u64)>,
    pub(super) tasks: BTreeMap<u64, Task>,
    pub(super) callers: BTreeMap<u64, Caller>,
    pub(super) next_request: u64,
    /// What is to be heard next.
    pub(super) mailbox: VecDeque<Step>,
    /// Requests whose callers have dropped them.
    pub(super) dropped: Tray<RequestId>,
    /// Requests with a checkpoint that nobody has handed on.
    pub(super) fresh: Tray<RequestKey>,
}

impl Coordinator {
    pub(super) fn has_session(&self, member: &Member, incarnation: Incarnation) -> bool {
        self.sessions.get(member).is_some_and(|session| session.incarnation == incarnation)
    }
}

impl World {
    /// The manifest: deadlines are those of a cluster whose steps take milliseconds.
    fn manifest(&self) -> Manifest {
        let mut manifest = Manifest::in_process(ModelSource::Builtin, 1, 1);
        let section = manifest.nodes.remove(0);
        for node in self.processes.nodes() {
            let mut section = section.clone();
            let count = self.processes.devices_of(&node).len();
            section.devices = vec![section.devices[0].clone(); count];
            section.name = node;
            manifest.nodes.push(section);
        }
        manifest.coordinator = Some(CoordinatorSection { node: "elsewhere".into() });
        manifest.health.form_deadline_ms = 20_000;
        manifest.health.step_deadline_ms = 3_000;
        manifest.health.op_deadline_ms = 60_000;
        manifest.launcher.ready_deadline_ms = 40_000;
        manifest
    }

    /// The coordinator's process starts, with what an earlier one wrote down.
    pub(super) fn start_coordinator(&mut self) {
        self.lives += 1;
        let (journal, untended) = Journal::untended();
        let checkpoints = self.checkpoints.iter().map(|(&id, c)| (id, c.as_ref().clone()));
        let opened =
            Opened { remembered: self.remembered.clone(), checkpoints: checkpoints.collect() };
        let dropped = Tray::new();
        let cancel = dropped.clone();
        // Numbers of requests that have ended are used again by nobody, or it could not be judged
        // which of them ended twice.
        let next_request = AtomicU64::new(1_000 * self.lives);
        let unix_ms = self.now.as_millis() as u64;
        let (memory, early) =
            Memory::of(Some((journal, opened)), self.now, unix_ms, &next_request, move |id| {
                cancel.put(id);
            });
        let epochs = if self.is(Sabotage::ForgetEpochs) { 0 } else { memory.epochs };
        let manifest = self.manifest();
        let mut desk = Desk::new(&manifest, memory);
        desk.formation = Some(Formation::new(self.processes.devices(), OPEN, epochs));
        self.coordinator = Some(Coordinator {
            number: self.lives,
            began: self.now,
            settled: false,
            desk,
            journal: untended,
            sessions: BTreeMap::new(),
            arriving: None,
            meshes: BTreeMap::new(),
            seated: BTreeSet::new(),
            tasks: BTreeMap::new(),
            callers: BTreeMap::new(),
            next_request: next_request.into_inner(),
            mailbox: VecDeque::new(),
            dropped,
            fresh: Tray::new(),
        });
        for (id, request, sink) in early {
            self.submit(id, request, sink);
        }
    }

    pub(super) fn tick(&mut self) {
        self.at(TICK, Wake::Tick);
        let now = self.now;
        let Some(coordinator) = &mut self.coordinator else { return };
        coordinator.desk.memory.give_up_orphans(now);
        let settles = !coordinator.settled && now.saturating_sub(coordinator.began) >= SETTLE;
        coordinator.settled |= settles;
        for step in tick() {
            let ignored = match step {
                Step::Stalls => self.is(Sabotage::IgnoreStalls),
                Step::TendCopies => self.is(Sabotage::AwaitCopies),
                Step::Dispatcher(_) => self.is(Sabotage::KeepExpired),
                _ => false,
            };
            if !ignored {
                self.advance(step);
            }
        }
        if settles {
            self.advance(Step::Formation(FormationEvent::Settled));
        }
        self.check_deadlines();
    }

    /// News for the desk, and all that follows from it.
    pub(super) fn advance(&mut self, step: Step) {
        self.post(step);
        self.attend();
    }

    /// Leaves news for the coordinator.
    pub(super) fn post(&mut self, step: Step) {
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.mailbox.push_back(step);
        }
    }

    /// Works off what is in the mailbox, and what comes into it meanwhile.
    pub(super) fn attend(&mut self) {
        while let Some(step) = self.coordinator.as_mut().and_then(|c| c.mailbox.pop_front()) {
            let mut turns = Turns::of(step);
            while let Some(pending) = turns.go_on(self) {
                match pending {
                    Pending::Welcome(member, incarnation) => self.welcome(member, incarnation),
                    Pending::Form(order) => self.form_mesh(order),
                }
            }
            self.look_around();
        }
    }

    /// Looks for what others have left, and works it off.
    pub(super) fn attend_to_all(&mut self) {
        self.look_around();
        self.attend();
    }

    /// What tasks, callers and the disk have to say after each turn.
    fn look_around(&mut self) {
        self.tend_tasks();
        let now = self.now;
        let Some(coordinator) = &mut self.coordinator else { return };
        for key in coordinator.fresh.empty() {
            let commands = coordinator.desk.hand_on(&key);
            coordinator.mailbox.push_back(Step::Copies(commands));
        }
        for id in coordinator.dropped.empty() {
            coordinator.desk.leave_behind(now, id);
            if !coordinator.desk.requests.contains_key(&id) {
                // It is not on the disk yet.
                coordinator.desk.memory.forget(id);
            }
            let cancelled = DispatcherEvent::Cancelled { request: id };
            coordinator.mailbox.push_back(Step::Dispatcher(cancelled));
        }
        let commands = coordinator.desk.memory.drop_ended();
        if !commands.is_empty() {
            coordinator.mailbox.push_back(Step::Copies(commands));
        }
        let number = coordinator.number;
        let (entries, kept) = coordinator.journal.take();
        for entry in entries {
            if let Entry::Ended { request } = entry {
                self.watch.ended(number, request);
                self.checkpoints.remove(&request);
                if self.is(Sabotage::ForgetEnds) {
                    continue;
                }
            }
            self.remembered.add(entry);
        }
        for (request, checkpoint) in kept {
            let (step, digest) = (checkpoint.step as u32, 0);
            self.remembered.add(Entry::Kept { request, step, digest });
            self.reached.insert(request, step + 1);
            self.checkpoints.insert(request, checkpoint);
        }
        self.hear_results();
    }

    fn welcome(&mut self, member: Member, incarnation: Incarnation) {
        let Some(coordinator) = &mut self.coordinator else { return };
        coordinator.desk.memory.note_member(&member, incarnation);
        let arrived = coordinator.arriving.take();
        coordinator.sessions.extend(arrived.map(|session| (member, session)));
    }

    /// What a member says arrives.
    pub(super) fn said(&mut self, member: Member, incarnation: Incarnation, report: Report) {
        let node = node_of(&member).to_owned();
        if self.network.away.contains(&node) {
            return self.network.hold(&node, Wake::Said(member, incarnation, report));
        }
        let Some(coordinator) = &mut self.coordinator else { return };
        let message = match report {
            Report::Hello { epoch, number } => {
                coordinator.arriving = Some(Session { incarnation, epoch, number });
                let address = String::new();
                let joined = MembershipEvent::Joined { member, incarnation, address };
                return self.advance(Step::Membership(joined));
            }
            _ if !coordinator.has_session(&member, incarnation) => return,
            Report::Closed => {
                coordinator.sessions.remove(&member);
                let reason = "closed".to_owned();
                let closed = MembershipEvent::SessionClosed { member, incarnation, reason };
                return self.advance(Step::Membership(closed));
            }
            Report::Message(message) => message,
        };
        let heard = MembershipEvent::Heard { member: member.clone(), incarnation };
        self.advance(Step::Membership(heard));
        match (message, member) {
            (ToCoordinator::Heartbeat { .. }, _) => {}
            (ToCoordinator::WorkerExited { device, incarnation, status }, Member::Agent(_)) => {
                let incarnation = Incarnation(incarnation);
                let exited = MembershipEvent::WorkerExited { device, incarnation, status };
                self.advance(Step::Membership(exited));
            }
            (message, Member::Agent(node)) => self.advance(Step::CopiesSaid(node, message)),
            (message, Member::Worker(device)) => self.rank_says(&device, message),
        }
    }

    /// Closes a session, which its member notices.
    pub(super) fn hang_up(&mut self, member: &Member, session: Session) {
        if let Member::Worker(device) = member {
            self.order(device, session, Order::Closed);
        }
    }
}

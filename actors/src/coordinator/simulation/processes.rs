//! Processes and what connects them: agents and workers that die, freeze and come back, sessions to
//! the coordinator, cuts between nodes.
//!
//! Owns who is up and who reaches whom. Messages of one sender to one receiver arrive in the order
//! in which they were sent; while the way is cut they wait, as on a connection that retransmits.

use std::collections::{BTreeMap, BTreeSet};

use super::coordinator::Session;
use super::ms;
use super::runs::{Report, Worker};
use super::world::{Order, Wake, World};
use crate::agent::copies::HeldCopies;
use crate::membership::{Incarnation, Member, Now};
use crate::protocol::{DeviceId, ToCoordinator};

/// Between signs of life.
const HEARTBEAT: Now = ms(200);
/// Until a process tries again to reach the coordinator.
const RECONNECT: Now = ms(250);

/// Whether a process is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Down,
    Up,
}

/// An agent or a worker.
pub(super) struct Process {
    pub(super) life: Life,
    pub(super) is_frozen: bool,
    /// Counts its lives.
    pub(super) number: u64,
    /// Of its session.
    pub(super) incarnation: Incarnation,
    /// The life of the coordinator that its session is with, and since when.
    session: Option<(u64, Now)>,
    /// What reached it while it was frozen.
    late: Vec<Wake>,
    /// When the last message to the coordinator, and from it, arrives.
    last: [Now; 2],
    /// The next thing that it computes does not end.
    pub(super) hang: bool,
    /// Its ranks, where it is a worker.
    pub(super) worker: Worker,
    /// Where it is an agent.
    pub(super) copies: HeldCopies,
}

impl Process {
    fn new() -> Self {
        Self {
            life: Life::Down,
            is_frozen: false,
            number: 0,
            incarnation: Incarnation(0),
            session: None,
            late: Vec::new(),
            last: [Now::ZERO; 2],
            hang: false,
            worker: Worker::default(),
            copies: HeldCopies::default(),
        }
    }

    /// Whether it has a session with this life of the coordinator.
    pub(super) fn is_with(&self, life: u64) -> bool {
        self.session.is_some_and(|(with, _)| with == life)
    }

    /// Whether this session is the one that it has.
    pub(super) fn has_session(&self, session: &Session) -> bool {
        self.session.is_some() && self.incarnation == session.incarnation
    }

    /// Whether it is in this life of it, not frozen, and all that it computes ends.
    pub(super) fn is_well(&self, number: u64) -> bool {
        self.number == number && self.life == Life::Up && !self.is_frozen && !self.worker.hangs()
    }

    /// What reaches it while it is frozen.
    pub(super) fn later(&mut self, wake: Wake) {
        self.late.push(wake);
    }
}

/// All processes.
pub(super) struct Processes(BTreeMap<Member, Process>);

impl Processes {
    /// So many devices, dealt to nodes in turn.
    pub(super) fn of(devices: u64, nodes: u64) -> Self {
        let mut all = BTreeMap::new();
        for index in 0..devices {
            let node = format!("n{}", index % nodes);
            all.insert(Member::Agent(node.clone()), Process::new());
            let device = DeviceId { node, index: (index / nodes) as u32 };
            all.insert(Member::Worker(device), Process::new());
        }
        Self(all)
    }

    pub(super) fn nodes(&self) -> Vec<String> {
        let nodes = self.0.keys().filter_map(|member| match member {
            Member::Agent(node) => Some(node.clone()),
            Member::Worker(_) => None,
        });
        nodes.collect()
    }

    pub(super) fn devices(&self) -> Vec<DeviceId> {
        let devices = self.0.keys().filter_map(|member| match member {
            Member::Worker(device) => Some(device.clone()),
            Member::Agent(_) => None,
        });
        devices.collect()
    }

    pub(super) fn devices_of(&self, node: &str) -> Vec<DeviceId> {
        self.devices().into_iter().filter(|device| device.node == node).collect()
    }

    pub(super) fn get(&self, member: &Member) -> Option<&Process> {
        self.0.get(member)
    }

    pub(super) fn get_mut(&mut self, member: &Member) -> Option<&mut Process> {
        self.0.get_mut(member)
    }

    /// The process of a device, in this life of it and only while it can act.
    pub(super) fn acting(&mut self, device: &DeviceId, number: u64) -> Option<&mut Process> {
        let process = self.0.get_mut(&Member::Worker(device.clone()))?;
        (process.number == number && process.life == Life::Up && !process.is_frozen)
            .then_some(process)
    }

    pub(super) fn workers(&self) -> impl Iterator<Item = (&DeviceId, &Process)> {
        self.0.iter().filter_map(|(member, process)| match member {
            Member::Worker(device) => Some((device, process)),
            Member::Agent(_) => None,
        })
    }
}

/// Who cannot reach whom.
#[derive(Default)]
pub(super) struct Network {
    /// Nodes without a way to the coordinator.
    pub(super) away: BTreeSet<String>,
    /// What waits for a way to the coordinator or from there, in order.
    held: BTreeMap<String, Vec<Wake>>,
    /// Since when there is a way again.
    back: BTreeMap<String, Now>,
    /// Pairs of nodes without a way to each other.
    pub(super) cut: BTreeSet<(String, String)>,
    /// The same, for good.
    pub(super) severed: BTreeSet<(String, String)>,
}

impl Network {
    /// Keeps what cannot arrive at a node, or from it.
    pub(super) fn hold(&mut self, node: &str, wake: Wake) {
        self.held.entry(node.to_owned()).or_default().push(wake);
    }

    /// Since when the coordinator can reach a node.
    pub(super) fn reached_since(&self, node: &str) -> Option<Now> {
        let back = self.back.get(node).copied().unwrap_or_default();
        (!self.away.contains(node)).then_some(back)
    }

    /// There is a way again, and what waited for it goes on.
    pub(super) fn mend(&mut self, node: &str, now: Now) -> Vec<Wake> {
        self.away.remove(node);
        self.back.insert(node.to_owned(), now);
        self.held.remove(node).unwrap_or_default()
    }

    pub(super) fn joins(&self, a: &str, b: &str) -> bool {
        let pairs = [(a.to_owned(), b.to_owned()), (b.to_owned(), a.to_owned())];
        a == b || !pairs.iter().any(|pair| self.cut.contains(pair) || self.severed.contains(pair))
    }
}

pub(super) fn node_of(member: &Member) -> &str {
    match member {
        Member::Agent(node) => node,
        Member::Worker(device) => &device.node,
    }
}

impl World {
    /// Starts a process.
    pub(super) fn boot(&mut self, member: &Member) {
        if let Member::Worker(device) = member {
            match self.processes.get(&Member::Agent(device.node.clone())) {
                Some(agent) if agent.life == Life::Up && !agent.is_frozen => {}
                Some(agent) if agent.life == Life::Up => {
                    let again = super::faults::Fault::KillWorker(device.clone());
                    return self.at(ms(200), Wake::Mend(again));
                }
                _ => return,
            }
        }
        let now = self.now;
        let Some(process) = self.processes.get_mut(member) else { return };
        if process.life == Life::Up {
            return;
        }
        let number = process.number + 1;
        // Started in this very millisecond there may have been another life.
        let incarnation = Incarnation::at(1_000_000 + now.as_millis() as u64 * 16 + number % 16);
        *process =
            Process { life: Life::Up, number, incarnation, last: process.last, ..Process::new() };
        let after = self.dice.between(5, 80);
        self.at(after, Wake::Connect(member.clone(), number));
        self.at(after + HEARTBEAT, Wake::Heartbeat(member.clone(), number));
    }

    /// Ends a process; those it had to do with notice.
    pub(super) fn kill(&mut self, member: &Member) {
        let Some(process) = self.processes.get_mut(member) else { return };
        if process.life == Life::Down {
            return;
        }
        let (incarnation, number) = (process.incarnation, process.number);
        let last = process.last;
        *process = Process { number, incarnation, last, ..Process::new() };
        self.tell_coordinator(member, incarnation, Report::Closed);
        let Member::Worker(device) = member else { return };
        self.notice_death(device, number);
        let agent = Member::Agent(device.node.clone());
        let sees = self.processes.get(&agent).filter(|agent| agent.life == Life::Up);
        if let Some(of_agent) = sees.map(|agent| agent.incarnation) {
            let exited = Report::Message(ToCoordinator::WorkerExited {
                device: device.clone(),
                incarnation: incarnation.0,
                status: "killed".to_owned(),
            });
            self.tell_coordinator(&agent, of_agent, exited);
            let after = self.dice.between(100, 400);
            self.at(after, Wake::Mend(super::faults::Fault::KillWorker(device.clone())));
        }
    }

    /// A frozen process goes on, with all that came meanwhile.
    pub(super) fn thaw(&mut self, member: &Member, number: u64) {
        let Some(process) = self.processes.get_mut(member) else { return };
        if process.number != number || !process.is_frozen {
            return;
        }
        process.is_frozen = false;
        for wake in std::mem::take(&mut process.late) {
            self.at(Now::ZERO, wake);
        }
    }

    /// Whether a worker's process can take what happens to it now; a frozen one takes it later.
    pub(super) fn takes(
        &mut self,
        device: &DeviceId,
        number: u64,
        wake: impl FnOnce() -> Wake,
    ) -> bool {
        let Some(process) = self.processes.get_mut(&Member::Worker(device.clone())) else {
            return false;
        };
        if process.number != number || process.life == Life::Down {
            return false;
        }
        if process.is_frozen {
            process.late.push(wake());
            return false;
        }
        true
    }

    pub(super) fn connect(&mut self, member: &Member, number: u64) {
        let away = self.network.away.contains(node_of(member));
        let life = self.coordinator.as_ref().map(|coordinator| coordinator.number);
        let now = self.now;
        let Some(process) = self.processes.get_mut(member) else { return };
        if process.number != number || process.life == Life::Down || process.session.is_some() {
            return;
        }
        let Some(life) = life.filter(|_| !process.is_frozen && !away) else {
            return self.at(RECONNECT, Wake::Connect(member.clone(), number));
        };
        process.session = Some((life, now));
        // Every session of a process has a number of its own.
        process.incarnation = process.incarnation.next_session().unwrap_or(process.incarnation);
        let (incarnation, epoch) = (process.incarnation, process.worker.newest_epoch);
        let held = process.copies.held();
        self.tell_coordinator(member, incarnation, Report::Hello { epoch, number });
        if !held.is_empty() {
            self.tell_coordinator(
                member,
                incarnation,
                Report::Message(ToCoordinator::CopiesHeld(held)),
            );
        }
    }

    pub(super) fn heartbeat(&mut self, member: &Member, number: u64) {
        let away = self.network.away.contains(node_of(member));
        let Some(process) = self.processes.get(member) else { return };
        if process.number != number || process.life == Life::Down {
            return;
        }
        self.at(HEARTBEAT, Wake::Heartbeat(member.clone(), number));
        let Some(process) = self.processes.get(member) else { return };
        if process.is_frozen || away {
            return;
        }
        let Some((life, since)) = process.session else { return };
        let incarnation = process.incarnation;
        let settled = self.now.saturating_sub(since) > ms(150);
        let known = self.coordinator.as_ref().is_some_and(|current| {
            current.number == life && (!settled || current.has_session(member, incarnation))
        });
        match known {
            true => self.tell_coordinator(
                member,
                incarnation,
                Report::Message(ToCoordinator::Heartbeat { sequence: 0 }),
            ),
            false => self.session_lost(member),
        }
    }

    /// A process has lost the coordinator: its ranks are worth nothing, and it calls again.
    pub(super) fn session_lost(&mut self, member: &Member) {
        let Some(process) = self.processes.get_mut(member) else { return };
        process.session = None;
        process.worker.leave_all();
        process.copies.stop_coming();
        let number = process.number;
        let after = self.dice.between(10, 200);
        self.at(after, Wake::Connect(member.clone(), number));
    }

    /// Something goes from a process to the coordinator.
    pub(super) fn tell_coordinator(
        &mut self,
        member: &Member,
        incarnation: Incarnation,
        report: Report,
    ) {
        let arrives = self.now + self.dice.between(1, 5);
        let Some(process) = self.processes.get_mut(member) else { return };
        let arrives = arrives.max(process.last[0] + Now::from_micros(1));
        process.last[0] = arrives;
        self.at(arrives - self.now, Wake::Said(member.clone(), incarnation, report));
    }

    /// Something goes from the coordinator to a worker, over that session.
    pub(super) fn order(&mut self, device: &DeviceId, session: Session, order: Order) {
        let arrives = self.now + self.dice.between(1, 5);
        let member = Member::Worker(device.clone());
        let Some(process) = self.processes.get_mut(&member) else { return };
        let arrives = arrives.max(process.last[1] + Now::from_micros(1));
        process.last[1] = arrives;
        self.at(arrives - self.now, Wake::Ordered(device.clone(), session, order));
    }
}

//! Ranks at work: they join meshes and walk through the programs of real plans.
//!
//! Owns what a worker accepts. The controller walks through its own program the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::processes::RETRANSMIT;
use super::walker::{Inbox, Next, Walker};
use super::world::{Order, Wake, World};
use super::{Sabotage, ms};
use crate::membership::{Incarnation, Member, Now};
use crate::plan::Plan;
use crate::plan::message::MessageKind;
use crate::protocol::{DeviceId, ToCoordinator};

/// Longest time to reach the other ranks of a mesh that forms.
const LINKS_WITHIN: Now = ms(3_000);

/// From a process to the coordinator.
#[derive(Clone, Debug)]
pub(super) enum Report {
    Hello {
        epoch: u64,
        number: u64,
    },
    Heartbeat,
    /// Its session is over.
    Closed,
    WorkerExited(DeviceId, Incarnation),
    Formed(u64),
    /// Why, and whom the rank did not reach, where it was that.
    FormFailed(u64, String, Option<DeviceId>),
    RunEnded {
        epoch: u64,
        run: u64,
        outcome: Result<(), Fault>,
    },
    /// Of an agent.
    Copies(ToCoordinator),
}

/// Why a rank's run failed.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) cause: String,
    /// The member to whom the link is gone, where that is to blame.
    pub(super) peer: Option<usize>,
}

/// A mesh as a rank joins it.
#[derive(Clone, Debug)]
pub(super) struct Form {
    pub(super) epoch: u64,
    pub(super) rank: usize,
    pub(super) beside: bool,
    /// By rank, with the life of the process that is meant.
    pub(super) members: Arc<Vec<(DeviceId, u64)>>,
}

#[derive(Clone, Debug)]
pub(super) struct Start {
    pub(super) epoch: u64,
    pub(super) run: u64,
    pub(super) plan: Arc<Plan>,
}

/// A frame on its way.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) epoch: u64,
    pub(super) run: u64,
    pub(super) from: usize,
    /// Life of the process that sent it; 0 is the controller's.
    pub(super) life: u64,
    pub(super) tag: u64,
    pub(super) kind: MessageKind,
    pub(super) step: u16,
    /// Rank and device; `None` is the controller, of this life of the coordinator.
    pub(super) to: Result<DeviceId, u64>,
}

/// A mesh that a worker is in.
struct Seat {
    form: Form,
    runs: BTreeMap<u64, Walker>,
    inbox: Inbox,
    /// Ranks to whom the link is gone.
    broken: BTreeSet<usize>,
}

/// A worker's meshes.
#[derive(Default)]
pub(super) struct Worker {
    pub(super) newest_epoch: u64,
    forming: BTreeMap<u64, (Form, Now)>,
    seats: BTreeMap<u64, Seat>,
}

impl Worker {
    pub(super) fn leave_all(&mut self) {
        self.forming.clear();
        self.seats.clear();
    }

    /// Epochs of the meshes in which the process of this life is a mate.
    fn mates_of(&self, device: &DeviceId, life: u64) -> Vec<(u64, usize)> {
        let seats = self.seats.iter().filter_map(|(&epoch, seat)| {
            let mate = |(other, number): &(DeviceId, u64)| other == device && *number == life;
            Some((epoch, seat.form.members.iter().position(mate)?))
        });
        seats.collect()
    }

    /// The longest wait: since when, and for what.
    pub(super) fn oldest_wait(&self) -> Option<(Now, u64, usize)> {
        let runs = self
            .seats
            .iter()
            .flat_map(|(&epoch, seat)| seat.runs.values().map(move |walker| (epoch, walker)));
        let waits = runs.filter_map(|(epoch, walker)| {
            walker.waits.map(|((from, _), since)| (since, epoch, from))
        });
        waits.min()
    }
}

impl World {
    /// A worker hears from the coordinator.
    pub(super) fn ordered(&mut self, device: &DeviceId, number: u64, order: Order) {
        let again = Wake::Ordered(device.clone(), number, order.clone());
        if self.network.away.contains(&device.node) {
            return self.at(RETRANSMIT, again);
        }
        if !self.takes(device, number, || again) {
            return;
        }
        let now = self.now;
        let Some(process) = self.processes.acting(device, number) else { return };
        let worker = &mut process.worker;
        match order {
            Order::Form(form) if form.epoch <= worker.newest_epoch => {
                let cause = format!("epoch {} is not after {}", form.epoch, worker.newest_epoch);
                self.report(device, Report::FormFailed(form.epoch, cause, None));
            }
            Order::Form(form) => {
                worker.newest_epoch = form.epoch;
                if !form.beside {
                    worker.leave_all();
                }
                let epoch = form.epoch;
                worker.forming.insert(epoch, (form, now));
                let after = self.dice.between(20, 300);
                self.at(after, Wake::Loaded(device.clone(), number, epoch));
            }
            Order::Start(start) => {
                let Some(seat) = worker.seats.get_mut(&start.epoch) else {
                    let cause = format!("epoch {} is not formed here", start.epoch);
                    let outcome = Err(Fault { cause, peer: None });
                    let Start { epoch, run, .. } = start;
                    return self.report(device, Report::RunEnded { epoch, run, outcome });
                };
                let walker = Walker::new(&start.plan, seat.form.rank);
                let broken = walker.peers.iter().find(|peer| seat.broken.contains(peer)).copied();
                seat.runs.insert(start.run, walker);
                match broken {
                    Some(peer) => self.fail_at_link(device, number, start.run, peer),
                    None => self.walk(device, number, start.epoch, start.run),
                }
            }
            Order::Abort(run) => self.stop(device, number, run, "aborted", None),
            Order::Dissolve(epoch) => {
                worker.forming.remove(&epoch);
                worker.seats.remove(&epoch);
            }
            Order::Closed => self.session_lost(&Member::Worker(device.clone())),
        }
    }

    fn report(&mut self, device: &DeviceId, report: Report) {
        let member = Member::Worker(device.clone());
        let Some(process) = self.processes.get(&member) else { return };
        let incarnation = process.incarnation;
        self.say(&member, incarnation, report);
    }

    /// A rank's part is loaded: it reaches for the others.
    pub(super) fn loaded(&mut self, device: &DeviceId, number: u64, epoch: u64) {
        if !self.takes(device, number, || Wake::Loaded(device.clone(), number, epoch)) {
            return;
        }
        let Some(process) = self.processes.acting(device, number) else { return };
        let Some((form, since)) = process.worker.forming.get(&epoch).cloned() else { return };
        let missing = form.members.iter().find(|(mate, life)| {
            let member = Member::Worker(mate.clone());
            let there = self.processes.get(&member).is_some_and(|process| {
                process.number == *life
                    && !process.is_frozen
                    && process.worker.newest_epoch >= epoch
            });
            !there || !self.network.joins(&device.node, &mate.node)
        });
        if let Some((mate, _)) = missing.cloned() {
            if self.now.saturating_sub(since) < LINKS_WITHIN {
                return self.at(ms(100), Wake::Loaded(device.clone(), number, epoch));
            }
            let cause = format!("no link to {mate}");
            if let Some(process) = self.processes.acting(device, number) {
                process.worker.forming.remove(&epoch);
            }
            return self.report(device, Report::FormFailed(epoch, cause, Some(mate)));
        }
        let Some(process) = self.processes.acting(device, number) else { return };
        process.worker.forming.remove(&epoch);
        let (runs, inbox, broken) = (BTreeMap::new(), Inbox::new(), BTreeSet::new());
        let seat = Seat { form, runs, inbox, broken };
        process.worker.seats.insert(epoch, seat);
        self.report(device, Report::Formed(epoch));
    }

    /// A rank goes on as far as it can.
    fn walk(&mut self, device: &DeviceId, number: u64, epoch: u64, run: u64) {
        loop {
            let now = self.now;
            let Some(process) = self.processes.acting(device, number) else { return };
            let Some(seat) = process.worker.seats.get_mut(&epoch) else { return };
            let Seat { form, runs, inbox, .. } = seat;
            let Some(walker) = runs.get_mut(&run).filter(|walker| !walker.computes) else { return };
            match walker.next(run, inbox, now) {
                Next::Wait => return,
                Next::Compute => {
                    walker.computes = true;
                    let after = self.dice.between(1, 6);
                    return self
                        .at(after, Wake::Computed { device: device.clone(), life: number, run });
                }
                Next::Done => {
                    runs.remove(&run);
                    inbox.retain(|(of, ..)| *of != run);
                    return self.report(device, Report::RunEnded { epoch, run, outcome: Ok(()) });
                }
                Next::Send(to, message) => {
                    let (from, members) = (form.rank, Arc::clone(&form.members));
                    let desk = self.desk.as_ref().map_or(0, |desk| desk.number);
                    let frame = Frame {
                        epoch,
                        run,
                        from,
                        life: number,
                        tag: message.tag().0,
                        kind: message.kind,
                        step: message.step,
                        to: members.get(to).map(|(mate, _)| mate.clone()).ok_or(desk),
                    };
                    self.send(frame, Some(&device.node));
                }
            }
        }
    }

    /// A frame leaves; some take long.
    pub(super) fn send(&mut self, frame: Frame, from: Option<&str>) {
        let slow = self.dice.roll(60) == 0;
        let after = if slow { self.dice.between(20, 700) } else { self.dice.between(0, 2) };
        let cut = match (&frame.to, from) {
            (Ok(to), Some(from)) => !self.network.joins(from, &to.node),
            _ => false,
        };
        // What goes into a cut is lost with the link, which its ends notice.
        if !cut {
            self.at(after, Wake::Arrived(frame));
        }
    }

    pub(super) fn arrived(&mut self, frame: Frame) {
        let device = match &frame.to {
            Ok(device) => device.clone(),
            Err(desk) => return self.controller_gets(*desk, frame),
        };
        let member = Member::Worker(device.clone());
        let Some(number) = self.processes.get(&member).map(|process| process.number) else {
            return;
        };
        let again = Wake::Arrived(frame.clone());
        if !self.takes(&device, number, || again) {
            return;
        }
        let blind = self.is(Sabotage::TakeStaleFrames);
        let Some(process) = self.processes.acting(&device, number) else { return };
        let worker = &mut process.worker;
        let fits = |seat: &Seat| {
            let life = seat.form.members.get(frame.from).map_or(0, |(_, life)| *life);
            let own = seat.form.members.get(seat.form.rank).map(|(_, life)| *life);
            seat.form.epoch == frame.epoch && life == frame.life && own == Some(number)
        };
        let epoch = match worker.seats.get(&frame.epoch) {
            Some(seat) if fits(seat) => frame.epoch,
            _ if !blind => return,
            _ => match worker.seats.last_key_value() {
                Some((&newest, _)) => newest,
                None => return,
            },
        };
        let Some(seat) = worker.seats.get_mut(&epoch) else { return };
        let right = fits(seat);
        seat.inbox.insert((frame.run, frame.from, frame.tag));
        let Frame { run, from, .. } = frame;
        let what = format!("{device} in epoch {epoch} took a frame of epoch {}", frame.epoch);
        self.watch.accepted(right, format!("{what}, run {run}, rank {from}"));
        self.walk(&device, number, epoch, run);
    }

    pub(super) fn computed(&mut self, device: &DeviceId, life: u64, run: u64) {
        let again = || Wake::Computed { device: device.clone(), life, run };
        if !self.takes(device, life, again) {
            return;
        }
        let Some(process) = self.processes.acting(device, life) else { return };
        let seat = process.worker.seats.iter_mut().find(|(_, seat)| seat.runs.contains_key(&run));
        let Some((&epoch, seat)) = seat else { return };
        if let Some(walker) = seat.runs.get_mut(&run) {
            walker.hangs = std::mem::take(&mut process.hang);
            if walker.hangs {
                return;
            }
            walker.computes = false;
        }
        self.walk(device, life, epoch, run);
    }

    /// A rank ends a run that is not to go on.
    fn stop(&mut self, device: &DeviceId, number: u64, run: u64, cause: &str, peer: Option<usize>) {
        let Some(process) = self.processes.acting(device, number) else { return };
        let seats = process.worker.seats.iter_mut();
        let mut hit = None;
        for (&epoch, seat) in seats {
            if seat.runs.get(&run).is_some_and(|walker| walker.hangs) {
                continue;
            }
            if seat.runs.remove(&run).is_some() {
                seat.inbox.retain(|(of, ..)| *of != run);
                hit = Some(epoch);
            }
        }
        if let Some(epoch) = hit {
            let outcome = Err(Fault { cause: cause.to_owned(), peer });
            self.report(device, Report::RunEnded { epoch, run, outcome });
        }
    }

    /// The mates of a process that has died notice.
    pub(super) fn notice_death(&mut self, device: &DeviceId, life: u64) {
        let mut notices = Vec::new();
        for (mate, process) in self.processes.workers() {
            for (epoch, peer) in process.worker.mates_of(device, life) {
                notices.push((mate.clone(), process.number, epoch, peer));
            }
        }
        for (device, life, epoch, peer) in notices {
            let after = self.dice.between(5, 80);
            self.at(after, Wake::LinkLost { device, life, epoch, peer });
        }
    }

    /// The ranks on two nodes notice that there is no way between them.
    pub(super) fn break_links(&mut self, a: &str, b: &str) {
        let mut notices = Vec::new();
        for (device, process) in self.processes.workers() {
            for (mate, other) in self.processes.workers() {
                let apart =
                    (device.node == a && mate.node == b) || (device.node == b && mate.node == a);
                if apart {
                    for (epoch, peer) in process.worker.mates_of(mate, other.number) {
                        notices.push((device.clone(), process.number, epoch, peer));
                    }
                }
            }
        }
        for (device, life, epoch, peer) in notices {
            let after = self.dice.between(300, 1_500);
            self.at(after, Wake::LinkLost { device, life, epoch, peer });
        }
    }

    pub(super) fn link_lost(&mut self, device: &DeviceId, life: u64, epoch: u64, peer: usize) {
        let again = || Wake::LinkLost { device: device.clone(), life, epoch, peer };
        if !self.takes(device, life, again) {
            return;
        }
        let Some(process) = self.processes.acting(device, life) else { return };
        let Some(seat) = process.worker.seats.get_mut(&epoch) else { return };
        seat.broken.insert(peer);
        let linked = seat.runs.iter().filter(|(_, walker)| walker.peers.contains(&peer));
        let runs: Vec<u64> = linked.map(|(&run, _)| run).collect();
        for run in runs {
            self.fail_at_link(device, life, run, peer);
        }
    }

    fn fail_at_link(&mut self, device: &DeviceId, life: u64, run: u64, peer: usize) {
        self.stop(device, life, run, &format!("no link to rank {peer}"), Some(peer));
    }

    /// Nobody waits too long who can be told.
    pub(super) fn check_waits(&mut self) {
        let mut waits = Vec::new();
        for (device, process) in self.processes.workers() {
            if !process.is_frozen
                && let Some((since, epoch, from)) = process.worker.oldest_wait()
            {
                waits.push((since, format!("{device} waits for rank {from} of epoch {epoch}")));
            }
        }
        for (since, who) in waits {
            self.watch.waits(since, self.now, who);
        }
    }
}

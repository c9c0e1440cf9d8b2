//! Frames between ranks: on their way, taken, or lost with their link.
//!
//! Owns which frames a rank accepts, and that senders hear what was taken. What ranks make of frames
//! is the seat's.

use super::Sabotage;
use super::seat::Seat;
use super::world::{Wake, World};
use crate::membership::Member;
use crate::plan::message::Message;
use crate::protocol::DeviceId;

/// A frame on its way.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) epoch: u64,
    pub(super) run: u64,
    pub(super) from: usize,
    /// Life of the process that sent it; 0 is the controller's.
    pub(super) life: u64,
    pub(super) message: Message,
    /// Rank and device; `None` is the controller, of this life of the coordinator.
    pub(super) to: Result<DeviceId, u64>,
}

impl World {
    /// A frame of this run, from that member and with that tag is taken, which its sender hears.
    pub(super) fn taken(
        &mut self,
        epoch: u64,
        members: &[(DeviceId, u64)],
        (run, from, tag): (u64, usize, u64),
        by: usize,
    ) {
        // The controller waits for nobody to take what it sends.
        let Some((device, life)) = members.get(from) else { return };
        let process = self.processes.get_mut(&Member::Worker(device.clone()));
        let Some(process) = process.filter(|process| process.number == *life) else { return };
        let seat = process.worker.seats.get_mut(&epoch);
        if seat.is_some_and(|seat| seat.taken(run, by, tag)) {
            let after = self.dice.between(0, 2);
            let (device, life) = (device.clone(), *life);
            self.at(after, Wake::Taken { device, life, epoch });
        }
    }

    /// A rank hears that what it waits for was taken.
    pub(super) fn hears_taken(&mut self, device: &DeviceId, life: u64, epoch: u64) {
        if self.takes(device, life, || Wake::Taken { device: device.clone(), life, epoch }) {
            self.work(device, life, epoch);
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
            Err(life) => return self.controller_gets(*life, frame),
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
        seat.take(&frame);
        let Frame { run, from, .. } = frame;
        let what = format!("{device} in epoch {epoch} took a frame of epoch {}", frame.epoch);
        self.watch.accepted(right, format!("{what}, run {run}, rank {from}"));
        self.work(&device, number, epoch);
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
        seat.lose_link(peer);
        self.work(device, life, epoch);
    }
}

//! What goes wrong, and how it ends.

use super::processes::Life;
use super::world::{FAULTS_END, Wake, World};
use crate::coordinator::advance::Step;
use crate::membership::{Member, MembershipEvent, Now};
use crate::protocol::DeviceId;

/// One of so many cuts is never mended.
const CUTS_TO_STAY: u64 = 8;

/// A fault.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// A worker's process dies; its agent starts another.
    KillWorker(DeviceId),
    /// An agent dies, and its workers with it; somebody starts it again.
    KillAgent(String),
    /// A process stops for a while: its socket is alive, it is not.
    Freeze(Member, u64),
    /// What a worker computes next does not end; it is heard all the same.
    Hang(DeviceId),
    /// A node and the coordinator cannot reach each other.
    Partition(String),
    /// Two nodes cannot reach each other; the coordinator reaches both. Some stay so.
    Cut(String, String),
    /// A node is asked to leave; once it has gone it comes again.
    Leave(String),
    /// The coordinator's process dies.
    KillCoordinator,
}

impl World {
    pub(super) fn schedule_fault(&mut self) {
        let after = self.dice.between(100, 1_500);
        if self.now + after >= FAULTS_END {
            return;
        }
        let fault = self.draw_fault();
        self.at(after, Wake::Fault(fault));
    }

    fn draw_fault(&mut self) -> Fault {
        let devices = self.processes.devices();
        let nodes = self.processes.nodes();
        let device = devices[self.dice.roll(devices.len() as u64) as usize].clone();
        let node = nodes[self.dice.roll(nodes.len() as u64) as usize].clone();
        match self.dice.roll(14) {
            0..=3 => Fault::KillWorker(device),
            4 => Fault::KillAgent(node),
            5..=6 => Fault::Freeze(Member::Worker(device), 0),
            7 => Fault::Freeze(Member::Agent(node), 0),
            8 => Fault::Partition(node),
            9..=10 if nodes.len() > 1 => {
                let others: Vec<&String> = nodes.iter().filter(|other| **other != node).collect();
                let other = others[self.dice.roll(others.len() as u64) as usize].clone();
                Fault::Cut(node, other)
            }
            11 => Fault::Leave(node),
            12 => Fault::Hang(device),
            _ => Fault::KillCoordinator,
        }
    }

    /// A fault begins; its end is scheduled.
    pub(super) fn fault(&mut self, fault: Fault) {
        self.schedule_fault();
        self.faults += 1;
        self.note(|| format!("FAULT {fault:?}"));
        let (fault, lasts) = match fault {
            Fault::KillWorker(device) => {
                // Its agent sees it and starts another.
                self.kill(&Member::Worker(device));
                return;
            }
            Fault::KillAgent(node) => {
                for device in self.processes.devices_of(&node) {
                    self.kill(&Member::Worker(device));
                }
                self.kill(&Member::Agent(node.clone()));
                (Fault::KillAgent(node), self.dice.between(300, 3_000))
            }
            Fault::Freeze(member, _) => {
                let lasts = self.dice.between(200, 3_500);
                let Some(process) = self.processes.get_mut(&member) else { return };
                if process.life == Life::Down || process.is_frozen {
                    return;
                }
                process.is_frozen = true;
                (Fault::Freeze(member, process.number), lasts)
            }
            Fault::Partition(node) => {
                self.network.away.insert(node.clone());
                (Fault::Partition(node), self.dice.between(300, 4_000))
            }
            Fault::Cut(a, b) if self.dice.roll(CUTS_TO_STAY) == 0 => {
                self.break_links(&a, &b);
                self.network.severed.insert((a, b));
                return;
            }
            Fault::Cut(a, b) => {
                self.network.cut.insert((a.clone(), b.clone()));
                self.break_links(&a, &b);
                (Fault::Cut(a, b), self.dice.between(300, 4_000))
            }
            Fault::Leave(node) => {
                let drain = self.dice.between(500, 6_000);
                if self.coordinator.is_some() {
                    self.advance(Step::Membership(MembershipEvent::Leave { node, drain }));
                    self.advance(Step::Vacated);
                }
                return;
            }
            Fault::Hang(device) => {
                if let Some(process) = self.processes.get_mut(&Member::Worker(device)) {
                    process.hang = process.life == Life::Up;
                }
                return;
            }
            Fault::KillCoordinator => {
                self.coordinator = None;
                self.waits.clear();
                if self.dice.roll(2) == 0 {
                    // What it kept of checkpoints is lost with it.
                    self.note(|| "its checkpoints are lost".to_owned());
                    self.checkpoints.clear();
                }
                let kept = self.checkpoints.iter().map(|(&id, c)| (id, c.step as u32 + 1));
                self.reached = kept.collect();
                (Fault::KillCoordinator, self.dice.between(200, 1_500))
            }
        };
        self.at(lasts, Wake::Mend(fault));
    }

    /// A fault is over.
    pub(super) fn mend(&mut self, fault: Fault) {
        self.note(|| format!("MENDED {fault:?}"));
        match fault {
            Fault::Leave(_) | Fault::Hang(_) => {}
            Fault::KillWorker(device) => self.boot(&Member::Worker(device)),
            Fault::KillAgent(node) => {
                self.boot(&Member::Agent(node.clone()));
                for device in self.processes.devices_of(&node) {
                    self.boot(&Member::Worker(device));
                }
            }
            Fault::Freeze(member, number) => self.thaw(&member, number),
            Fault::Partition(node) => {
                let held = self.network.mend(&node, self.now);
                held.into_iter().for_each(|wake| self.at(Now::ZERO, wake));
            }
            Fault::Cut(a, b) => drop(self.network.cut.remove(&(a, b))),
            Fault::KillCoordinator if self.coordinator.is_none() => self.start_coordinator(),
            Fault::KillCoordinator => {}
        }
    }
}

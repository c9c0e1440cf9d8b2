//! Agents: the holders of copies, and the order to end.

use super::faults::Fault;
use super::ms;
use super::runs::Report;
use super::world::{FAULTS_END, Wake, World};
use crate::membership::{Incarnation, Member};
use crate::protocol::{FromCoordinator, ToCoordinator};

impl World {
    /// An agent hears something, if its session is still with that life of the coordinator.
    pub(super) fn agent_ordered(&mut self, node: String, life: u64, message: FromCoordinator) {
        if self.network.away.contains(&node) {
            let again = Wake::AgentOrdered(node.clone(), life, message);
            return self.network.hold(&node, again);
        }
        let asked_back = matches!(message, FromCoordinator::SendCopy { .. });
        if asked_back && self.now < FAULTS_END && self.dice.roll(4) == 0 {
            return self.note(|| format!("{node} does not send its copy back"));
        }
        let member = Member::Agent(node.clone());
        let Some(agent) = self.processes.get_mut(&member) else { return };
        if !agent.is_with(life) {
            return;
        }
        if agent.is_frozen {
            return agent.later(Wake::AgentOrdered(node, life, message));
        }
        let answer = match message {
            FromCoordinator::HoldCopy(part) => {
                let (key, step) = (part.key, part.step);
                ToCoordinator::CopyTaken { key, step, bytes: agent.copies.take(*part) }
            }
            FromCoordinator::SendCopy { key, step, offset } => {
                let part = agent.copies.part(key, step, offset);
                self.recalls += u64::from(!part.bytes.is_empty());
                ToCoordinator::CopyPart(Box::new(part))
            }
            FromCoordinator::DropCopy { key } => return agent.copies.drop_copy(&key),
            FromCoordinator::Recycle { device, incarnation } => {
                let worker = Member::Worker(device);
                let there = self.processes.get(&worker);
                if there.is_some_and(|w| w.incarnation.same_process(Incarnation(incarnation))) {
                    self.stalls += 1;
                    self.kill(&worker);
                }
                return;
            }
            FromCoordinator::Shutdown => {
                // After a while somebody starts it again.
                self.kill(&member);
                return self.at(ms(1_000), Wake::Mend(Fault::KillAgent(node)));
            }
            _ => return,
        };
        let incarnation = agent.incarnation;
        self.tell_coordinator(&member, incarnation, Report::Message(answer));
    }
}

//! Nodes that leave in order, and come again.

use super::faults::Fault;
use super::ms;
use super::world::{Wake, World};
use crate::membership::{Member, MembershipEvent};

impl World {
    /// A node asks to leave.
    pub(super) fn leave(&mut self, node: String) {
        let drain = self.dice.between(500, 6_000);
        self.member(MembershipEvent::Leave { node, drain });
        self.let_go();
    }

    /// Lets draining nodes go whose devices no mesh uses any more.
    pub(super) fn let_go(&mut self) {
        let Some(desk) = &self.desk else { return };
        let unused = |node: &String| {
            let devices = self.processes.devices_of(node);
            !devices.iter().any(|device| desk.formation.is_used(device))
        };
        let vacated: Vec<String> = desk.membership.draining().into_iter().filter(unused).collect();
        for node in vacated {
            self.member(MembershipEvent::Vacated { node });
        }
    }

    /// A node may go: its processes end, the agent first, and after a while somebody starts them
    /// again.
    pub(super) fn released(&mut self, node: String) {
        self.note(|| format!("node {node} has left"));
        self.kill(&Member::Agent(node.clone()));
        for device in self.processes.devices_of(&node) {
            self.kill(&Member::Worker(device));
        }
        self.at(ms(1_000), Wake::Mend(Fault::KillAgent(node)));
    }
}

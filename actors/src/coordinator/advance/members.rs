//! What membership's word leads to.

use super::{Hands, Step, Turns};
use crate::coordinator::formation::FormationEvent;
use crate::membership::{Loss, Member, MembershipCommand};
use crate::protocol::{DeviceId, FromCoordinator};

impl Turns {
    pub(super) fn carry_out_membership(
        &mut self,
        hands: &mut impl Hands,
        command: MembershipCommand,
    ) {
        match command {
            // Handed out by `go_on`.
            MembershipCommand::Accept(..) => {}
            MembershipCommand::Refuse(member, _, refusal) => {
                tracing::warn!(%member, %refusal, "member refused");
                hands.refuse(&member, &refusal);
            }
            MembershipCommand::CloseSession(member, incarnation, loss) => {
                hands.close_session(&member, incarnation, &loss);
            }
            MembershipCommand::Suspect(member, silent) => {
                tracing::warn!(%member, ?silent, "member is suspect");
            }
            MembershipCommand::Recovered(member) => {
                tracing::info!(%member, "member was heard again");
            }
            MembershipCommand::NodeReady(node) => tracing::info!(node, "node is there"),
            MembershipCommand::NodeLost(node, cause) => {
                tracing::warn!(node, %cause, "node lost");
                let desk = hands.desk();
                let left = desk.membership.is_leaving(&node);
                let copies = desk.memory.copies.node_gone(&node);
                hands.node_gone(&node, left);
                self.later.push_back(Step::Copies(copies));
            }
            MembershipCommand::DeviceLeaving(device) => {
                self.then_formation(FormationEvent::DeviceLeaving(device));
            }
            MembershipCommand::Release(node) => release(hands, &node),
            MembershipCommand::Quarantined(member, length) => {
                tracing::warn!(%member, ?length, "it dies too often and is not counted on");
            }
            MembershipCommand::CutsChanged => {
                tracing::warn!(cuts = ?hands.desk().membership.cuts(), "links between workers");
                self.then_formation(FormationEvent::CutsChanged);
            }
            MembershipCommand::DeviceReady(device) => {
                if let Some(epoch) = hands.newest_epoch(&device) {
                    self.then_formation(FormationEvent::DeviceReady { device, epoch });
                }
            }
            MembershipCommand::DeviceLost(device, loss) => {
                tracing::warn!(%device, cause = %loss, "device lost");
                recycle(hands, &device, &loss);
                hands.unseat(&device, &loss);
                self.then_formation(FormationEvent::DeviceLost(device));
            }
        }
    }
}

/// A worker that is silent while its agent is not, or hangs, will not come back by itself.
fn recycle(hands: &mut impl Hands, device: &DeviceId, loss: &Loss) {
    if let Loss::Silent { .. } | Loss::Hung { .. } = loss {
        let life = hands.desk().membership.incarnation(&Member::Worker(device.clone()));
        let (agent, device) = (Member::Agent(device.node.clone()), device.clone());
        hands.say(&agent, FromCoordinator::Recycle { device, incarnation: life.0 });
    }
}

/// A node may end. The one that hosts the coordinator stays, unless it is the last one.
fn release(hands: &mut impl Hands, node: &str) {
    let desk = hands.desk();
    let others = desk.membership.nodes_there().into_iter().any(|other| other != node);
    if node == desk.host {
        if others {
            tracing::info!(node, "its devices are out; it stays as the coordinator's host");
        } else {
            tracing::info!(node, "the last node leaves, and the cluster ends");
            hands.shut_down();
        }
        return;
    }
    tracing::info!(node, "node may go");
    let workers = desk.membership.devices_of(node).into_iter().map(Member::Worker);
    // The agent first: it would start its workers again.
    for member in std::iter::once(Member::Agent(node.into())).chain(workers) {
        hands.say(&member, FromCoordinator::Shutdown);
    }
}

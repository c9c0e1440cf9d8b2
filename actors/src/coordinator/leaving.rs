//! Nodes that leave: drained, at their deadline, or because somebody says so.
//!
//! Owns what is done for a node on its way out. When that is, is membership's; which mesh follows
//! is formation's. The node that hosts the coordinator takes its devices out and stays, unless it
//! is the last one: then the cluster ends.

use std::time::Duration;

use ractor::ActorRef;

use super::formation::FormationEvent;
use super::{CoordinatorMsg, State};
use crate::membership::{Member, MembershipEvent};
use crate::protocol::{DeviceId, FromCoordinator};

/// Longest time to drain that can be asked for.
pub(super) const DRAIN_MAX: Duration = Duration::from_secs(24 * 3600);

impl State {
    /// Begins to take a node out.
    pub(super) async fn leave(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        node: String,
        drain: Duration,
    ) -> Result<String, String> {
        if !self.membership.knows(&node) {
            return Err(format!("there is no node {node} in this cluster"));
        }
        if !self.membership.is_there(&node) {
            return Err(format!(
                "node {node} is not there; `ditmesh force-leave {node}` forgets it"
            ));
        }
        let drain = drain.min(DRAIN_MAX);
        tracing::info!(node, ?drain, "node leaves");
        let answer = format!("node {node} leaves within {} s", drain.as_secs());
        self.member(myself, MembershipEvent::Leave { node, drain }).await;
        self.let_go(myself).await;
        Ok(answer)
    }

    /// Declares a node gone.
    pub(super) async fn force_leave(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        node: String,
    ) -> Result<String, String> {
        if !self.membership.knows(&node) {
            return Err(format!("there is no node {node} in this cluster"));
        }
        if node == self.manifest.coordinator_node() {
            return Err(format!(
                "node {node} hosts the coordinator; `ditmesh down` ends the cluster"
            ));
        }
        tracing::warn!(node, "node is forced to leave");
        self.memory.note_forced(&node, true);
        self.member(myself, MembershipEvent::ForceLeave { node: node.clone() }).await;
        self.forget_joined(&node);
        Ok(format!("node {node} is gone"))
    }

    /// Lets draining nodes go whose devices no mesh uses any more.
    pub(super) async fn let_go(&mut self, myself: &ActorRef<CoordinatorMsg>) {
        for node in self.membership.draining() {
            let devices = self.devices_of(&node);
            let formation = self.formation.as_ref();
            let used = |device: &DeviceId| formation.is_some_and(|f| f.is_used(device));
            if !devices.iter().any(used) {
                self.member(myself, MembershipEvent::Vacated { node }).await;
            }
        }
    }

    /// A device is to be used no more.
    pub(super) async fn device_leaving(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        device: DeviceId,
    ) {
        self.form(myself, FormationEvent::DeviceLeaving(device)).await;
    }

    /// A node may end.
    pub(super) fn release(&mut self, node: &str) {
        let others = self.membership.nodes_there().into_iter().any(|other| other != node);
        if node == self.manifest.coordinator_node() {
            if others {
                tracing::info!(node, "its devices are out; it stays as the coordinator's host");
            } else {
                tracing::info!(node, "the last node leaves, and the cluster ends");
                self.sessions.shut_down();
            }
            return;
        }
        tracing::info!(node, "node may go");
        // The agent first: it would start its workers again.
        let agent = Member::Agent(node.into());
        let workers = self.devices_of(node).into_iter().map(Member::Worker);
        for member in std::iter::once(agent).chain(workers) {
            if let Some(session) = self.sessions.get(&member) {
                session.handle.send(FromCoordinator::Shutdown);
            }
        }
    }

    /// A node's agent is gone: one that had joined and was leaving is forgotten with it.
    pub(super) fn node_gone(&mut self, node: &str) {
        if self.membership.is_leaving(node) {
            self.forget_joined(node);
        }
    }

    fn forget_joined(&mut self, node: &str) {
        if self.joins.forget(node) {
            std::sync::Arc::make_mut(&mut self.manifest).nodes.retain(|known| known.name != node);
            self.membership.forget(node);
        }
    }

    fn devices_of(&self, node: &str) -> Vec<DeviceId> {
        let count = self.manifest.nodes.iter().find(|known| known.name == node);
        let count = count.map_or(0, |known| known.devices.len() as u32);
        (0..count).map(|index| DeviceId { node: node.into(), index }).collect()
    }
}

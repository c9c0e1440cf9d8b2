//! Nodes that leave: drained, at their deadline, or because somebody says so.
//!
//! Owns who may ask for it and what is answered. When a node goes is membership's, which mesh
//! follows is formation's, and what that leads to is in `advance`. The node that hosts the
//! coordinator takes its devices out and stays, unless it is the last one: then the cluster ends.

use std::time::Duration;

use ractor::ActorRef;

use super::advance::Step;
use super::{CoordinatorMsg, State};
use crate::membership::MembershipEvent;

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
        if !self.desk.membership.knows(&node) {
            return Err(format!("there is no node {node} in this cluster"));
        }
        if !self.desk.membership.is_there(&node) {
            return Err(format!(
                "node {node} is not there; `ditmesh force-leave {node}` forgets it"
            ));
        }
        let drain = drain.min(DRAIN_MAX);
        tracing::info!(node, ?drain, "node leaves");
        let answer = format!("node {node} leaves within {} s", drain.as_secs());
        self.member(myself, MembershipEvent::Leave { node, drain }).await;
        self.advance(myself, Step::Vacated).await;
        Ok(answer)
    }

    /// Declares a node gone.
    pub(super) async fn force_leave(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        node: String,
    ) -> Result<String, String> {
        if !self.desk.membership.knows(&node) {
            return Err(format!("there is no node {node} in this cluster"));
        }
        if node == self.manifest.coordinator_node() {
            return Err(format!(
                "node {node} hosts the coordinator; `ditmesh down` ends the cluster"
            ));
        }
        tracing::warn!(node, "node is forced to leave");
        self.desk.memory.note_forced(&node, true);
        self.member(myself, MembershipEvent::ForceLeave { node: node.clone() }).await;
        self.forget_joined(&node);
        Ok(format!("node {node} is gone"))
    }

    /// Forgets a node that had joined.
    pub(super) fn forget_joined(&mut self, node: &str) {
        if self.joins.forget(node) {
            std::sync::Arc::make_mut(&mut self.manifest).nodes.retain(|known| known.name != node);
            self.desk.membership.forget(node);
            self.speeds.remove(node);
        }
    }
}

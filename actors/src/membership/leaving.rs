//! Nodes on their way out: how far each is, and until when it may take.
//!
//! Owns the three ways to go: drained (leaving, then released), out of time, forced.

use std::collections::{BTreeMap, BTreeSet};

use super::Now;

/// Where a node is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// Its devices take no new work; at the deadline they are taken out.
    Draining { deadline: Now },
    /// It may go.
    Released,
}

/// The nodes that leave.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    nodes: BTreeMap<String, Leave>,
    forced: BTreeSet<String>,
}

impl Leaving {
    /// Begins; false when the node is leaving already.
    pub(super) fn begin(&mut self, node: &str, deadline: Now) -> bool {
        if self.nodes.contains_key(node) {
            return false;
        }
        self.nodes.insert(node.into(), Leave::Draining { deadline });
        true
    }

    /// Lets a draining node go; false when it is not draining.
    pub(super) fn release(&mut self, node: &str) -> bool {
        match self.nodes.get_mut(node) {
            Some(leave @ Leave::Draining { .. }) => {
                *leave = Leave::Released;
                true
            }
            _ => false,
        }
    }

    /// Nodes whose time to drain is over.
    pub(super) fn overdue(&self, now: Now) -> Vec<String> {
        let overdue = self.nodes.iter().filter(|(_, leave)| match leave {
            Leave::Draining { deadline } => *deadline <= now,
            Leave::Released => false,
        });
        overdue.map(|(node, _)| node.clone()).collect()
    }

    pub(super) fn force(&mut self, node: &str) {
        self.forced.insert(node.into());
        self.nodes.insert(node.into(), Leave::Released);
    }

    /// It is back, or has gone for good.
    pub(super) fn forget(&mut self, node: &str) {
        self.nodes.remove(node);
    }

    /// A node that was forced out may come again.
    pub(super) fn pardon(&mut self, node: &str) {
        self.forced.remove(node);
        self.nodes.remove(node);
    }

    pub(super) fn is_forced(&self, node: &str) -> bool {
        self.forced.contains(node)
    }

    pub(super) fn is_leaving(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    /// Whether nothing more is expected of it.
    pub(super) fn is_released(&self, node: &str) -> bool {
        self.nodes.get(node) == Some(&Leave::Released)
    }

    pub(super) fn draining(&self) -> Vec<String> {
        let draining = self.nodes.iter().filter(|(_, leave)| **leave != Leave::Released);
        draining.map(|(node, _)| node.clone()).collect()
    }
}

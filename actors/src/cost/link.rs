//! What links sustain: by class (same host, other host) or measured between two nodes.
//!
//! Owns plain numbers in SI units. Invariant about contention: devices of a node share its
//! uplink, so [`LinkProfile::bytes_per_s`] between nodes is that of the node, not of a pair of
//! devices, while within a node each device has it to itself.

use serde::{Deserialize, Serialize};

/// One direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkProfile {
    /// Payload bytes per second.
    pub bytes_per_s: f64,
    /// From the end of sending to the receiver's wake-up, seconds.
    pub latency_s: f64,
    /// What each message costs the sender's compute thread whatever its size, seconds.
    pub message_s: f64,
}

impl LinkProfile {
    /// Whether every value can be reckoned with.
    pub fn is_sound(&self) -> bool {
        let cost = |value: f64| value.is_finite() && value >= 0.0;
        self.bytes_per_s.is_finite()
            && self.bytes_per_s > 0.0
            && cost(self.latency_s)
            && cost(self.message_s)
    }
}

/// A link between two named nodes, both ways.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeLink {
    /// One node.
    pub a: String,
    /// The other; the same as `a` for devices of one node.
    pub b: String,
    /// What it sustains.
    pub link: LinkProfile,
}

impl NodeLink {
    /// Whether it is between these two, either way round.
    pub fn joins(&self, one: &str, other: &str) -> bool {
        (self.a == one && self.b == other) || (self.a == other && self.b == one)
    }
}

/// The links of a cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Links {
    /// Between devices of one node.
    pub same_node: LinkProfile,
    /// Between nodes.
    pub other_node: LinkProfile,
    /// Pairs of nodes that differ from their class.
    #[serde(default)]
    pub pairs: Vec<NodeLink>,
}

impl Links {
    /// Links that nobody has measured: loopback within a node, gigabit Ethernet between nodes.
    pub fn unmeasured() -> Self {
        Self {
            same_node: LinkProfile { bytes_per_s: 500e6, latency_s: 100e-6, message_s: 20e-6 },
            other_node: LinkProfile { bytes_per_s: 110e6, latency_s: 300e-6, message_s: 20e-6 },
            pairs: Vec::new(),
        }
    }

    /// The link from a device of node `from` to another device, of node `to`.
    pub fn between(&self, from: &str, to: &str) -> LinkProfile {
        match self.pairs.iter().rev().find(|pair| pair.joins(from, to)) {
            Some(pair) => pair.link,
            None if from == to => self.same_node,
            None => self.other_node,
        }
    }

    /// Whether every link can be reckoned with.
    pub fn is_sound(&self) -> bool {
        let pairs = self.pairs.iter().map(|pair| &pair.link);
        pairs.chain([&self.same_node, &self.other_node]).all(LinkProfile::is_sound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measured_pair_goes_before_its_class_both_ways() {
        let mut links = Links::unmeasured();
        let measured = LinkProfile { bytes_per_s: 1e9, latency_s: 5e-6, message_s: 0.0 };
        links.pairs.push(NodeLink { a: "a".into(), b: "b".into(), link: measured });
        assert_eq!(links.between("a", "b"), measured);
        assert_eq!(links.between("b", "a"), measured);
        assert_eq!(links.between("a", "a"), links.same_node);
        assert_eq!(links.between("a", "c"), links.other_node);
    }
}

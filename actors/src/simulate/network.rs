//! The links of a cluster in virtual time: queues of messages at ports that have a rate.
//!
//! Within a node a message passes the sender's and the receiver's port; between nodes it passes
//! the uplink of one node and the downlink of the other, which all devices of the node share. Each
//! port serves messages in the order they were sent, and a message passes its ports at once (cut
//! through), so a long message does not pay its length twice.
//! Invariant: messages are offered in the order of their times.

use crate::cost::cluster::Cluster;
use crate::cost::link::LinkProfile;

/// All ports and when each is free again, in seconds.
pub(super) struct Network {
    node_of: Vec<usize>,
    links: Vec<Vec<LinkProfile>>,
    device_out: Vec<f64>,
    device_in: Vec<f64>,
    node_out: Vec<f64>,
    node_in: Vec<f64>,
}

impl Network {
    /// `members` members on the devices of `cluster` in order, the controller last.
    pub(super) fn new(cluster: &Cluster, members: usize) -> Self {
        let nodes = cluster.devices.iter().map(|device| device.node);
        let mut node_of: Vec<usize> = nodes.take(members - 1).collect();
        node_of.push(cluster.controller_node);
        let between = |from: &String, to: &String| cluster.links.between(from, to);
        let row =
            |from: &String| cluster.nodes.iter().map(|to| between(from, to)).collect::<Vec<_>>();
        Self {
            device_out: vec![0.0; node_of.len()],
            device_in: vec![0.0; node_of.len()],
            node_out: vec![0.0; cluster.nodes.len()],
            node_in: vec![0.0; cluster.nodes.len()],
            links: cluster.nodes.iter().map(row).collect(),
            node_of,
        }
    }

    /// Whether the two members sit on different nodes.
    pub(super) fn crosses(&self, from: usize, to: usize) -> bool {
        self.node_of[from] != self.node_of[to]
    }

    /// What the link between two members sustains.
    pub(super) fn link(&self, from: usize, to: usize) -> LinkProfile {
        self.links[self.node_of[from]][self.node_of[to]]
    }

    /// Offers `bytes` at time `at`; when they are all there.
    pub(super) fn send(&mut self, from: usize, to: usize, bytes: u64, at: f64) -> f64 {
        let link = self.link(from, to);
        let busy = bytes as f64 / link.bytes_per_s;
        let (out, into) = if self.crosses(from, to) {
            let (a, b) = (self.node_of[from], self.node_of[to]);
            (&mut self.node_out[a], &mut self.node_in[b])
        } else {
            (&mut self.device_out[from], &mut self.device_in[to])
        };
        let leaves = at.max(*out);
        *out = leaves + busy;
        let enters = leaves.max(*into);
        *into = enters + busy;
        enters + busy + link.latency_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::device::DeviceProfile;
    use crate::cost::link::Links;

    fn network() -> Network {
        let link = |bytes_per_s| LinkProfile { bytes_per_s, latency_s: 0.5, message_s: 0.0 };
        let links = Links { same_node: link(10.0), other_node: link(1.0), pairs: Vec::new() };
        let cluster = Cluster::uniform(2, 2, &DeviceProfile::unmeasured_cpu(1), links);
        Network::new(&cluster, 5)
    }

    #[test]
    fn devices_of_a_node_share_its_uplink_and_not_each_others_ports() {
        let mut network = network();
        assert_eq!(network.send(0, 2, 10, 0.0), 10.5);
        assert_eq!(network.send(1, 3, 10, 0.0), 20.5, "behind the other device's message");
        assert_eq!(network.send(2, 0, 10, 0.0), 10.5, "the other direction is free");
        assert_eq!(network.send(0, 1, 10, 0.0), 1.5, "and so is the way inside the node");
        assert_eq!(network.send(1, 0, 10, 0.0), 1.5);
    }
}

//! The devices of a cluster as a planner sees them: where each is and what it sustains.
//!
//! Owns nothing that is measured; it puts a manifest and a [`Calibration`] together. Invariant:
//! device `i` is the one that rank `i` of a mesh runs on.

use super::calibration::{Calibration, device_name};
use super::device::DeviceProfile;
use super::link::{LinkProfile, Links, NodeLink};
use crate::manifest::{LinkClass, LinkSection, Manifest, NodeSection};
use crate::parallel::vae::worth::Pace;
use crate::request::Dtype;

/// Devices whose rates differ by less than this factor are alike: measurements of one device do.
const ALIKE: f64 = 1.25;

/// One device.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// `node/index`.
    pub name: String,
    /// Position of its node in [`Cluster::nodes`].
    pub node: usize,
    /// What it sustains.
    pub profile: DeviceProfile,
    /// Name of the profile, when one was found.
    pub profile_name: Option<String>,
}

/// Devices, nodes and links.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// In rank order.
    pub devices: Vec<Device>,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// What connects them.
    pub links: Links,
    /// Whether the links were measured or given.
    pub links_known: bool,
    /// Node that hosts the coordinator.
    pub controller_node: usize,
}

impl Cluster {
    /// The devices of the manifest's first group, with what was measured of them.
    pub fn of(manifest: &Manifest, calibration: &Calibration) -> Self {
        let named = manifest.groups.first().map_or(&[][..], |group| &group.nodes);
        let serves = |node: &&NodeSection| named.is_empty() || named.contains(&node.name);
        let mut cluster = Self {
            devices: Vec::new(),
            nodes: Vec::new(),
            links: links(manifest, calibration),
            links_known: calibration.links.is_some() || !manifest.links.is_empty(),
            controller_node: 0,
        };
        for (index, node) in manifest.nodes.iter().filter(serves).enumerate() {
            if node.name == manifest.coordinator_node() {
                cluster.controller_node = index;
            }
            cluster.nodes.push(node.name.clone());
            cluster.devices.extend(devices(node, index, calibration));
        }
        cluster
    }

    /// `nodes` nodes of `per_node` devices alike.
    pub fn uniform(nodes: usize, per_node: usize, profile: &DeviceProfile, links: Links) -> Self {
        let device = |index: usize| Device {
            name: format!("{}/{}", index / per_node, index % per_node),
            node: index / per_node,
            profile: profile.clone(),
            profile_name: None,
        };
        Self {
            devices: (0..nodes * per_node).map(device).collect(),
            nodes: (0..nodes).map(|node| format!("node-{node}")).collect(),
            links,
            links_known: true,
            controller_node: 0,
        }
    }

    /// Adds a node, or takes its devices for others than before, by what was measured of them
    /// there.
    pub fn take_in(&mut self, node: &NodeSection, calibration: &Calibration) {
        let at = self.nodes.iter().position(|name| *name == node.name).unwrap_or_else(|| {
            self.nodes.push(node.name.clone());
            self.nodes.len() - 1
        });
        self.devices.retain(|device| device.node != at);
        self.devices.extend(devices(node, at, calibration));
    }

    /// Takes what was measured between two nodes in place of what was known; false where the
    /// manifest says something else, which stands.
    pub fn learn(&mut self, given: &[LinkSection], measured: NodeLink) -> bool {
        let NodeLink { a, b, .. } = &measured;
        let class = if a == b { LinkClass::SameNode } else { LinkClass::OtherNode };
        let is_given = given.iter().any(|section| match section.nodes.as_slice() {
            [one, other] => (one, other) == (a, b) || (one, other) == (b, a),
            _ => section.class == class,
        });
        if is_given {
            return false;
        }
        self.links.pairs.retain(|pair| !pair.joins(a, b));
        self.links.pairs.push(measured);
        self.links_known = true;
        true
    }

    /// The cluster of the devices with these names, in that order.
    pub fn of_devices(&self, names: &[String]) -> Self {
        let named = |name: &String| self.devices.iter().find(|device| device.name == *name);
        let devices = names.iter().filter_map(named).cloned().collect();
        Self { devices, ..self.clone() }
    }

    /// The same devices, those first that are clearly faster, in products of `dtype`; devices that
    /// are alike stay in their order. `None` when they are in that order, or some are not measured.
    pub fn fastest_first(&self, dtype: Dtype) -> Option<Self> {
        if self.unmeasured() > 0 {
            return None;
        }
        let rate = |&at: &usize| self.devices[at].profile.gemm_flops_per_s.of(dtype);
        let mut by_rate: Vec<usize> = (0..self.devices.len()).collect();
        by_rate.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
        let (mut order, mut rest) = (Vec::new(), by_rate.as_slice());
        while let Some(fastest) = rest.first() {
            let count = rest.partition_point(|at| rate(at) * ALIKE > rate(fastest)).max(1);
            let (alike, slower) = rest.split_at(count);
            let from = order.len();
            order.extend_from_slice(alike);
            order[from..].sort_unstable();
            rest = slower;
        }
        let devices = order.iter().map(|&at| self.devices[at].clone()).collect();
        (!order.is_sorted()).then(|| Self { devices, ..self.clone() })
    }

    /// Most devices of one node.
    pub fn devices_per_node(&self) -> usize {
        let count = |node| self.devices.iter().filter(|device| device.node == node).count();
        (0..self.nodes.len()).map(count).max().unwrap_or(0)
    }

    /// The slowest device and the slowest link among them, for work that all share.
    pub fn pace(&self) -> Pace {
        let rate = |device: &&Device| device.profile.gemm_flops_per_s.f32;
        let slowest = self.devices.iter().min_by(|a, b| rate(a).total_cmp(&rate(b)));
        let apart = self.devices.iter().any(|device| Some(device.node) != self.first_node());
        let class = if apart { self.links.other_node } else { self.links.same_node };
        let measured = self.links.pairs.iter().filter(|pair| (pair.a != pair.b) == apart);
        let links = measured.map(|pair| pair.link);
        let slower = |a: &LinkProfile, b: &LinkProfile| a.bytes_per_s.total_cmp(&b.bytes_per_s);
        Pace {
            device: slowest
                .map_or_else(|| DeviceProfile::unmeasured_cpu(1), |device| device.profile.clone()),
            link: links.min_by(slower).unwrap_or(class),
        }
    }

    fn first_node(&self) -> Option<usize> {
        self.devices.first().map(|device| device.node)
    }

    /// Devices whose speed is a guess.
    pub fn unmeasured(&self) -> usize {
        self.devices.iter().filter(|device| device.profile_name.is_none()).count()
    }
}

/// Measured links, with what the manifest says over them.
fn links(manifest: &Manifest, calibration: &Calibration) -> Links {
    let mut links = calibration.links();
    for section in &manifest.links {
        match (section.nodes.as_slice(), section.class) {
            ([a, b], _) => {
                let (a, b, link) = (a.clone(), b.clone(), section.profile());
                links.pairs.push(NodeLink { a, b, link });
            }
            (_, LinkClass::SameNode) => links.same_node = section.profile(),
            (_, LinkClass::OtherNode) => links.other_node = section.profile(),
        }
    }
    links
}

fn devices<'a>(
    node: &'a NodeSection,
    at: usize,
    calibration: &'a Calibration,
) -> impl Iterator<Item = Device> + 'a {
    node.devices.iter().enumerate().map(move |(index, section)| {
        let threads = section.threads.unwrap_or(1);
        let name = section.profile.clone().unwrap_or_else(|| device_name(threads));
        let found = calibration.devices.get(&name);
        let mut profile = found.cloned().unwrap_or_else(|| DeviceProfile::unmeasured_cpu(threads));
        profile.memory_bytes = section.memory_bytes.unwrap_or(profile.memory_bytes);
        Device {
            name: format!("{}/{index}", node.name),
            node: at,
            profile,
            profile_name: found.map(|_| name),
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn work_that_all_share_goes_at_the_pace_of_the_slowest() {
        let (fast, slow) = (DeviceProfile::unmeasured_cpu(4), DeviceProfile::unmeasured_cpu(1));
        let mut cluster = Cluster::uniform(2, 1, &fast, Links::unmeasured());
        let class = cluster.links.other_node;
        assert_eq!(cluster.pace(), Pace { device: fast.clone(), link: class });
        cluster.devices[1].profile = slow.clone();
        let link = LinkProfile { bytes_per_s: 5e9, ..class };
        cluster.links.pairs = vec![NodeLink { a: "node-0".into(), b: "node-1".into(), link }];
        assert_eq!(cluster.pace(), Pace { device: slow, link }, "a measured pair before its class");
        let one = cluster.of_devices(&["0/0".to_owned()]);
        assert_eq!(one.pace(), Pace { device: fast, link: Links::unmeasured().same_node });
    }
}

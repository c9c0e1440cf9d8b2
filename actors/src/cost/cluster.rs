//! The devices of a cluster as a planner sees them: where each is and what it sustains.
//!
//! Owns nothing that is measured; it puts a manifest and a [`Calibration`] together. Invariant:
//! device `i` is the one that rank `i` of a mesh runs on.

use super::calibration::{Calibration, device_name};
use super::device::DeviceProfile;
use super::link::{Links, NodeLink};
use crate::manifest::{LinkClass, Manifest, NodeSection};

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

    /// The cluster of the devices with these names, in that order.
    pub fn of_devices(&self, names: &[String]) -> Self {
        let named = |name: &String| self.devices.iter().find(|device| device.name == *name);
        let devices = names.iter().filter_map(named).cloned().collect();
        Self { devices, ..self.clone() }
    }

    /// Most devices of one node.
    pub fn devices_per_node(&self) -> usize {
        let count = |node| self.devices.iter().filter(|device| device.node == node).count();
        (0..self.nodes.len()).map(count).max().unwrap_or(0)
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

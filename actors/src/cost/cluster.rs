//! The devices of a cluster as a planner sees them: where each is and what it sustains.
//!
//! Owns nothing that is measured; it puts a manifest, a [`Calibration`] and what agents say of
//! their own devices together. Invariants: device `i` is the one that rank `i` of a mesh runs on; a
//! device that nobody measured is never compared by a guess with one of its kind that was, but is
//! taken to be like that.

use super::calibration::{Calibration, of_device};
use super::device::DeviceProfile;
use super::link::{LinkProfile, Links, NodeLink};
use crate::manifest::{DeviceKind, DeviceSection, LinkClass, LinkSection, Manifest, NodeSection};
use crate::parallel::vae::worth::Pace;
use crate::protocol::DeviceSpeed;
use crate::request::Dtype;

/// Devices whose rates differ by less than this factor are alike: measurements of one device do.
pub(crate) const ALIKE: f64 = 1.25;

/// One device.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// `node/index`.
    pub name: String,
    /// Position of its node in [`Cluster::nodes`].
    pub node: usize,
    /// What the manifest says of it.
    pub section: DeviceSection,
    /// What it sustains.
    pub profile: DeviceProfile,
    /// Name of the profile, when it was measured.
    pub profile_name: Option<String>,
}

impl Device {
    /// What it was measured to sustain in linear layers of `dtype`.
    pub fn flops_per_s(&self, dtype: Dtype) -> Option<f64> {
        self.profile_name.as_ref().map(|_| self.profile.gemm_flops_per_s.of(dtype))
    }

    /// The manifest names its profile, and there is one of that name: it stands.
    fn is_given(&self) -> bool {
        self.section.profile.is_some() && self.section.profile == self.profile_name
    }

    /// Gives it a profile; what memory it has is the manifest's to say, where it does.
    fn set(&mut self, profile: DeviceProfile, name: Option<String>) {
        let memory_bytes = self.section.memory_bytes.unwrap_or(profile.memory_bytes);
        self.profile = DeviceProfile { memory_bytes, ..profile };
        self.profile_name = name;
    }
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
        cluster.assume();
        cluster
    }

    /// `nodes` nodes of `per_node` devices alike.
    pub fn uniform(nodes: usize, per_node: usize, profile: &DeviceProfile, links: Links) -> Self {
        let device = |index: usize| Device {
            name: format!("{}/{}", index / per_node, index % per_node),
            node: index / per_node,
            section: DeviceSection::default(),
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

    /// Adds a node, or takes its devices for others than before; nobody has measured them.
    pub fn take_in(&mut self, node: &NodeSection) {
        let at = self.nodes.iter().position(|name| *name == node.name).unwrap_or_else(|| {
            self.nodes.push(node.name.clone());
            self.nodes.len() - 1
        });
        self.devices.retain(|device| device.node != at);
        self.devices.extend(devices(node, at, &Calibration::default()));
        self.assume();
    }

    /// Takes what a node's agent knows of its devices in place of what was known; whether that is
    /// something else. A profile that the manifest names stands.
    pub fn learn_speeds(&mut self, node: &str, speeds: &[DeviceSpeed]) -> bool {
        let before = self.devices.clone();
        for DeviceSpeed { index, kind, profile } in speeds {
            let name = format!("{node}/{index}");
            let device = self.devices.iter_mut().find(|device| device.name == name);
            if let Some(device) = device.filter(|device| !device.is_given()) {
                device.set(profile.clone(), Some(kind.clone()));
            }
        }
        self.assume();
        self.devices != before
    }

    /// Takes devices that nobody measured for what is known of their kind.
    fn assume(&mut self) {
        for at in 0..self.devices.len() {
            if self.devices[at].profile_name.is_none() {
                let assumed = self.assumed(&self.devices[at].section);
                self.devices[at].set(assumed, None);
            }
        }
    }

    /// The slowest that was measured of its kind, a processor in proportion to its threads. Where
    /// none was, a GPU is not thought slower than anything here, and of processors a low guess is
    /// all there is.
    fn assumed(&self, section: &DeviceSection) -> DeviceProfile {
        let threads = |section: &DeviceSection| section.threads.unwrap_or(1);
        let rate = |device: &&Device| device.profile.gemm_flops_per_s.f32;
        let measured = || self.devices.iter().filter(|device| device.profile_name.is_some());
        let alike = measured().filter(|device| device.section.kind == section.kind);
        let like = match section.kind {
            DeviceKind::Cpu => {
                let in_proportion = |device: &Device| {
                    let DeviceSection { threads: measured, .. } = device.section;
                    device.profile.in_proportion(threads(section), measured.unwrap_or(1))
                };
                let slower = |a: &DeviceProfile, b: &DeviceProfile| {
                    a.gemm_flops_per_s.f32.total_cmp(&b.gemm_flops_per_s.f32)
                };
                alike.map(in_proportion).min_by(slower)
            }
            DeviceKind::Cuda => {
                let slowest = alike.min_by(|a, b| rate(a).total_cmp(&rate(b)));
                let any = || measured().max_by(|a, b| rate(a).total_cmp(&rate(b)));
                slowest.or_else(any).map(|device| device.profile.clone())
            }
        };
        let like = like.unwrap_or_else(|| DeviceProfile::unmeasured_cpu(threads(section)));
        DeviceProfile { memory_bytes: 0, processor: String::new(), ..like }
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

    /// Devices that nobody measured.
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
        let kind = section.profile_name();
        let of_kind = calibration.devices.get(&kind);
        // What the manifest names goes before what an agent said, and that before its kind.
        let named = of_kind.filter(|_| section.profile.is_some());
        let own = || calibration.devices.get(&of_device(&node.name, index, &kind));
        let found = named.or_else(own).or(of_kind).cloned();
        let name = found.as_ref().map(|_| kind);
        let mut device = Device {
            name: format!("{}/{index}", node.name),
            node: at,
            section: section.clone(),
            profile: DeviceProfile::unmeasured_cpu(section.threads.unwrap_or(1)),
            profile_name: None,
        };
        device.set(found.unwrap_or_else(|| device.profile.clone()), name);
        device
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cost::device::Rates;

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

    fn profile(rate: f64) -> DeviceProfile {
        let gemm_flops_per_s = Rates::all(rate);
        DeviceProfile { gemm_flops_per_s, memory_bytes: 7, ..DeviceProfile::unmeasured_cpu(1) }
    }

    fn manifest(nodes: &str) -> Manifest {
        let text = format!("schema = 1\n[cluster]\nname = \"demo\"\n{nodes}");
        crate::manifest::parse::from_str(&text, "cluster.toml").unwrap()
    }

    fn speed(index: u32, kind: &str, rate: f64) -> DeviceSpeed {
        DeviceSpeed { index, kind: kind.into(), profile: profile(rate) }
    }

    /// What each device is taken for, in GFLOP/s, and whether that was measured.
    fn rates(cluster: &Cluster) -> Vec<(f64, bool)> {
        let of = |device: &Device| {
            (device.profile.gemm_flops_per_s.f32 / 1e9, device.profile_name.is_some())
        };
        cluster.devices.iter().map(of).collect()
    }

    #[test]
    fn a_device_that_nobody_measured_is_taken_for_one_of_its_kind_that_was() {
        let cpus = "[[node]]\nname = \"a\"\n[[node.device]]\nthreads = 4\n[[node.device]]\n\
                    [[node]]\nname = \"b\"\n[[node.device]]\nthreads = 2\n[[node.device]]\n\
                    kind = \"cuda\"\nmemory_bytes = 5\n";
        let mut cluster = Cluster::of(&manifest(cpus), &Calibration::default());
        let guesses = [(40.0, false), (10.0, false), (20.0, false), (10.0, false)];
        assert_eq!(rates(&cluster), guesses, "nobody has measured anything");
        assert!(cluster.learn_speeds("a", &[speed(0, "cpu-4", 200e9)]));
        let like = [(200.0, true), (50.0, false), (100.0, false), (200.0, false)];
        assert_eq!(rates(&cluster), like, "in proportion; a gpu is not thought slower");
        assert!(!cluster.learn_speeds("a", &[speed(0, "cpu-4", 200e9)]), "no news");
        assert!(cluster.learn_speeds("b", &[speed(0, "cpu-2", 30e9)]));
        let slowest = [(200.0, true), (15.0, false), (30.0, true), (200.0, false)];
        assert_eq!(rates(&cluster), slowest, "the slowest of a kind stands for it");
        assert!(cluster.learn_speeds("b", &[speed(1, "cuda", 9e12)]));
        assert_eq!(rates(&cluster)[3], (9000.0, true));
        let memory = cluster.devices.iter().map(|device| device.profile.memory_bytes);
        assert_eq!(memory.collect::<Vec<_>>(), [7, 0, 7, 5], "memory is not taken over");
        assert_eq!(cluster.unmeasured(), 1);
    }

    #[test]
    fn what_the_manifest_names_goes_before_what_an_agent_says_and_that_before_its_kind() {
        let three = "[[node]]\nname = \"a\"\n[[node.device]]\n[[node.device]]\n\
                     profile = \"big\"\n[[node.device]]\nprofile = \"of nobody\"\n";
        let mut kept = Calibration::default();
        kept.devices.insert("cpu-1".into(), profile(1e9));
        kept.devices.insert("big".into(), profile(2e9));
        let mut cluster = Cluster::of(&manifest(three), &kept);
        assert_eq!(rates(&cluster), [(1.0, true), (2.0, true), (1.0, false)]);
        let said = [speed(0, "cpu-1", 3e9), speed(1, "big", 4e9), speed(2, "of nobody", 5e9)];
        assert!(cluster.learn_speeds("a", &said));
        assert_eq!(rates(&cluster), [(3.0, true), (2.0, true), (5.0, true)]);
        for DeviceSpeed { index, kind, profile } in said {
            kept.devices.insert(of_device("a", index as usize, &kind), profile);
        }
        assert_eq!(Cluster::of(&manifest(three), &kept), cluster, "the same at the next start");
    }

    #[test]
    fn a_node_that_joins_is_not_taken_for_the_coordinator_s_machine() {
        let mut kept = Calibration::default();
        kept.devices.insert("cpu-1".into(), profile(1e9));
        let a = "[[node]]\nname = \"a\"\n[[node.device]]\n";
        let mut cluster = Cluster::of(&manifest(a), &kept);
        cluster.take_in(&manifest(&a.replace("\"a\"", "\"c\"")).nodes[0]);
        assert_eq!(rates(&cluster), [(1.0, true), (1.0, false)]);
        assert!(cluster.learn_speeds("c", &[speed(0, "cpu-1", 3e9)]));
        assert_eq!(rates(&cluster), [(1.0, true), (3.0, true)]);
    }
}

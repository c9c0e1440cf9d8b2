//! Links between nodes, as they were measured when meshes were formed.
//!
//! Owns which pairs of ranks measure when a mesh is formed, and what the planner and `status` are
//! told. Knows no clock: `now` is an argument. Invariant: a pair of nodes is measured by one pair
//! of its ranks, and again when a mesh is formed anew and its figures are older than
//! [`FIGURES_AGE_MAX`] or frames came more slowly by [`DRIFT_FACTOR`].

use std::collections::BTreeMap;
use std::time::Duration;

use super::State;
use crate::cost::calibration::Calibration;
use crate::cost::link::{LinkProfile, Links, NodeLink};
use crate::groups::RankFormed;
use crate::manifest::Isolation;
use crate::membership::Now;
use crate::protocol::{DeviceId, LinkMeasured};

/// How old figures may be when a mesh is formed.
pub(super) const FIGURES_AGE_MAX: Duration = Duration::from_secs(600);

/// Figures are too old at once when frames come more slowly than these by this factor.
pub(super) const DRIFT_FACTOR: u64 = 2;

/// What was measured, by the names of both nodes in order.
#[derive(Default)]
pub(super) struct MeasuredLinks {
    /// When, or none when runs saw something else since.
    pairs: BTreeMap<(String, String), (Option<Now>, LinkMeasured)>,
}

impl MeasuredLinks {
    /// The pairs of ranks that are to measure: one for each pair of nodes that is linked and whose
    /// figures are missing or old.
    pub(super) fn wanted(
        &self,
        now: Now,
        devices: &[DeviceId],
        linked: &[(u32, u32)],
    ) -> Vec<(u32, u32)> {
        let mut wanted = BTreeMap::new();
        for &(a, b) in linked {
            let node = |rank: u32| devices.get(rank as usize).map(|device| device.node.as_str());
            let (Some(one), Some(other)) = (node(a), node(b)) else { continue };
            let nodes = key(one, other);
            let at = self.pairs.get(&nodes).and_then(|(at, _)| *at);
            let fresh = at.is_some_and(|at| now - at < FIGURES_AGE_MAX);
            if !fresh {
                wanted.entry(nodes).or_insert((a, b));
            }
        }
        let mut wanted: Vec<_> = wanted.into_values().collect();
        wanted.sort_unstable();
        wanted
    }

    /// What was measured between two nodes.
    pub(super) fn between(&self, one: &str, other: &str) -> Option<LinkMeasured> {
        self.pairs.get(&key(one, other)).map(|(_, measured)| *measured)
    }

    fn learn(&mut self, now: Now, one: &str, other: &str, measured: LinkMeasured) -> NodeLink {
        let (a, b) = key(one, other);
        self.pairs.insert((a.clone(), b.clone()), (Some(now), measured));
        let LinkMeasured { round_trip_us, bytes_per_s } = measured;
        let link = LinkProfile {
            bytes_per_s: bytes_per_s as f64,
            latency_s: f64::from(round_trip_us) / 2e6,
            message_s: Links::unmeasured().other_node.message_s,
        };
        NodeLink { a, b, link }
    }
}

impl MeasuredLinks {
    /// Frames came at this rate; true when the figures are to be taken again for that.
    fn observe(&mut self, one: &str, other: &str, bytes_per_s: u64) -> bool {
        let Some((at, measured)) = self.pairs.get_mut(&key(one, other)) else { return false };
        let drifted = bytes_per_s.saturating_mul(DRIFT_FACTOR) < measured.bytes_per_s;
        drifted && at.take().is_some()
    }
}

fn key(one: &str, other: &str) -> (String, String) {
    let (first, second) = if one <= other { (one, other) } else { (other, one) };
    (first.to_owned(), second.to_owned())
}

impl State {
    /// A rank tells how fast large frames came to it.
    pub(super) fn observe_links(&mut self, device: &DeviceId, epoch: u64, seen: &[(u32, u64)]) {
        let Some(replica) = self.replicas.get(&epoch) else { return };
        for &(peer, bytes_per_s) in seen {
            let Some(from) = replica.devices.get(peer as usize) else { continue };
            if self.links.observe(&device.node, &from.node, bytes_per_s) {
                tracing::warn!(
                    to = %device, %from, bytes_per_s,
                    "frames come more slowly than was measured; the link is measured again when a \
                     mesh is next formed"
                );
            }
        }
    }

    /// A mesh is formed: plans reckon with what its ranks measured, and the next start does too.
    pub(super) fn learn_links(&mut self, devices: &[DeviceId], ranks: &[RankFormed]) {
        let mut learned = Vec::new();
        let now = self.now();
        for rank in ranks {
            for carrier in &rank.carriers {
                let node = |rank: u32| devices.get(rank as usize).map(|device| &device.node);
                let ends = node(rank.rank).zip(node(carrier.peer)).zip(carrier.measured);
                if let Some(((one, other), measured)) = ends {
                    learned.push(self.links.learn(now, one, other, measured));
                }
            }
        }
        let Some(Ok(model)) = &self.model else { return };
        let learned = model.learn(&self.manifest.links, learned);
        // An engine inside a program leaves no files behind.
        let embedded = self.manifest.launcher.isolation == Isolation::Thread;
        if learned.is_empty() || embedded {
            return;
        }
        let state_dir = self.manifest.cluster.state_dir.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = Calibration::keep(&state_dir, &learned) {
                tracing::warn!(%error, "measured links are not kept for the next start");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(node: &str, index: u32) -> DeviceId {
        DeviceId { node: node.into(), index }
    }

    #[test]
    fn one_pair_of_ranks_measures_for_its_nodes_until_the_figures_are_old() {
        let devices = [device("b", 0), device("a", 0), device("a", 1), device("b", 1)];
        let linked = [(0, 1), (0, 3), (1, 2), (1, 3), (2, 3)];
        let mut links = MeasuredLinks::default();
        let begun = Duration::from_secs(5);
        assert_eq!(links.wanted(begun, &devices, &linked), [(0, 1), (0, 3), (1, 2)]);
        let figures = LinkMeasured { round_trip_us: 80, bytes_per_s: 1_000_000_000 };
        let learned = links.learn(begun, "b", "a", figures);
        assert_eq!((learned.a.as_str(), learned.link.latency_s), ("a", 40e-6));
        assert_eq!(links.between("b", "a"), Some(figures));
        let soon = begun + FIGURES_AGE_MAX / 2;
        assert_eq!(links.wanted(soon, &devices, &linked), [(0, 3), (1, 2)]);
        assert!(!links.observe("a", "b", 500_000_000) && links.observe("a", "b", 499_999_999));
        assert!(!links.observe("a", "b", 1), "told once");
        assert_eq!(links.wanted(soon, &devices, &linked), [(0, 1), (0, 3), (1, 2)]);
        links.learn(begun, "b", "a", figures);
        let late = begun + FIGURES_AGE_MAX;
        assert_eq!(links.wanted(late, &devices, &linked), [(0, 1), (0, 3), (1, 2)]);
    }
}

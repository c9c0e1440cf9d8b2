//! Links between nodes, as they were measured when meshes were formed and since.
//!
//! Owns which pairs of ranks measure when a mesh is formed, and what the planner and `status` are
//! told. Knows no clock: `now` is an argument. Invariant: a pair of nodes is measured by one pair
//! of its ranks, and again when a mesh is formed anew and its figures are older than
//! [`FIGURES_AGE_MAX`], or, in the mesh that is there, when frames came at another rate by
//! [`DRIFT_FACTOR`] ([`drift`]).

mod drift;

use std::collections::BTreeMap;
use std::time::Duration;

use drift::{Drifts, MeshNow, Seats};

use super::State;
use crate::cost::calibration::Calibration;
use crate::cost::link::{LinkProfile, Links, NodeLink};
use crate::groups::RankFormed;
use crate::manifest::Isolation;
use crate::membership::{Member, Now};
use crate::protocol::{DeviceId, FromCoordinator, LinkMeasured};

/// How old figures may be when a mesh is formed.
pub(super) const FIGURES_AGE_MAX: Duration = Duration::from_secs(600);

/// Figures are too old at once when frames come more slowly or faster than these by this factor.
pub(super) const DRIFT_FACTOR: u64 = 2;

/// The names of two nodes, in order.
type Pair = (String, String);

/// What was measured.
#[derive(Default)]
pub(super) struct MeasuredLinks {
    /// When, or none when runs saw something else since.
    pairs: BTreeMap<Pair, (Option<Now>, LinkMeasured)>,
    drifts: Drifts,
}

/// Whether frames at this rate are something else than was measured.
fn figures_differ(measured: LinkMeasured, bytes_per_s: u64) -> bool {
    let beyond = |less: u64, more: u64| less.saturating_mul(DRIFT_FACTOR) < more;
    beyond(bytes_per_s, measured.bytes_per_s) || beyond(measured.bytes_per_s, bytes_per_s)
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
    /// Frames came at this rate between two ranks of these nodes; true when the figures are to be
    /// taken again for that.
    fn observe(&mut self, now: Now, one: &str, other: &str, bytes_per_s: u64, at: Seats) -> bool {
        let pair = key(one, other);
        let Some((taken, measured)) = self.pairs.get_mut(&pair) else { return false };
        if !figures_differ(*measured, bytes_per_s) {
            return false;
        }
        *taken = None;
        self.drifts.note(now, &pair, at)
    }

    /// The link that is to be measured now, in a mesh that is there.
    fn next_again(&mut self, now: Now, mesh: impl Fn(u64) -> MeshNow) -> Option<(u64, Seats)> {
        let known = |pair: &Pair| self.pairs.get(pair).map(|(_, measured)| *measured);
        self.drifts.next(now, mesh, known)
    }

    /// What came of that.
    fn learn_again(
        &mut self,
        now: Now,
        number: u64,
        figures: Option<LinkMeasured>,
    ) -> Option<NodeLink> {
        let ((one, other), figures) = self.drifts.answered(now, number, figures)?;
        Some(self.learn(now, &one, &other, figures))
    }
}

fn key(one: &str, other: &str) -> Pair {
    let (first, second) = if one <= other { (one, other) } else { (other, one) };
    (first.to_owned(), second.to_owned())
}

impl State {
    /// A rank tells how fast large frames came to it.
    pub(super) fn observe_links(&mut self, device: &DeviceId, epoch: u64, seen: &[(u32, u64)]) {
        let now = self.now();
        let Some(replica) = self.replicas.get(&epoch) else { return };
        let Some(rank) = replica.devices.iter().position(|seated| seated == device) else { return };
        for &(peer, bytes_per_s) in seen {
            let Some(from) = replica.devices.get(peer as usize) else { continue };
            let seats = Seats { epoch, a: peer, b: rank as u32 };
            if self.links.observe(now, &device.node, &from.node, bytes_per_s, seats) {
                tracing::warn!(
                    to = %device, %from, bytes_per_s,
                    "frames come at another rate than was measured; the link is measured again"
                );
            }
        }
    }

    /// Orders the next link that has drifted to be measured, if it is time.
    pub(super) fn measure_again(&mut self) {
        let (replicas, runs) = (&self.replicas, &self.desk.runs);
        let mesh = |epoch: u64| match replicas.contains_key(&epoch) {
            false => MeshNow::Gone,
            true if runs.values().any(|run| run.replica == epoch) => MeshNow::Busy,
            true => MeshNow::Idle,
        };
        let now = self.started.elapsed();
        let Some((number, seats)) = self.links.next_again(now, mesh) else { return };
        let Seats { epoch, a, b } = seats;
        let Some(replica) = self.replicas.get(&epoch) else { return };
        for rank in [a, b] {
            let device = replica.devices.get(rank as usize).cloned();
            let session = device.and_then(|device| self.sessions.get(&Member::Worker(device)));
            if let Some(session) = session {
                session.handle.send(FromCoordinator::Measure { epoch, number, pair: (a, b) });
            }
        }
    }

    /// The ranks that were ordered to have measured.
    pub(super) fn measured_again(&mut self, number: u64, figures: Option<LinkMeasured>) {
        if let Some(learned) = self.links.learn_again(self.now(), number, figures) {
            tracing::info!(?learned, "a link is measured again");
            self.reckon_with(vec![learned]);
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
        self.reckon_with(learned);
    }

    /// Has plans reckon with these figures, and keeps them for the next start.
    fn reckon_with(&self, learned: Vec<NodeLink>) {
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
        let seats = Seats { epoch: 1, a: 0, b: 1 };
        let mut observe = |rate| links.observe(soon, "a", "b", rate, seats);
        assert!(!observe(500_000_000) && !observe(2_000_000_000) && observe(499_999_999));
        assert!(!observe(1), "told once");
        assert_eq!(links.wanted(soon, &devices, &linked), [(0, 1), (0, 3), (1, 2)]);
        links.learn(begun, "b", "a", figures);
        let late = begun + FIGURES_AGE_MAX;
        assert_eq!(links.wanted(late, &devices, &linked), [(0, 1), (0, 3), (1, 2)]);
    }

    #[test]
    fn what_is_measured_again_is_what_counts_and_faster_links_are_noticed_too() {
        let (now, seats) = (Duration::from_secs(5), Seats { epoch: 1, a: 0, b: 1 });
        let figures = |bytes_per_s| LinkMeasured { round_trip_us: 80, bytes_per_s };
        let mut links = MeasuredLinks::default();
        links.learn(now, "a", "b", figures(1_000_000));
        assert!(links.observe(now, "b", "a", 2_000_001, seats));
        let order = links.next_again(now, |_| MeshNow::Idle);
        assert_eq!(order, Some((1, seats)));
        let learned = links.learn_again(now, 1, Some(figures(3_000_000)));
        assert_eq!(learned.map(|link| link.link.bytes_per_s), Some(3e6));
        assert_eq!(links.between("a", "b"), Some(figures(3_000_000)));
        assert!(!links.observe(now, "a", "b", 2_000_001, seats));
        // A link that could not be measured keeps its figures, and is measured by the next mesh.
        let later = now + Duration::from_secs(60);
        assert!(links.observe(later, "a", "b", 1, seats));
        let (number, _) = links.next_again(later, |_| MeshNow::Idle).expect("an order");
        assert_eq!(links.learn_again(later, number, None), None);
        assert_eq!(links.between("a", "b"), Some(figures(3_000_000)));
        let devices = [device("a", 0), device("b", 0)];
        assert_eq!(links.wanted(later, &devices, &[(0, 1)]), [(0, 1)]);
    }
}

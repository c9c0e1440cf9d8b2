//! What a planner decided, and why the others lost.

use std::collections::BTreeMap;

use super::Candidate;
use crate::plan::Plan;
use crate::plan::layout::Layout;
use crate::simulate::{RankTimes, Simulation};

/// A mesh that was simulated.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// The mesh.
    pub candidate: Candidate,
    /// Its lower bound, seconds.
    pub bound: f64,
    /// Predicted seconds of the whole run.
    pub seconds: f64,
    /// Predicted seconds of a step in the steady state.
    pub step_seconds: f64,
    /// Blocks of each stage.
    pub layout: Layout,
    /// Patches there really are.
    pub patches: usize,
    /// Payload bytes of a step between ranks.
    pub step_bytes: BTreeMap<(usize, usize), u64>,
    /// Those that cross between nodes.
    pub crossing_step_bytes: u64,
    /// Where ranks spend the simulated time.
    pub ranks: Vec<RankTimes>,
    /// Seconds that were simulated (fewer steps than the run has).
    pub simulated_seconds: f64,
}

impl Trial {
    pub(super) fn new(
        candidate: Candidate,
        bound: f64,
        seconds: f64,
        plan: &Plan,
        simulation: Simulation,
    ) -> Self {
        Self {
            candidate,
            bound,
            seconds,
            step_seconds: simulation.last_step_seconds(),
            layout: plan.layout.clone(),
            patches: plan.strips.len(),
            step_bytes: simulation.step_bytes,
            crossing_step_bytes: simulation.crossing_step_bytes,
            simulated_seconds: simulation.seconds,
            ranks: simulation.ranks,
        }
    }

    /// Payload bytes all ranks send in a step.
    pub fn bytes_per_step(&self) -> u64 {
        self.step_bytes.values().sum()
    }

    /// Shares of the ranks' time: computing, sending, waiting.
    pub fn shares(&self) -> (f64, f64, f64) {
        let total = self.simulated_seconds * self.ranks.len() as f64;
        let sum = |part: fn(&RankTimes) -> f64| self.ranks.iter().map(part).sum::<f64>() / total;
        (sum(|rank| rank.busy), sum(|rank| rank.send), sum(|rank| rank.wait))
    }

    /// Why this mesh is slower than `best`, in words.
    pub fn why_it_lost(&self, best: &Self) -> String {
        let (busy, send, wait) = self.shares();
        let (size, most) =
            (self.candidate.degrees.world_size(), best.candidate.degrees.world_size());
        let mut reasons = Vec::new();
        if size < most {
            reasons.push(format!("computes on {size} devices, the best on {most}"));
        }
        if self.crossing_step_bytes > 2 * best.crossing_step_bytes {
            reasons.push(format!(
                "sends {:.1} MB a step between nodes, the best {:.1} MB",
                self.crossing_step_bytes as f64 / 1e6,
                best.crossing_step_bytes as f64 / 1e6
            ));
        } else if self.bytes_per_step() > 2 * best.bytes_per_step() {
            reasons.push(format!(
                "sends {:.1} MB a step, the best {:.1} MB",
                self.bytes_per_step() as f64 / 1e6,
                best.bytes_per_step() as f64 / 1e6
            ));
        }
        if wait > best.shares().2 + 0.02 {
            reasons.push(format!("ranks wait {:.0} % of the time", 100.0 * wait));
        }
        if send > best.shares().1 + 0.02 {
            reasons.push(format!("handing over messages takes {:.0} %", 100.0 * send));
        }
        if reasons.is_empty() {
            reasons.push(format!("ranks compute {:.0} % of the time", 100.0 * busy));
        }
        reasons.join("; ")
    }
}

/// A mesh that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The mesh.
    pub candidate: Candidate,
    /// Why.
    pub why: String,
    /// Bytes of memory that are missing, when that is why.
    pub short_bytes: u64,
}

/// The outcome of planning.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Simulated meshes, fastest first.
    pub trials: Vec<Trial>,
    /// Meshes that do not fit (among those that came up).
    pub rejected: Vec<Rejected>,
    /// Meshes enumerated.
    pub considered: usize,
    /// Meshes that were not simulated.
    pub unsimulated: usize,
    /// Whether all of those have a bound that is no better than the best.
    pub pruned_by_bound: bool,
    /// Actions simulated.
    pub actions: u64,
}

impl Default for Decision {
    fn default() -> Self {
        Self {
            trials: Vec::new(),
            rejected: Vec::new(),
            considered: 0,
            unsimulated: 0,
            pruned_by_bound: true,
            actions: 0,
        }
    }
}

impl Decision {
    /// The fastest.
    pub fn best(&self) -> Option<&Trial> {
        self.trials.first()
    }

    pub(super) fn add(&mut self, trial: Trial) {
        let size = |trial: &Trial| trial.candidate.degrees.world_size();
        let before = |other: &Trial| (other.seconds, size(other)) <= (trial.seconds, size(&trial));
        let at = self.trials.partition_point(before);
        self.trials.insert(at, trial);
    }
}

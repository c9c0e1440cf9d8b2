//! What the runs amount to: times, efficiencies, and where the time went.
//!
//! Pure. Owns the keys of the JSON. Definitions, all per round and then the median over rounds:
//! `t1` is the median of a lone rank's timed steps; `ceiling` is `t1` over the same with two jobs
//! at once; an efficiency is `t1 / (2 t2)`. For PipeFusion `t2` is the mean of the first steps,
//! as many as are timed, of which the first is synchronous and fills the pipeline;
//! `pipefusion2_async` takes the median of the timed steps, which are all asynchronous.

use std::collections::BTreeMap;

use ditmesh::RankReport;
use ditmesh_actors::request::OpTime;
use serde::Serialize;

use crate::cli::bench::method::Method;
use crate::cli::bench::statistics::{Spread, median};

/// Key of the asynchronous steps of PipeFusion.
pub(crate) const ASYNC: &str = "pipefusion2_async";
/// Branches of guidance: a lone rank runs each block for both.
const BRANCHES: f64 = 2.0;
/// Ranks of every mesh here.
const RANKS: f64 = 2.0;

/// One run.
#[derive(Clone, Debug, Default)]
pub(super) struct RunSample {
    /// What each rank did.
    pub(super) ranks: Vec<RankReport>,
}

impl RunSample {
    /// Seconds of each step, on the rank that knows.
    fn steps(&self) -> &[f64] {
        let known = self.ranks.iter().map(|rank| rank.time.step_seconds.as_slice());
        known.max_by_key(|steps| steps.len()).unwrap_or_default()
    }

    /// The median step once `dropped` are over.
    fn steady(&self, dropped: usize) -> Option<f64> {
        median(self.steps().iter().skip(dropped).copied())
    }

    /// The mean of the first `count` steps.
    fn first(&self, count: usize) -> Option<f64> {
        let steps = self.steps().get(..count)?;
        Some(steps.iter().sum::<f64>() / count as f64)
    }
}

/// Everything once.
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    /// One rank, the other core idle.
    pub(super) alone: RunSample,
    /// Two jobs of one rank at once.
    pub(super) at_once: Vec<RunSample>,
    /// Two ranks.
    pub(super) methods: BTreeMap<Method, RunSample>,
    /// Seconds of one block for one branch in PyTorch.
    pub(super) torch: Option<f64>,
}

impl Round {
    fn at_once(&self, dropped: usize) -> Option<f64> {
        let each: Option<Vec<f64>> = self.at_once.iter().map(|run| run.steady(dropped)).collect();
        let each = each.filter(|each| !each.is_empty())?;
        Some(each.iter().sum::<f64>() / each.len() as f64)
    }

    /// Seconds per step on two ranks, by key of the report.
    fn two(&self, setting: &Setting) -> Option<Vec<(&'static str, f64)>> {
        let mut found = Vec::new();
        for (&method, run) in &self.methods {
            let steady = run.steady(setting.dropped)?;
            if method == Method::Pipefusion2 {
                found.push((method.name(), run.first(setting.steps)?));
                found.push((ASYNC, steady));
            } else {
                found.push((method.name(), steady));
            }
        }
        Some(found)
    }
}

/// What was measured, and how.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Setting {
    /// The model in words.
    pub(super) model: String,
    /// How ranks reach each other.
    pub(super) transport: &'static str,
    /// What the two ranks compute on, in words.
    pub(super) ranks: String,
    /// Timed steps of each run.
    pub(super) steps: usize,
    /// Steps before them.
    pub(super) dropped: usize,
    /// Blocks of the model.
    pub(super) blocks: usize,
    /// Version of torch.
    pub(super) torch: Option<String>,
}

/// Efficiencies; none of what was not measured.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Efficiency {
    pub(super) cfg2: Option<f64>,
    pub(super) ulysses2: Option<f64>,
    pub(super) ring2: Option<f64>,
    pub(super) pipefusion2: Option<f64>,
    pub(super) pipefusion2_async: Option<f64>,
}

/// Where the time of one rank went.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RankBreakdown {
    /// The rank.
    pub(super) rank: u32,
    /// Seconds of the whole run.
    pub(super) wall_s: f64,
    /// Seconds between operations.
    pub(super) elsewhere_s: f64,
    /// By operation, seconds of the whole run.
    pub(super) ops: Vec<OpTime>,
}

/// How far a method is from what it should reach.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Reach {
    /// Efficiency over the ceiling.
    pub(super) of_ceiling: f64,
    /// What it should be.
    pub(super) target: f64,
    /// Whether it falls short.
    pub(super) misses: bool,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// Seconds per step of one rank.
    pub(super) t1_s: f64,
    /// What two independent jobs leave of each other's speed.
    pub(super) ceiling: f64,
    /// Speed-up over ranks.
    pub(super) efficiency: Efficiency,
    /// PyTorch's time over ours: its block times blocks times branches, over `t1_s`. Embedding,
    /// final layer and solver are in our time only.
    pub(super) torch_ratio: Option<f64>,
    /// Rounds measured.
    pub(super) rounds: usize,
    /// Least, median and greatest of the rounds: of `t1_s`, of the ceiling, of each efficiency.
    pub(super) spread: BTreeMap<&'static str, Spread>,
    /// Seconds per step.
    pub(super) step_s: BTreeMap<&'static str, Spread>,
    /// Against the targets.
    pub(super) reach: BTreeMap<&'static str, Reach>,
    /// Where the time went in the last round, for each mesh and for one rank.
    pub(super) breakdown: BTreeMap<&'static str, Vec<RankBreakdown>>,
    /// How it was measured.
    pub(super) setting: Setting,
}

impl Report {
    /// Of `rounds`; none when a run did not tell the times of its steps.
    pub(super) fn of(setting: Setting, rounds: &[Round]) -> Option<Self> {
        let mut values: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        let mut seconds: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for round in rounds {
            let t1 = round.alone.steady(setting.dropped)?;
            let busy = round.at_once(setting.dropped)?;
            values.entry("t1_s").or_default().push(t1);
            values.entry("ceiling").or_default().push(t1 / busy);
            seconds.entry("one").or_default().push(t1);
            seconds.entry("two_jobs_at_once").or_default().push(busy);
            for (name, t2) in round.two(&setting)? {
                values.entry(name).or_default().push(t1 / (RANKS * t2));
                seconds.entry(name).or_default().push(t2);
            }
            if let Some(block) = round.torch {
                let step = BRANCHES * setting.blocks as f64 * block;
                values.entry("torch_ratio").or_default().push(step / t1);
                seconds.entry("torch_blocks").or_default().push(step);
            }
        }
        let spreads = |all: BTreeMap<&'static str, Vec<f64>>| -> BTreeMap<&'static str, Spread> {
            all.into_iter().filter_map(|(name, each)| Some((name, Spread::of(each)?))).collect()
        };
        let (spread, step_s) = (spreads(values), spreads(seconds));
        let of = |name: &str| spread.get(name).map(|spread| spread.median);
        let efficiency = Efficiency {
            cfg2: of(Method::Cfg2.name()),
            ulysses2: of(Method::Ulysses2.name()),
            ring2: of(Method::Ring2.name()),
            pipefusion2: of(Method::Pipefusion2.name()),
            pipefusion2_async: of(ASYNC),
        };
        let (t1_s, ceiling, torch_ratio) = (of("t1_s")?, of("ceiling")?, of("torch_ratio"));
        Some(Self {
            t1_s,
            ceiling,
            efficiency,
            torch_ratio,
            rounds: rounds.len(),
            reach: reach(&spread, ceiling),
            breakdown: rounds.last().map(breakdown).unwrap_or_default(),
            spread,
            step_s,
            setting,
        })
    }
}

fn reach(spread: &BTreeMap<&'static str, Spread>, ceiling: f64) -> BTreeMap<&'static str, Reach> {
    let measured = Method::ALL.into_iter().filter_map(|method| {
        let name = if method == Method::Pipefusion2 { ASYNC } else { method.name() };
        let of_ceiling = spread.get(name)?.median / ceiling;
        let target = method.target();
        Some((name, Reach { of_ceiling, target, misses: of_ceiling < target }))
    });
    measured.collect()
}

fn breakdown(round: &Round) -> BTreeMap<&'static str, Vec<RankBreakdown>> {
    let of = |run: &RunSample| -> Vec<RankBreakdown> {
        let ranks = run.ranks.iter().map(|rank| RankBreakdown {
            rank: rank.rank,
            wall_s: rank.time.wall_s,
            elsewhere_s: rank.time.elsewhere_s,
            ops: rank.time.ops.clone(),
        });
        ranks.collect()
    };
    let two = round.methods.iter().map(|(method, run)| (method.name(), of(run)));
    two.chain([("one", of(&round.alone))]).collect()
}

#[cfg(test)]
mod tests {
    use ditmesh_actors::request::RunTime;

    use super::*;

    fn run(step_seconds: &[f64]) -> RunSample {
        let rank = |steps: &[f64]| RankReport {
            time: RunTime { step_seconds: steps.to_vec(), ..RunTime::default() },
            ..RankReport::default()
        };
        RunSample { ranks: vec![rank(&[]), rank(step_seconds)] }
    }

    fn setting() -> Setting {
        Setting {
            model: String::new(),
            transport: "quic",
            ranks: String::new(),
            steps: 4,
            dropped: 2,
            blocks: 14,
            torch: None,
        }
    }

    /// A machine on which two jobs slow each other down by a tenth, and whose methods are perfect.
    fn round(scale: f64) -> Round {
        let [one, busy] = [2.0 * scale, 2.0 * scale / 0.9];
        let half = busy / 2.0;
        let methods = [
            (Method::Cfg2, run(&[9.0, 9.0, half, half, half, half])),
            // The synchronous step takes as long as one rank, the next one fills the pipeline.
            (Method::Pipefusion2, run(&[busy, 1.25 * half, half, half, half, half])),
        ];
        Round {
            alone: run(&[7.0, 7.0, one, one, one, one]),
            at_once: vec![run(&[0.0, 0.0, busy, busy, busy, busy]); 2],
            methods: methods.into_iter().collect(),
            torch: Some(one / 28.0 * 1.5),
        }
    }

    #[test]
    fn perfect_methods_reach_the_ceiling_of_the_machine() {
        let rounds = [round(1.0), round(1.3), round(0.8)];
        let report = Report::of(setting(), &rounds).expect("complete");
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found}");
        near(report.t1_s, 2.0);
        near(report.ceiling, 0.9);
        near(report.efficiency.cfg2.unwrap_or_default(), 0.9);
        near(report.efficiency.pipefusion2_async.unwrap_or_default(), 0.9);
        // (1 + 1.25/2 + 1/2 + 1/2) / 4 of a step of one rank, on two ranks.
        near(report.efficiency.pipefusion2.unwrap_or_default(), 0.9 * 4.0 / (2.0 * 2.625));
        near(report.torch_ratio.unwrap_or_default(), 1.5);
        assert!(!report.reach["cfg2"].misses);
        assert_eq!(report.rounds, 3);
    }

    #[test]
    fn the_keys_are_those_that_were_agreed() {
        let report = Report::of(setting(), &[round(1.0)]).expect("complete");
        let json = serde_json::to_value(&report).expect("json");
        for key in ["t1_s", "ceiling", "torch_ratio"] {
            assert!(json[key].is_number(), "{key}");
        }
        let efficiency = &json["efficiency"];
        for key in ["cfg2", "pipefusion2", "pipefusion2_async"] {
            assert!(efficiency[key].is_number(), "{key}");
        }
        // Not measured, and there all the same.
        assert!(efficiency["ulysses2"].is_null() && efficiency.get("ring2").is_some());
    }

    #[test]
    fn a_run_without_times_is_no_result() {
        let rounds = [Round { alone: run(&[1.0, 1.0]), ..round(1.0) }];
        assert!(Report::of(setting(), &rounds).is_none());
    }
}

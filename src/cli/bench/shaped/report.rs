//! What runs over a limited link amount to, against the same runs over one without a limit.
//!
//! Pure. Definitions, per round and then the median over rounds: a *step* is the median of a run's
//! steps after the first ones; *loss* is the limited step over the other, less one; *wire* is what
//! the busier direction sends in a step at the link's rate; *beyond* is the limited step over the
//! sum of the other step and *wire*, less one, so it is negative where sending overlaps with
//! computing.

use std::collections::BTreeMap;
use std::fmt::Write;

use ditmesh::{Axis, RankReport};
use serde::Serialize;

use crate::cli::bench::method::Method;
use crate::cli::bench::shaped_link::Shape;
use crate::cli::bench::statistics::{Spread, median};

/// A method, and what travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Way {
    pub(super) method: Method,
    /// 8 bits and not 32.
    pub(super) int8: bool,
}

impl Way {
    fn name(self) -> String {
        format!("{}{}", self.method.name(), if self.int8 { "-int8" } else { "" })
    }
}

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) round: u32,
    pub(super) way: Way,
    /// Whether the link had its rate.
    pub(super) limited: bool,
    pub(super) ranks: Vec<RankReport>,
}

impl Run {
    fn steps(&self) -> &[f64] {
        let known = self.ranks.iter().map(|rank| rank.time.step_seconds.as_slice());
        known.max_by_key(|steps| steps.len()).unwrap_or_default()
    }

    fn step(&self, dropped: usize) -> Option<f64> {
        median(self.steps().iter().skip(dropped).copied())
    }

    /// Seconds per step that the rank waits which waits longest.
    fn wait(&self) -> Option<f64> {
        let waits = self.ranks.iter().map(|rank| rank.wait_seconds);
        Some(waits.reduce(f64::max)? / self.steps().len().max(1) as f64)
    }

    /// Bytes per step in the busier direction, of what steps exchange: text and the result, which
    /// travel once, are not in it.
    fn bytes(&self) -> f64 {
        let of_steps = |rank: &RankReport| {
            let axes = rank.traffic.iter().filter(|axis| axis.axis != Axis::Other);
            axes.map(|axis| axis.bytes_sent).sum::<u64>()
        };
        let most = self.ranks.iter().map(of_steps).max().unwrap_or(0);
        most as f64 / self.steps().len().max(1) as f64
    }
}

/// One way over all rounds.
#[derive(Clone, Debug, Serialize)]
struct Line {
    way: String,
    step_s: Spread,
    limited_step_s: Spread,
    loss: Spread,
    wire_s: Spread,
    beyond: Spread,
    wait_s: Spread,
    limited_wait_s: Spread,
    megabytes_per_step: f64,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    link: Shape,
    model: String,
    rounds: usize,
    lines: Vec<Line>,
    /// Of what the link costs Ulysses and ring, the share that 8 bits give back.
    given_back: BTreeMap<String, Spread>,
}

impl Report {
    /// `None` when a run has no steps.
    pub(super) fn of(link: Shape, model: String, dropped: usize, runs: &[Run]) -> Option<Self> {
        let mut ways: Vec<Way> = runs.iter().map(|run| run.way).collect();
        ways.sort_unstable();
        ways.dedup();
        let rounds: Vec<u32> = runs.iter().map(|run| run.round).collect();
        let rounds = rounds.iter().max().map_or(0, |last| last + 1);
        let find = |round, way, limited| {
            runs.iter().find(|run| (run.round, run.way, run.limited) == (round, way, limited))
        };
        let rate = f64::from(link.mbit_per_s) * 1e6 / 8.0;
        let line = |way: Way| {
            let of =
                |figure: &dyn Fn(&Run, &Run) -> Option<f64>| {
                    Spread::of((0..rounds).filter_map(|round| {
                        figure(find(round, way, false)?, find(round, way, true)?)
                    }))
                };
            Some(Line {
                way: way.name(),
                step_s: of(&|free, _| free.step(dropped))?,
                limited_step_s: of(&|_, limited| limited.step(dropped))?,
                loss: of(&|free, limited| {
                    Some(limited.step(dropped)? / free.step(dropped)? - 1.0)
                })?,
                wire_s: of(&|_, limited| Some(limited.bytes() / rate))?,
                beyond: of(&|free, limited| {
                    Some(
                        limited.step(dropped)? / (free.step(dropped)? + limited.bytes() / rate)
                            - 1.0,
                    )
                })?,
                wait_s: of(&|free, _| free.wait())?,
                limited_wait_s: of(&|_, limited| limited.wait())?,
                megabytes_per_step: of(&|_, limited| Some(limited.bytes() / 1e6))?.median,
            })
        };
        let lines = ways.iter().map(|way| line(*way)).collect::<Option<Vec<_>>>()?;
        let mut given_back = BTreeMap::new();
        for way in ways.iter().filter(|way| !way.int8 && way.method != Method::Pipefusion2) {
            let eight = Way { int8: true, ..*way };
            let each = (0..rounds).filter_map(|round| {
                let step = |way, limited| find(round, way, limited)?.step(dropped);
                let cost = step(*way, true)? - step(*way, false)?;
                Some((step(*way, true)? - step(eight, true)?) / cost)
            });
            given_back.extend(Spread::of(each).map(|spread| (way.name(), spread)));
        }
        Some(Self { link, model, rounds: rounds as usize, lines, given_back })
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let Shape { mbit_per_s, mtu, queue_ms, .. } = self.link;
        let mut text = format!(
            "{}; a rank of one thread at each end of {mbit_per_s} Mbit/s, frames of {mtu} bytes, a \
             queue of {queue_ms} ms; {} rounds, median [least..greatest]\n\n",
            self.model, self.rounds
        );
        for line in &self.lines {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{}: {} s a step without limit, {} s with, loss {}\n    {:.1} MB a step and \
                 direction take {} s; beyond both {}\n    waits {} s a step without limit, {} s with",
                line.way,
                line.step_s,
                line.limited_step_s,
                line.loss,
                line.megabytes_per_step,
                line.wire_s,
                line.beyond,
                line.wait_s,
                line.limited_wait_s,
            );
        }
        for (way, share) in &self.given_back {
            let _ = writeln!(text, "{way}: int8 gives back {share} of what the link costs");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ditmesh_actors::request::RunTime;

    use ditmesh::AxisTraffic;

    use super::*;

    fn run(int8: bool, limited: bool, step: f64, bytes: u64) -> Run {
        let time = RunTime { step_seconds: vec![9.0, step, step], ..RunTime::default() };
        let of = |axis, bytes_sent| AxisTraffic { axis, bytes_sent, bytes_saved: 0 };
        // Text travels once and is no step's.
        let traffic = vec![of(Axis::Ulysses, bytes), of(Axis::Other, 1 << 40)];
        let rank = RankReport { traffic, time, wait_seconds: 0.3, ..RankReport::default() };
        let way = Way { method: Method::Ulysses2, int8 };
        Run { round: 0, way, limited, ranks: vec![rank] }
    }

    #[test]
    fn a_loss_is_told_from_what_the_bytes_take() {
        let link = Shape { mbit_per_s: 8, mtu: 1500, loss_ppm: 0, queue_ms: 10, delay_ms: 0 };
        // A megabyte a second; three steps of 0.5 MB each.
        let runs = [
            run(false, false, 1.0, 1_500_000),
            run(false, true, 1.8, 1_500_000),
            run(true, false, 1.0, 375_000),
            run(true, true, 1.2, 375_000),
        ];
        let report = Report::of(link, "m".into(), 1, &runs).unwrap();
        let [plain, eight] = report.lines.as_slice() else { panic!() };
        assert!((plain.loss.median - 0.8).abs() < 1e-9 && (plain.wire_s.median - 0.5).abs() < 1e-9);
        assert!((plain.beyond.median - 0.2).abs() < 1e-9, "1.8 against 1.5");
        assert!((plain.wait_s.median - 0.1).abs() < 1e-9);
        assert!((eight.loss.median - 0.2).abs() < 1e-9);
        let back = report.given_back["ulysses2"].median;
        assert!((back - 0.75).abs() < 1e-9, "{back}");
        assert!(report.text().contains("ulysses2-int8"));
    }
}

//! The report in words.

use std::fmt::Write;

use super::report::{ASYNC, RankBreakdown, Report};
use crate::cli::bench::method::Method;

/// Operations listed for each rank of a method that falls short.
const OPS_SHOWN: usize = 8;

/// A table, and for each method that falls short where its time went.
pub(super) fn describe(report: &Report) -> String {
    let setting = &report.setting;
    let mut text = format!(
        "{}\n{}, {}; {} rounds of {} timed steps; median [least..greatest] of the rounds\n\n",
        setting.model, setting.ranks, setting.transport, report.rounds, setting.steps
    );
    let mut line = |name: &str, key: &str, ratio: String| {
        if let Some(step) = report.step_s.get(key) {
            let _ = writeln!(text, "{name:28} {:>26} s/step  {ratio}", step.to_string());
        }
    };
    line("one rank", "one", String::new());
    line("two jobs of one at once", "two_jobs_at_once", spread(report, "ceiling", "ceiling"));
    let names = Method::ALL.map(Method::name).into_iter().chain([ASYNC]);
    for name in names {
        line(name, name, format!("{}{}", spread(report, name, "efficiency"), reach(report, name)));
    }
    line("PyTorch, blocks alone", "torch_blocks", spread(report, "torch_ratio", "over ours"));
    for (name, reach) in &report.reach {
        if reach.misses {
            let key = if *name == ASYNC { Method::Pipefusion2.name() } else { name };
            let ranks = report.breakdown.get(key).map_or(&[][..], Vec::as_slice);
            let _ = writeln!(
                text,
                "\n{name} reaches {:.3} of the ceiling, not {}; its time, in the whole last run:",
                reach.of_ceiling, reach.target
            );
            ranks.iter().for_each(|rank| text.push_str(&breakdown(rank)));
        }
    }
    text
}

fn spread(report: &Report, key: &str, what: &str) -> String {
    report.spread.get(key).map_or(String::new(), |spread| format!("{what} {spread}"))
}

fn reach(report: &Report, name: &str) -> String {
    report.reach.get(name).map_or(String::new(), |reach| {
        format!(", {:.3} of the ceiling (to reach: {})", reach.of_ceiling, reach.target)
    })
}

/// One rank: what it did most, in shares of its run.
fn breakdown(rank: &RankBreakdown) -> String {
    let share = |seconds: f64| 100.0 * seconds / rank.wall_s.max(f64::MIN_POSITIVE);
    let mut ops: Vec<_> = rank.ops.iter().collect();
    ops.sort_by(|a, b| b.total_s().total_cmp(&a.total_s()));
    let mut text = format!(
        "  rank {}, {:.3} s, {:.2} % of them between operations\n",
        rank.rank,
        rank.wall_s,
        share(rank.elsewhere_s)
    );
    let _ = writeln!(
        text,
        "    {:28} {:>9} {:>8} {:>8} {:>10} {:>9}",
        "percent of it", "compute", "wait", "send", "serialise", "other"
    );
    for op in ops.into_iter().take(OPS_SHOWN) {
        let _ = writeln!(
            text,
            "    {:28} {:9.2} {:8.2} {:8.2} {:10.2} {:9.2}",
            op.op,
            share(op.compute_s),
            share(op.wait_s),
            share(op.send_s),
            share(op.serialise_s),
            share(op.overhead_s)
        );
    }
    text
}

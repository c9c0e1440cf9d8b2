//! Whether the clock of a node agrees with this host's.
//!
//! Owns the bounds. How far clocks are apart, and how sure that is, comes from the answers
//! themselves.

use ditmesh_actors::examine::clock::Skew;
use ditmesh_actors::protocol::examine::{Examination, Finding, Level, NodeExamined};

/// Clocks that are further apart make logs and traces hard to read together.
const APART_MAX_US: u64 = 100_000;

/// Certificates allow two days; half of that is too near.
const APART_BROKEN_US: u64 = 86_400_000_000;

/// The clock of `node`, which answered with `examination`, by that of the coordinator.
pub(super) fn judge(
    node: &NodeExamined,
    examination: &Examination,
    coordinator: Option<Skew>,
) -> Finding {
    let NodeExamined { node: name, asked_us, heard_us, .. } = node;
    let Examination { received_us, sent_us, .. } = *examination;
    let skew = Skew::of(*asked_us, received_us, sent_us, *heard_us);
    let Some(skew) = skew.zip(coordinator).map(|(node, first)| node.after(first)) else {
        let found = format!("node {name}: a clock was set while it was asked");
        return Finding::amiss(
            "clock skew",
            Level::Unknown,
            found,
            "ditmesh doctor --cluster FILE",
        );
    };
    let way = if skew.ahead_us < 0 { "behind" } else { "ahead of" };
    let found = format!(
        "node {name}: {} {way} this host's clock, give or take {}",
        milliseconds(skew.ahead_us.unsigned_abs()),
        milliseconds(skew.error_us)
    );
    let fix = || format!("timedatectl set-ntp true   # on this host and on that of node {name}");
    match skew.apart_at_least_us() {
        apart if apart <= APART_MAX_US => Finding::ok("clock skew", found),
        apart if apart <= APART_BROKEN_US => {
            Finding::amiss("clock skew", Level::Slow, found, fix())
        }
        _ => {
            let found = format!("{found}; certificates are for clocks that are two days apart");
            Finding::amiss("clock skew", Level::Problem, found, fix())
        }
    }
}

fn milliseconds(micros: u64) -> String {
    format!("{}.{:02} ms", micros / 1000, micros % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node whose clock is so far ahead, asked over a way of 30 ms each way.
    fn judged(ahead_us: i64, coordinator: Option<Skew>) -> Finding {
        let begin = 1_000_000_000_000_u64;
        let there = begin.saturating_add_signed(ahead_us) + 30_000;
        let (findings, seen) = (Vec::new(), Vec::new());
        let (received_us, sent_us) = (there, there + 2_000_000);
        let examination = Examination { number: 1, received_us, sent_us, findings, seen };
        let node = NodeExamined {
            node: "b".into(),
            asked_us: begin,
            heard_us: begin + 2_060_000,
            outcome: Ok(examination.clone()),
        };
        judge(&node, &examination, coordinator)
    }

    #[test]
    fn what_the_round_trip_explains_is_no_skew() {
        let here = Some(Skew { ahead_us: 0, error_us: 0 });
        for (ahead_us, level) in [
            (0, Level::Ok),
            (-130_000, Level::Ok),
            (131_000, Level::Slow),
            (-5_000_000, Level::Slow),
            (90_000_000_000, Level::Problem),
        ] {
            let finding = judged(ahead_us, here);
            assert_eq!(finding.level, level, "{finding:?}");
            assert_eq!(finding.fix.is_some(), level != Level::Ok, "{finding:?}");
        }
        let found = judged(-5_000_000, here).found;
        assert_eq!(found, "node b: 5000.00 ms behind this host's clock, give or take 30.00 ms");
    }

    #[test]
    fn the_coordinators_own_skew_counts() {
        let behind = Some(Skew { ahead_us: -5_000_000, error_us: 1_000 });
        assert_eq!(judged(5_000_000, behind).level, Level::Ok);
        assert_eq!(judged(0, behind).level, Level::Slow);
        assert_eq!(judged(0, None).level, Level::Unknown);
    }
}

//! Links that runs saw at another rate than was measured: when each is measured again.
//!
//! Owns the order and the pauses; pure, `now` is an argument. Invariants: one link at a time, so
//! that measurements do not disturb each other; a link has a pause of [`PAUSE_FIRST`] after each,
//! which doubles while they only confirm what was known, so that what it costs is bounded however
//! often runs see something else; an order that is not answered is given up.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Pair, figures_differ};
use crate::membership::Now;
use crate::protocol::LinkMeasured;

/// Between two measurements of one link, at least.
const PAUSE_FIRST: Duration = Duration::from_secs(60);

/// The same when they show nothing new, at most.
const PAUSE_MAX: Duration = Duration::from_secs(960);

/// How long a measurement waits for a moment without a run, which would disturb it.
const QUIET_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long the ranks have; a pair gives up before.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Two ranks of a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::coordinator) struct Seats {
    pub(in crate::coordinator) epoch: u64,
    pub(in crate::coordinator) a: u32,
    pub(in crate::coordinator) b: u32,
}

/// What a mesh does just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::coordinator) enum MeshNow {
    /// It is there no longer; the next one measures when it is formed.
    Gone,
    Idle,
    Busy,
}

/// One link.
struct Link {
    /// Since when it is to be measured, and by whom.
    wanted: Option<(Now, Seats)>,
    not_before: Now,
    pause: Duration,
}

struct UnderWay {
    number: u64,
    pair: Pair,
    known: LinkMeasured,
    deadline: Now,
}

/// All of them.
#[derive(Default)]
pub(in crate::coordinator) struct Drifts {
    begun: u64,
    links: BTreeMap<Pair, Link>,
    under_way: Option<UnderWay>,
}

impl Drifts {
    /// Runs saw something else on a link; true when it is to be measured for that.
    pub(super) fn note(&mut self, now: Now, pair: &Pair, seats: Seats) -> bool {
        let new = Link { wanted: None, not_before: Now::ZERO, pause: PAUSE_FIRST };
        let link = self.links.entry(pair.clone()).or_insert(new);
        let is_new = link.wanted.is_none();
        if is_new && now < link.not_before {
            return false;
        }
        let since = link.wanted.map_or(now, |(since, _)| since);
        link.wanted = Some((since, seats));
        is_new
    }

    /// The next link to measure, with the number of the order; `known` says what was measured last.
    pub(super) fn next(
        &mut self,
        now: Now,
        mesh: impl Fn(u64) -> MeshNow,
        known: impl Fn(&Pair) -> Option<LinkMeasured>,
    ) -> Option<(u64, Seats)> {
        self.under_way.take_if(|order| now >= order.deadline);
        if self.under_way.is_some() {
            return None;
        }
        for (pair, link) in &mut self.links {
            let Some((since, seats)) = link.wanted else { continue };
            let Some(known) = known(pair).filter(|_| mesh(seats.epoch) != MeshNow::Gone) else {
                link.wanted = None;
                continue;
            };
            if mesh(seats.epoch) == MeshNow::Busy && now < since + QUIET_WAIT_MAX {
                continue;
            }
            link.wanted = None;
            link.not_before = now + link.pause;
            self.begun += 1;
            let (number, deadline, pair) = (self.begun, now + ANSWER_MAX, pair.clone());
            self.under_way = Some(UnderWay { number, pair, known, deadline });
            return Some((number, seats));
        }
        None
    }

    /// The ranks have answered; whose link it is, if it is the one that they were asked for.
    pub(super) fn answered(
        &mut self,
        now: Now,
        number: u64,
        figures: Option<LinkMeasured>,
    ) -> Option<(Pair, LinkMeasured)> {
        let order = self.under_way.take_if(|order| order.number == number)?;
        let changed = figures.is_some_and(|new| figures_differ(order.known, new.bytes_per_s));
        if let Some(link) = self.links.get_mut(&order.pair) {
            link.pause = if changed { PAUSE_FIRST } else { (link.pause * 2).min(PAUSE_MAX) };
            link.not_before = now + link.pause;
        }
        Some((order.pair, figures?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SEATS: Seats = Seats { epoch: 4, a: 0, b: 1 };
    const BEGIN: Now = Duration::from_secs(1000);
    const SECOND: Duration = Duration::from_secs(1);

    fn pair(other: &str) -> Pair {
        ("a".to_owned(), other.to_owned())
    }

    fn rate(bytes_per_s: u64) -> LinkMeasured {
        LinkMeasured { round_trip_us: 100, bytes_per_s }
    }

    fn next(drifts: &mut Drifts, now: Now, mesh: MeshNow) -> Option<(u64, Seats)> {
        drifts.next(now, |_| mesh, |_| Some(rate(1000)))
    }

    #[test]
    fn links_are_measured_one_after_the_other_when_nothing_runs() {
        let mut drifts = Drifts::default();
        assert_eq!(next(&mut drifts, BEGIN, MeshNow::Idle), None);
        assert!(drifts.note(BEGIN, &pair("b"), SEATS));
        assert!(!drifts.note(BEGIN, &pair("b"), SEATS), "told once");
        assert!(drifts.note(BEGIN, &pair("c"), Seats { b: 2, ..SEATS }));
        assert_eq!(next(&mut drifts, BEGIN, MeshNow::Busy), None);
        assert_eq!(next(&mut drifts, BEGIN + SECOND, MeshNow::Idle), Some((1, SEATS)));
        assert_eq!(next(&mut drifts, BEGIN + SECOND, MeshNow::Idle), None, "one at a time");
        assert_eq!(drifts.answered(BEGIN + SECOND, 7, Some(rate(1))), None, "another order");
        let learned = drifts.answered(BEGIN + SECOND, 1, Some(rate(10)));
        assert_eq!(learned, Some((pair("b"), rate(10))));
        assert_eq!(drifts.answered(BEGIN + SECOND, 1, Some(rate(10))), None, "once");
        let second = next(&mut drifts, BEGIN + SECOND, MeshNow::Idle);
        assert_eq!(second, Some((2, Seats { b: 2, ..SEATS })));
    }

    #[test]
    fn a_mesh_that_is_never_idle_is_measured_all_the_same_and_one_that_is_gone_is_not() {
        let mut drifts = Drifts::default();
        drifts.note(BEGIN, &pair("b"), SEATS);
        let late = BEGIN + QUIET_WAIT_MAX;
        // What runs see meanwhile does not put it off.
        drifts.note(late - SECOND, &pair("b"), Seats { epoch: 5, ..SEATS });
        assert_eq!(next(&mut drifts, late - SECOND, MeshNow::Busy), None);
        assert_eq!(next(&mut drifts, late, MeshNow::Busy), Some((1, Seats { epoch: 5, ..SEATS })));
        drifts.note(late, &pair("c"), SEATS);
        assert_eq!(next(&mut drifts, late + ANSWER_MAX, MeshNow::Gone), None);
        assert_eq!(next(&mut drifts, late + ANSWER_MAX, MeshNow::Idle), None, "forgotten");
    }

    #[test]
    fn an_order_without_an_answer_is_given_up() {
        let mut drifts = Drifts::default();
        drifts.note(BEGIN, &pair("b"), SEATS);
        drifts.note(BEGIN, &pair("c"), SEATS);
        assert!(next(&mut drifts, BEGIN, MeshNow::Idle).is_some());
        assert_eq!(next(&mut drifts, BEGIN + ANSWER_MAX - SECOND, MeshNow::Idle), None);
        assert_eq!(next(&mut drifts, BEGIN + ANSWER_MAX, MeshNow::Idle).unwrap().0, 2);
        assert_eq!(drifts.answered(BEGIN + ANSWER_MAX, 1, Some(rate(10))), None, "too late");
    }

    #[test]
    fn a_link_that_only_confirms_its_figures_is_left_alone_for_longer_and_longer() {
        let mut drifts = Drifts::default();
        let (mut now, mut pauses) = (BEGIN, Vec::new());
        let mut measured = 0;
        // Every second for a day a run sees something else than is measured.
        let mut last = now;
        while now < BEGIN + 86_400 * SECOND {
            drifts.note(now, &pair("b"), SEATS);
            if let Some((number, _)) = next(&mut drifts, now, MeshNow::Idle) {
                pauses.push(now - last);
                last = now;
                measured += 1;
                drifts.answered(now, number, Some(rate(1100)));
            }
            now += SECOND;
        }
        assert!(measured <= 100, "{measured} measurements");
        assert_eq!(pauses[1], 2 * PAUSE_FIRST);
        assert_eq!(pauses.last(), Some(&PAUSE_MAX));
        // One that shows something new brings it back to the first pause.
        drifts.note(now + PAUSE_MAX, &pair("b"), SEATS);
        let (number, _) = next(&mut drifts, now + PAUSE_MAX, MeshNow::Idle).unwrap();
        drifts.answered(now + PAUSE_MAX, number, Some(rate(100)));
        let soon = now + PAUSE_MAX + PAUSE_FIRST;
        assert!(!drifts.note(soon - SECOND, &pair("b"), SEATS));
        assert!(drifts.note(soon, &pair("b"), SEATS));
    }
}

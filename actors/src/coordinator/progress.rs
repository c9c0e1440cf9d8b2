//! Whether a run goes on: how long its text, a step of it and its decoding may take, while
//! everybody in it is heard.
//!
//! A pure rule per run. Silence is membership's; this finds a device that computes for ever and
//! sends its heartbeats all the same. Owns the limit: [`StepLimit::floor`], or
//! [`StepLimit::factor`] times what is planned ([`Planned`]) where the cost model knows the
//! devices; of a step never less than that times the slowest one that this run has made. Where
//! nobody knows it is [`StepLimit::longest`]. Text and decoding of another run on the same mesh
//! hold this one up as long as they may take themselves.

use std::time::Duration;

use crate::manifest::HealthSection;
use crate::membership::Now;

/// What bounds a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepLimit {
    pub(super) floor: Duration,
    pub(super) factor: u32,
    pub(super) longest: Duration,
}

impl StepLimit {
    pub(super) fn of(health: &HealthSection) -> Self {
        let ms = |ms: u32| Duration::from_millis(ms.into());
        Self {
            floor: ms(health.step_deadline_ms),
            factor: health.step_deadline_factor,
            longest: ms(health.op_deadline_ms),
        }
    }
}

/// What the stages of a run are planned to take; `None` where nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Planned {
    /// From its start to its first step: text, the weights of the encoder included.
    pub(crate) text: Option<Duration>,
    /// A step.
    pub(crate) step: Option<Duration>,
    /// From its last step to its end.
    pub(crate) decode: Option<Duration>,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Before,
    Stepping,
    After,
}

/// The progress of one run.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    limit: StepLimit,
    planned: Planned,
    slowest: Option<Duration>,
    since: Now,
    stage: Stage,
}

impl Progress {
    /// Of a run that starts `now`.
    pub(super) fn new(limit: StepLimit, planned: Planned, now: Now) -> Self {
        Self { limit, planned, slowest: None, since: now, stage: Stage::Before }
    }

    /// The prompt is encoded; with `steps` to do.
    pub(super) fn encoded(&mut self, now: Now, steps: bool) {
        self.since = now;
        self.stage = if steps { Stage::Stepping } else { Stage::After };
    }

    /// A step is done, the last one or not.
    pub(super) fn step_done(&mut self, now: Now, is_last: bool) {
        if self.stage == Stage::Stepping {
            let took = now.saturating_sub(self.since);
            self.slowest = self.slowest.max(Some(took));
        }
        self.encoded(now, !is_last);
    }

    /// What went by is nobody's fault: the coordinator did not run itself, or another run was at
    /// its text or its decoding.
    pub(super) fn excuse(&mut self, now: Now) {
        self.since = now;
    }

    /// How long the run may go on as it is.
    pub(super) fn limit(&self) -> Duration {
        let StepLimit { floor, factor, longest } = self.limit;
        let planned = match self.stage {
            Stage::Before => self.planned.text,
            Stage::Stepping => self.planned.step.max(self.slowest),
            Stage::After => self.planned.decode,
        };
        planned.map_or(longest, |planned| floor.max(planned.saturating_mul(factor)).min(longest))
    }

    /// How long it may hold up other runs on its mesh; `None` while it makes steps, which take
    /// turns.
    pub(super) fn holds_up(&self) -> Option<Duration> {
        (self.stage != Stage::Stepping).then(|| self.limit())
    }

    /// The limit, when the run has gone beyond it, and beyond what others hold it up.
    pub(super) fn overdue(&self, now: Now, held_up: Duration) -> Option<Duration> {
        let limit = self.limit().max(held_up);
        (now.saturating_sub(self.since) >= limit).then_some(limit)
    }

    /// What does not end, given the `step` under way.
    pub(super) fn under_way(&self, step: u32) -> String {
        match self.stage {
            Stage::Before => "its text".into(),
            Stage::Stepping => format!("step {step}"),
            Stage::After => "its decoding".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: StepLimit =
        StepLimit { floor: Duration::from_secs(10), factor: 5, longest: Duration::from_secs(1800) };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A plan of steps only.
    fn steps(step: Option<Duration>) -> Planned {
        Planned { step, ..Planned::default() }
    }

    #[test]
    fn a_step_has_five_times_what_was_planned_and_ten_seconds_at_least() {
        for (planned, limit) in [(s(1), s(10)), (s(2), s(10)), (s(30), s(150)), (s(900), s(1800))] {
            let mut progress = Progress::new(LIMIT, steps(Some(planned)), s(0));
            assert_eq!(progress.limit(), LIMIT.longest, "text has no plan");
            progress.encoded(s(5), true);
            assert_eq!(progress.limit(), limit, "planned {planned:?}");
            assert_eq!(progress.overdue(s(4) + limit, s(0)), None);
            assert_eq!(progress.overdue(s(5) + limit, s(0)), Some(limit));
            progress.step_done(s(6), false);
            assert_eq!(progress.overdue(s(5) + limit, s(0)), None, "it goes on");
            progress.step_done(s(7), true);
            assert_eq!(progress.limit(), LIMIT.longest, "nor has decoding");
        }
    }

    #[test]
    fn text_and_decoding_have_the_same_rule_where_they_are_planned() {
        let planned = Planned { text: Some(s(4)), step: Some(s(1)), decode: Some(s(60)) };
        let mut progress = Progress::new(LIMIT, planned, s(0));
        assert_eq!(progress.overdue(s(19), s(0)), None);
        assert_eq!(progress.overdue(s(20), s(0)), Some(s(20)));
        assert_eq!(progress.under_way(1), "its text");
        progress.encoded(s(20), true);
        assert_eq!(progress.overdue(s(30), s(0)), Some(s(10)));
        assert_eq!(progress.under_way(1), "step 1");
        progress.step_done(s(30), true);
        assert_eq!(progress.overdue(s(329), s(0)), None);
        assert_eq!(progress.overdue(s(330), s(0)), Some(s(300)));
        assert_eq!(progress.under_way(2), "its decoding");
        let quick = Planned { text: Some(s(0)), decode: Some(s(0)), ..planned };
        let mut progress = Progress::new(LIMIT, quick, s(0));
        assert_eq!(progress.limit(), LIMIT.floor);
        progress.encoded(s(0), false);
        assert_eq!(progress.limit(), LIMIT.floor, "all steps are in its checkpoint");
    }

    #[test]
    fn a_step_waits_for_text_and_decoding_of_another_run_on_its_mesh() {
        let planned = Planned { text: Some(s(12)), step: Some(s(1)), decode: Some(s(6)) };
        let mut steps = Progress::new(LIMIT, planned, s(0));
        steps.encoded(s(0), true);
        let mut other = Progress::new(LIMIT, planned, s(0));
        let held_up = other.holds_up().expect("it is at its text");
        assert_eq!(steps.overdue(s(59), held_up), None);
        assert_eq!(steps.overdue(s(60), held_up), Some(s(60)), "not for ever");
        other.encoded(s(50), true);
        steps.excuse(s(50));
        assert_eq!(other.holds_up(), None, "steps take turns");
        assert_eq!(steps.overdue(s(59), s(0)), None);
        assert_eq!(steps.overdue(s(60), s(0)), Some(s(10)));
        other.step_done(s(51), true);
        assert_eq!(other.holds_up(), Some(s(30)));
    }

    #[test]
    fn without_a_plan_the_slowest_step_of_the_run_stands_for_it() {
        let mut progress = Progress::new(LIMIT, steps(None), s(0));
        progress.encoded(s(100), true);
        assert_eq!(progress.limit(), LIMIT.longest, "nobody knows");
        progress.step_done(s(106), false);
        assert_eq!(progress.limit(), s(30));
        progress.step_done(s(107), false);
        assert_eq!(progress.limit(), s(30), "a quick one does not make the others late");
        let mut planned = Progress::new(LIMIT, steps(Some(s(1))), s(0));
        planned.encoded(s(0), true);
        planned.step_done(s(8), false);
        assert_eq!(planned.limit(), s(40), "a plan that was too good is put right");
    }

    #[test]
    fn what_this_process_slept_through_does_not_count() {
        let mut progress = Progress::new(LIMIT, steps(Some(s(1))), s(0));
        progress.encoded(s(0), true);
        progress.excuse(s(3600));
        assert_eq!(progress.overdue(s(3609), s(0)), None);
        assert_eq!(progress.overdue(s(3610), s(0)), Some(s(10)));
    }
}

//! Whether a run goes on: how long a step of it may take, while everybody in it is heard.
//!
//! A pure rule per run. Silence is membership's; this finds a device that computes for ever and sends its
//! heartbeats all the same. Owns the limit: [`StepLimit::floor`], or [`StepLimit::factor`] times what a step
//! is planned to take where the cost model knows the devices, and never less than that times the
//! slowest step that this run has made. Before the first step (text, weights of the encoder) and after
//! the last (decoding), and as long as nobody knows what a step takes, it is [`StepLimit::longest`].

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
    planned: Option<Duration>,
    slowest: Option<Duration>,
    since: Now,
    stage: Stage,
}

impl Progress {
    /// Of a run that starts `now`; what a step of it is `planned` to take, if anybody knows.
    pub(super) fn new(limit: StepLimit, planned: Option<Duration>, now: Now) -> Self {
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

    /// The coordinator did not run itself for a while: what it missed is nobody's fault.
    pub(super) fn excuse(&mut self, now: Now) {
        self.since = now;
    }

    /// How long the run may go on as it is.
    pub(super) fn limit(&self) -> Duration {
        let StepLimit { floor, factor, longest } = self.limit;
        match self.planned.max(self.slowest) {
            Some(step) if self.stage == Stage::Stepping => {
                floor.max(step.saturating_mul(factor)).min(longest)
            }
            _ => longest,
        }
    }

    /// The limit, when the run has gone beyond it.
    pub(super) fn overdue(&self, now: Now) -> Option<Duration> {
        let limit = self.limit();
        (now.saturating_sub(self.since) >= limit).then_some(limit)
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

    #[test]
    fn a_step_has_five_times_what_was_planned_and_ten_seconds_at_least() {
        for (planned, limit) in [(s(1), s(10)), (s(2), s(10)), (s(30), s(150)), (s(900), s(1800))] {
            let mut progress = Progress::new(LIMIT, Some(planned), s(0));
            assert_eq!(progress.limit(), LIMIT.longest, "text has no plan");
            progress.encoded(s(5), true);
            assert_eq!(progress.limit(), limit, "planned {planned:?}");
            assert_eq!(progress.overdue(s(4) + limit), None);
            assert_eq!(progress.overdue(s(5) + limit), Some(limit));
            progress.step_done(s(6), false);
            assert_eq!(progress.overdue(s(5) + limit), None, "it goes on");
            progress.step_done(s(7), true);
            assert_eq!(progress.limit(), LIMIT.longest, "nor has decoding");
        }
    }

    #[test]
    fn without_a_plan_the_slowest_step_of_the_run_stands_for_it() {
        let mut progress = Progress::new(LIMIT, None, s(0));
        progress.encoded(s(100), true);
        assert_eq!(progress.limit(), LIMIT.longest, "nobody knows");
        progress.step_done(s(106), false);
        assert_eq!(progress.limit(), s(30));
        progress.step_done(s(107), false);
        assert_eq!(progress.limit(), s(30), "a quick one does not make the others late");
        let mut planned = Progress::new(LIMIT, Some(s(1)), s(0));
        planned.encoded(s(0), true);
        planned.step_done(s(8), false);
        assert_eq!(planned.limit(), s(40), "a plan that was too good is put right");
    }

    #[test]
    fn what_this_process_slept_through_does_not_count() {
        let mut progress = Progress::new(LIMIT, Some(s(1)), s(0));
        progress.encoded(s(0), true);
        progress.excuse(s(3600));
        assert_eq!(progress.overdue(s(3609)), None);
        assert_eq!(progress.overdue(s(3610)), Some(s(10)));
        let mut decoding = Progress::new(LIMIT, Some(s(1)), s(0));
        decoding.encoded(s(0), false);
        assert_eq!(decoding.limit(), LIMIT.longest, "all steps are in its checkpoint");
    }
}

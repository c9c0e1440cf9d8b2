//! Whether a run is worth moving to a better mesh that is ready, rather than ending where it is.
//!
//! Owns the rule, pure: by the planner's seconds of a step on both meshes, what is left to do here
//! is weighed against what is left from its newest checkpoint there, the one synchronous step that
//! a pipeline makes more included. As those are predictions, it has to save that much again.

use std::time::Duration;

/// A run with fewer steps left ends where it is.
const STEPS_LEFT_MIN: u32 = 4;

/// What a step takes on a mesh, by the cost model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepTimes {
    /// In the steady state.
    pub(crate) steady: Duration,
    /// A synchronous one: through the stages of a pipeline, one after the other.
    pub(crate) synchronous: Duration,
}

/// A run, the mesh it is on and the one that it could go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prospect {
    /// Steps of the whole run.
    pub(super) steps: u32,
    /// Steps done.
    pub(super) done: u32,
    /// Steps that the newest checkpoint holds.
    pub(super) kept: u32,
    pub(super) here: StepTimes,
    pub(super) there: StepTimes,
}

impl Prospect {
    /// Whether moving saves time.
    pub(super) fn pays(&self) -> bool {
        let left_here = self.steps.saturating_sub(self.done);
        let left_there = self.steps.saturating_sub(self.kept);
        if left_here < STEPS_LEFT_MIN {
            return false;
        }
        let stay = self.here.steady.saturating_mul(left_here);
        let sync = self.there.synchronous;
        stay > self.there.steady.saturating_mul(left_there).saturating_add(sync.saturating_mul(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds of a step, and of a synchronous one.
    fn times(steady: u64, synchronous: u64) -> StepTimes {
        let ms = Duration::from_millis;
        StepTimes { steady: ms(steady), synchronous: ms(synchronous) }
    }

    #[test]
    fn a_run_moves_when_it_has_long_to_go_and_the_gain_pays_for_a_synchronous_step() {
        let (slow, fast) = (times(100, 100), times(50, 200));
        let run = |done, kept| Prospect { steps: 50, done, kept, here: slow, there: fast };
        assert!(run(10, 10).pays(), "40 steps here, 20 and a bit there");
        // 4.0 s against 2.0 s, and 2 x 0.2 s.
        assert!(run(41, 41).pays(), "0.9 s against 0.45 s and 0.4 s");
        assert!(!run(42, 42).pays(), "0.8 s against 0.4 s and 0.4 s");
        assert!(!run(47, 47).pays() && !run(50, 50).pays(), "it has nearly ended");
        assert!(!run(30, 0).pays(), "2.0 s against 2.5 s: what is not kept is done again");
        assert!(run(30, 29).pays());
    }

    #[test]
    fn a_mesh_that_is_no_faster_is_nothing_to_move_to() {
        let same = times(100, 100);
        let run = |there| Prospect { steps: 1000, done: 1, kept: 1, here: same, there };
        assert!(!run(same).pays());
        assert!(!run(times(120, 120)).pays());
        assert!(run(times(99, 100)).pays(), "so long that little is enough");
        assert!(!run(times(99, 100_000)).pays());
    }
}

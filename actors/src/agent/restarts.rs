//! How often something that died is started again, and how soon.
//!
//! Pure: how long it lived comes in as an argument. Used by agents for workers and by the launcher
//! for agents.

use std::time::Duration;

/// First pause; each further one doubles it.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A life this long pays back one restart.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// The budget of one thing.
#[derive(Debug)]
pub(crate) struct Restarts {
    max: u32,
    used: u32,
}

impl Restarts {
    pub(crate) fn new(max: u32) -> Self {
        Self { max, used: 0 }
    }

    /// It died after living for `lived`: how long to pause before starting it again, `None` when
    /// the budget is spent.
    pub(crate) fn died(&mut self, lived: Duration) -> Option<Duration> {
        if lived >= FORGIVEN_AFTER {
            self.used = self.used.saturating_sub(1);
        }
        if self.used >= self.max {
            return None;
        }
        let pause = PAUSE_FIRST.saturating_mul(1 << self.used.min(16)).min(PAUSE_MAX);
        self.used += 1;
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_the_budget_ends() {
        let mut restarts = Restarts::new(8);
        let pauses: Vec<u128> = std::iter::from_fn(|| restarts.died(Duration::ZERO))
            .map(|pause| pause.as_millis())
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(restarts.died(Duration::ZERO), None);
    }

    #[test]
    fn a_long_life_pays_a_restart_back() {
        let mut restarts = Restarts::new(1);
        assert!(restarts.died(Duration::ZERO).is_some());
        assert!(restarts.died(FORGIVEN_AFTER).is_some());
        assert!(restarts.died(Duration::ZERO).is_none());
    }
}

//! Members that die again and again: each death soon after the ones before costs a longer time in
//! which the member, though alive, is not counted on.
//!
//! Owns the rule and its numbers. The time comes in as an argument.

use std::collections::VecDeque;
use std::time::Duration;

use super::Now;

/// Deaths within [`FLAP_WINDOW`] that make a member flap.
pub const FLAPS_MAX: usize = 3;

/// How long a death counts.
pub const FLAP_WINDOW: Duration = Duration::from_secs(60);

/// The first quarantine; each further one doubles it.
pub const QUARANTINE_FIRST: Duration = Duration::from_secs(5);

/// The longest quarantine.
pub const QUARANTINE_MAX: Duration = Duration::from_secs(300);

/// What is remembered of one member's deaths.
#[derive(Debug, Default)]
pub(super) struct Flapping {
    /// The latest deaths, at most [`FLAPS_MAX`].
    deaths: VecDeque<Now>,
    /// Quarantines in a row.
    quarantines: u32,
    until: Option<Now>,
}

impl Flapping {
    /// It died; how long it is quarantined for when that makes it flap.
    pub(super) fn died(&mut self, now: Now) -> Option<Duration> {
        self.deaths.retain(|&death| now.saturating_sub(death) < FLAP_WINDOW);
        if self.deaths.is_empty() {
            self.quarantines = 0;
        }
        if self.deaths.len() >= FLAPS_MAX {
            self.deaths.pop_front();
        }
        self.deaths.push_back(now);
        if self.deaths.len() < FLAPS_MAX {
            return None;
        }
        let length = QUARANTINE_FIRST.saturating_mul(1 << self.quarantines.min(16));
        let length = length.min(QUARANTINE_MAX);
        self.quarantines = self.quarantines.saturating_add(1);
        self.until = Some(now + length);
        Some(length)
    }

    pub(super) fn is_quarantined(&self) -> bool {
        self.until.is_some()
    }

    /// Ends a quarantine before its time; the next one is longer all the same.
    pub(super) fn parole(&mut self) {
        self.until = None;
    }

    /// Ends a quarantine whose time has come; true when it does.
    pub(super) fn release(&mut self, now: Now) -> bool {
        let over = self.until.is_some_and(|until| until <= now);
        if over {
            self.until = None;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Now {
        Now::from_secs(seconds)
    }

    #[test]
    fn deaths_close_together_quarantine_and_again_for_longer() {
        let mut flapping = Flapping::default();
        assert_eq!(flapping.died(s(0)), None);
        assert_eq!(flapping.died(s(1)), None);
        assert_eq!(flapping.died(s(2)), Some(QUARANTINE_FIRST));
        assert!(flapping.is_quarantined() && !flapping.release(s(6)));
        assert!(flapping.release(s(7)) && !flapping.is_quarantined());
        assert_eq!(flapping.died(s(8)), Some(2 * QUARANTINE_FIRST));
        let lengths = (9..30).filter_map(|second| flapping.died(s(second)));
        assert_eq!(lengths.last(), Some(QUARANTINE_MAX));
        assert!(flapping.deaths.len() <= FLAPS_MAX);
    }

    #[test]
    fn deaths_far_apart_do_not_count_together() {
        let mut flapping = Flapping::default();
        for second in (0..600).step_by(30) {
            assert_eq!(flapping.died(s(second)), None, "{second}");
        }
    }
}

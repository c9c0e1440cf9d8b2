//! How long large payloads take that are fetched over one lane.
//!
//! Owns the stretches in which at least one is on its way. UCX fetches several at a time, and tells
//! of none how much of it has come; what came in a whole stretch is known. Pure: the clock is an
//! argument. Invariant: a stretch never seems faster than its lane was.

use std::time::{Duration, Instant};

#[derive(Default)]
pub(super) struct Coming {
    under_way: usize,
    since: Option<Instant>,
    bytes: u64,
}

impl Coming {
    /// One more is on its way.
    pub(super) fn begins(&mut self, now: Instant) {
        if self.under_way == 0 {
            (self.since, self.bytes) = (Some(now), 0);
        }
        self.under_way += 1;
    }

    /// One has come; if it was the last, what the stretch brought and how long it was.
    pub(super) fn ends(
        &mut self,
        bytes: u64,
        now: impl FnOnce() -> Instant,
    ) -> Option<(u64, Duration)> {
        self.under_way = self.under_way.checked_sub(1)?;
        self.bytes += bytes;
        if self.under_way > 0 {
            return None;
        }
        let since = self.since.take()?;
        Some((self.bytes, now().saturating_duration_since(since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_that_come_together_are_one_stretch() {
        let (begun, ms) = (Instant::now(), Duration::from_millis);
        let at = |after| move || begun + ms(after);
        let mut coming = Coming::default();
        assert_eq!(coming.ends(9, at(0)), None, "it was not looked at");
        coming.begins(begun);
        assert_eq!(coming.ends(100, at(10)), Some((100, ms(10))));
        coming.begins(begun + ms(20));
        coming.begins(begun + ms(22));
        assert_eq!(coming.ends(100, at(39)), None);
        coming.begins(begun + ms(39));
        assert_eq!(coming.ends(100, at(40)), None);
        assert_eq!(coming.ends(300, at(70)), Some((500, ms(50))), "each but its own time");
    }
}

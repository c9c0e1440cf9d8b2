//! How far two clocks are apart, from one question and its answer.
//!
//! Owns the arithmetic, that of NTP (RFC 5905, section 8): the way there and the way back are taken
//! for equally long, and they differ by at most the time both take together, so half of that bounds
//! the error. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Microseconds since 1970, by this host's clock.
pub fn unix_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// The other clock against the own one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew {
    /// How far the other is ahead, in microseconds.
    pub ahead_us: i64,
    /// It may be so much more or less: half of the round trip.
    pub error_us: u64,
}

impl Skew {
    /// From the four moments of a question: asked and heard by the own clock, received and sent by
    /// the other. In microseconds; `None` where they are in no order that can be.
    pub fn of(asked: u64, received: u64, sent: u64, heard: u64) -> Option<Self> {
        let away = heard.checked_sub(asked)?;
        let there = sent.checked_sub(received)?;
        let ways = away.checked_sub(there)?;
        let ahead = i128::from(received) - i128::from(asked) + i128::from(sent) - i128::from(heard);
        Some(Self { ahead_us: i64::try_from(ahead / 2).ok()?, error_us: ways.div_ceil(2) })
    }

    /// The other clock against the own one, where this is a second against it and `first` the
    /// second against the own.
    #[must_use]
    pub fn after(self, first: Self) -> Self {
        Self {
            ahead_us: self.ahead_us.saturating_add(first.ahead_us),
            error_us: self.error_us.saturating_add(first.error_us),
        }
    }

    /// How far they are apart at least, in microseconds.
    pub fn apart_at_least_us(self) -> u64 {
        self.ahead_us.unsigned_abs().saturating_sub(self.error_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_round_trip_and_the_time_to_answer_are_no_skew() {
        // Three seconds ahead, 40 ms each way, 2 s to answer.
        let skew = Skew::of(1_000_000, 4_040_000, 6_040_000, 3_080_000);
        assert_eq!(skew, Some(Skew { ahead_us: 3_000_000, error_us: 40_000 }));
        // Behind, all of the round trip on the way back: the error covers it.
        let skew = Skew::of(1_000_000, 500_000, 500_000, 1_080_000);
        let skew = skew.map(|it| (it.ahead_us, it.error_us, it.apart_at_least_us()));
        assert_eq!(skew, Some((-540_000, 40_000, 500_000)));
    }

    #[test]
    fn moments_in_an_order_that_cannot_be_give_nothing() {
        assert_eq!(Skew::of(10, 5, 5, 9), None, "heard before it was asked");
        assert_eq!(Skew::of(10, 6, 5, 20), None, "sent before it was received");
        assert_eq!(Skew::of(10, 0, 20, 20), None, "answered for longer than it took");
        assert_eq!(Skew::of(0, u64::MAX, u64::MAX, 1), None, "out of range");
    }

    #[test]
    fn skews_add_up_and_so_do_their_errors() {
        let one = Skew { ahead_us: -50, error_us: 10 };
        let two = Skew { ahead_us: 20, error_us: 3 };
        assert_eq!(two.after(one), Skew { ahead_us: -30, error_us: 13 });
    }
}

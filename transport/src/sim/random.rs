//! Seeded randomness: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
//! generators", 2014).

use std::time::Duration;

pub(super) struct Random {
    state: u64,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True `count` times in a million.
    pub(super) fn one_in_a_million(&mut self, count: u32) -> bool {
        self.next() % 1_000_000 < u64::from(count)
    }

    /// Between both, inclusive.
    pub(super) fn between(&mut self, min: Duration, max: Duration) -> Duration {
        let span = max.saturating_sub(min).as_nanos();
        let span = u64::try_from(span).unwrap_or(u64::MAX - 1);
        min + Duration::from_nanos(self.next() % (span + 1))
    }
}

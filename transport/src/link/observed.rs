//! How fast large payloads came lately.
//!
//! Owns the last few of them. The fastest counts: a payload is slow for many reasons (others on the
//! same link, a sender that is busy), and fast only if the link is. Knows no clock.

use std::collections::VecDeque;
use std::time::Duration;

/// Payloads from this size on are looked at, in bytes: smaller ones fit into buffers.
pub const OBSERVED_BYTES_MIN: u64 = 1 << 20;

/// How many of them.
pub const OBSERVED_FRAMES: usize = 16;

#[derive(Default)]
pub(super) struct Observed {
    bytes_per_s: VecDeque<u64>,
}

impl Observed {
    pub(super) fn came(&mut self, bytes: u64, took: Duration) {
        if bytes < OBSERVED_BYTES_MIN {
            return;
        }
        let nanos = took.as_nanos().max(1);
        let rate = u128::from(bytes) * 1_000_000_000 / nanos;
        if self.bytes_per_s.len() >= OBSERVED_FRAMES {
            self.bytes_per_s.pop_front();
        }
        self.bytes_per_s.push_back(u64::try_from(rate).unwrap_or(u64::MAX));
    }

    pub(super) fn fastest(&self) -> Option<u64> {
        let full = self.bytes_per_s.len() == OBSERVED_FRAMES;
        self.bytes_per_s.iter().copied().max().filter(|_| full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_of_the_last_large_ones_counts_once_there_are_enough() {
        let mut observed = Observed::default();
        observed.came(OBSERVED_BYTES_MIN, Duration::from_millis(1));
        for _ in 1..OBSERVED_FRAMES {
            assert_eq!(observed.fastest(), None);
            observed.came(1_000_000, Duration::from_nanos(1));
            observed.came(OBSERVED_BYTES_MIN, Duration::from_secs(1));
        }
        assert_eq!(observed.fastest(), Some(OBSERVED_BYTES_MIN * 1000));
        observed.came(OBSERVED_BYTES_MIN * 2, Duration::from_secs(1));
        assert_eq!(observed.fastest(), Some(OBSERVED_BYTES_MIN * 2), "the fastest is forgotten");
    }
}

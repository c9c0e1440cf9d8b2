//! A congestion controller that finds out what loss means on its path.
//!
//! Owns the judgement and the change from Cubic to BBR. A packet that is lost while the round trip
//! is as short as it gets was lost by no queue that this end could drain by sending less: Cubic
//! would go down to a fraction of the link's rate for nothing, and BBR, which measures what
//! arrives, does not. Packets that are lost behind a full queue leave the path with Cubic, which
//! shares it with others as TCP does. Invariants: ECN is never taken for chance; a path that has
//! changed stays changed (a connection lives as long as its mesh).

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{
    BbrConfig, Controller, ControllerFactory, ControllerMetrics, CubicConfig,
};

/// Losses that are looked at, one per round trip at most.
const LOSSES: u32 = 8;

/// Of those, how many must have come by chance.
const BY_CHANCE_MIN: u32 = 6;

/// A round trip within this share of the shortest one has met no queue worth the name.
const QUEUE_SHARE: u32 = 4;

/// Makes one controller per connection.
#[derive(Debug, Default)]
pub(super) struct AdaptiveConfig;

impl ControllerFactory for AdaptiveConfig {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let inner = Arc::new(CubicConfig::default()).build(now, mtu);
        let judgement = Some(Judgement::default());
        Box::new(Adaptive { inner, judgement, mtu, rtt: Duration::ZERO, shortest: Duration::ZERO })
    }
}

struct Adaptive {
    inner: Box<dyn Controller>,
    /// None once it has come to BBR.
    judgement: Option<Judgement>,
    mtu: u16,
    rtt: Duration,
    shortest: Duration,
}

/// What the last losses were.
#[derive(Clone, Copy, Debug, Default)]
struct Judgement {
    /// A bit for each, the latest lowest; set where it came by chance.
    by_chance: u8,
    seen: u32,
    /// Packets sent before this belong to a loss that was looked at.
    until: Option<Instant>,
}

impl Judgement {
    /// Another loss, of a packet sent at `sent`; true when loss on this path comes by chance.
    fn lost(&mut self, now: Instant, sent: Instant, by_chance: bool) -> bool {
        if self.until.is_some_and(|until| sent <= until) {
            return false;
        }
        self.until = Some(now);
        self.seen = self.seen.saturating_add(1);
        self.by_chance = self.by_chance << 1 | u8::from(by_chance);
        self.seen >= LOSSES && self.by_chance.count_ones() >= BY_CHANCE_MIN
    }
}

impl Controller for Adaptive {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        (self.rtt, self.shortest) = (rtt.get(), rtt.min());
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_acked: Option<u64>,
    ) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost: u64) {
        let by_chance = lost > 0 && self.rtt <= self.shortest + self.shortest / QUEUE_SHARE;
        if self.judgement.as_mut().is_some_and(|judgement| judgement.lost(now, sent, by_chance)) {
            self.judgement = None;
            let mut bbr = BbrConfig::default();
            // It goes on from where the path is, and looks for more at once.
            bbr.initial_window(self.inner.window().max(self.inner.initial_window()));
            self.inner = Arc::new(bbr).build(now, self.mtu);
            tracing::info!(
                round_trip_us = self.rtt.as_micros(),
                "this path loses packets at random; BBR takes over from Cubic"
            );
        }
        self.inner.on_congestion_event(now, sent, persistent, lost);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        let Self { judgement, mtu, rtt, shortest, .. } = *self;
        Box::new(Self { inner: self.inner.clone_box(), judgement, mtu, rtt, shortest })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: u16 = 1452;
    const SHORTEST: Duration = Duration::from_millis(2);

    /// Loses packets, each in a round trip of its own that took `rtt`.
    fn after(losses: u32, rtt: Duration, lost: u64) -> Adaptive {
        let mut now = Instant::now();
        let inner = Arc::new(CubicConfig::default()).build(now, MTU);
        let judgement = Some(Judgement::default());
        let mut path = Adaptive { inner, judgement, mtu: MTU, rtt, shortest: SHORTEST };
        for _ in 0..losses {
            let sent = now + rtt;
            now = sent + rtt;
            path.on_congestion_event(now, sent, false, lost);
            // More of the same round trip count once.
            path.on_congestion_event(now, sent, false, lost);
        }
        path
    }

    #[test]
    fn loss_without_a_queue_is_chance_and_loss_behind_one_is_not() {
        assert!(after(LOSSES, SHORTEST, 1452).judgement.is_none());
        assert!(after(LOSSES - 1, SHORTEST, 1452).judgement.is_some());
        assert!(after(100, SHORTEST * 2, 1452).judgement.is_some());
    }

    #[test]
    fn a_mark_of_congestion_is_never_chance() {
        assert!(after(100, SHORTEST, 0).judgement.is_some());
    }

    #[test]
    fn a_window_that_cubic_had_is_not_given_up_and_cubics_losses_make_it_small() {
        let (cubic, bbr) = (after(LOSSES - 1, SHORTEST, 1452), after(LOSSES, SHORTEST, 1452));
        assert!(bbr.window() >= cubic.initial_window().min(cubic.window()));
        assert!(cubic.window() < cubic.initial_window());
    }

    #[test]
    fn some_losses_by_chance_among_others_are_not_enough() {
        let mut judgement = Judgement::default();
        let mut now = Instant::now();
        let mut turned = false;
        for index in 0..100 {
            let sent = now + SHORTEST;
            now = sent + SHORTEST;
            turned |= judgement.lost(now, sent, index % 2 == 0);
        }
        assert!(!turned);
    }
}

//! A simulated network in virtual time, for tests and for the planner's what-if.
//!
//! Owns the clock, the seeded randomness and the order of events. Links behave as the real ones:
//! reliable, ordered per lane, grants before frames; loss shows as delay, a partition as silence
//! and then as a closed link. Payloads count as ready. Invariants: the same seed and the same calls
//! give the same history; nothing happens between two calls of [`SimNetwork::advance`].

mod link;
mod network;
mod random;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::ids::{Epoch, PeerId};
use crate::link::Transport;
use link::SimTransport;
use network::Network;

/// How a simulated network behaves.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// The mesh that all links belong to.
    pub epoch: Epoch,
    /// Shortest one-way delay.
    pub latency_min: Duration,
    /// Longest one-way delay.
    pub latency_max: Duration,
    /// Bytes per second of each direction of each link's lane.
    pub bandwidth_bytes_per_s: u64,
    /// How many of a million messages are lost and sent again.
    pub loss_per_million: u32,
    /// What one loss costs.
    pub retransmit_delay: Duration,
    /// Silence after which a partitioned link counts as lost, at both ends.
    pub idle_timeout: Duration,
}

impl Default for SimConfig {
    /// A fast Ethernet cluster: 50-150 us, 1.25 GB/s, no loss.
    fn default() -> Self {
        Self {
            epoch: Epoch(1),
            latency_min: Duration::from_micros(50),
            latency_max: Duration::from_micros(150),
            bandwidth_bytes_per_s: 1_250_000_000,
            loss_per_million: 0,
            retransmit_delay: Duration::from_millis(3),
            idle_timeout: Duration::from_millis(1800),
        }
    }
}

/// A simulated network; clones share it.
#[derive(Clone)]
pub struct SimNetwork {
    network: Arc<Mutex<Network>>,
}

impl SimNetwork {
    /// A network at time zero.
    pub fn new(seed: u64, config: SimConfig) -> Self {
        Self { network: Arc::new(Mutex::new(Network::new(seed, config))) }
    }

    /// A member's transport; it has a link to every other member asked for.
    pub fn transport(&self, peer: PeerId) -> Arc<dyn Transport> {
        Arc::new(SimTransport::new(peer, Arc::clone(&self.network)))
    }

    /// Virtual time since the beginning.
    pub fn now(&self) -> Duration {
        lock(&self.network).now()
    }

    /// Lets the next event happen; false when there is none.
    pub fn advance(&self) -> bool {
        lock(&self.network).advance()
    }

    /// Lets everything up to `time` happen, and moves the clock there.
    pub fn run_until(&self, time: Duration) {
        lock(&self.network).run_until(time);
    }

    /// Lets everything happen that is under way; the number of events.
    pub fn run_until_idle(&self) -> usize {
        let mut events = 0;
        while self.advance() {
            events += 1;
        }
        events
    }

    /// Silences the link between two members, in both directions.
    pub fn partition(&self, a: PeerId, b: PeerId) {
        lock(&self.network).partition(a, b);
    }

    /// Ends a partition; what was silenced arrives after all, if the link still lives.
    pub fn heal(&self, a: PeerId, b: PeerId) {
        lock(&self.network).heal(a, b);
    }
}

fn lock(network: &Mutex<Network>) -> MutexGuard<'_, Network> {
    network.lock().unwrap_or_else(PoisonError::into_inner)
}

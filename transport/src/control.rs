//! The control channel: ordered messages between two authenticated processes.
//!
//! Owns endpoints that dial and accept channels, the two halves of a channel, and its framing. Does
//! not know what the messages say; the typed protocol is `actors`' own. Invariants: messages and
//! blobs are bounded before anything is allocated; every queue is bounded; losing the other end
//! ends every wait; sending and receiving may be cancelled between any two polls without harm.
//!
//! Messages and blobs have one bidirectional stream per connection. A blob occupies it until it is
//! through: use a channel of its own where messages must not wait behind one. Heartbeats have a
//! stream of their own each way, which goes first.

mod beats;
mod channel;
mod endpoint;
mod pump;
mod receiver;
mod sender;
mod state;
mod wire;

use std::net::SocketAddr;
use std::time::Duration;

pub use beats::Beats;
pub use channel::ControlChannel;
pub use endpoint::ControlEndpoint;
pub use receiver::ControlReceiver;
pub use sender::ControlSender;
pub use wire::{CONTROL_BLOB_BYTES_MAX, CONTROL_MESSAGE_BYTES_MAX};

use crate::identity::Identity;

/// Messages that one direction of a channel queues on either side.
pub const CONTROL_QUEUE_MESSAGES_MAX: usize = 64;

/// What a control endpoint holds just now, for whoever looks whether something is left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlHoldings {
    /// Connections that are open, or whose last words have time to arrive.
    pub connections: usize,
    /// Of these, streams that the peer has opened, and own ones that it has not acknowledged: both
    /// directions of each channel's messages, and its heartbeats each way.
    pub streams: usize,
    /// Callers whose handshake, or whose question to join, is under way.
    pub callers: usize,
}

/// How a control endpoint is set up.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Who this process is.
    pub identity: Identity,
    /// Where to listen; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// Silence after which the other end counts as lost.
    pub idle_timeout: Duration,
    /// How often an idle channel shows that it is alive; well below the idle timeout.
    pub keep_alive: Duration,
}

impl ControlConfig {
    /// Idle timeout 1.5 s, keep-alive 300 ms: silence is noticed after 1.5 to 1.8 s.
    pub fn new(identity: Identity, bind: SocketAddr) -> Self {
        Self {
            identity,
            bind,
            idle_timeout: Duration::from_millis(1500),
            keep_alive: Duration::from_millis(300),
        }
    }
}

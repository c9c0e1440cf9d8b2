//! Meshes over QUIC: a control connection and a few bulk connections per pair of peers, each on a
//! port of its own.
//!
//! Owns the fabric that dials and admits peers, and the links. The control connection carries
//! grants, refusals and aborts; the bulk connection carries frames and nothing else, so a grant
//! never waits behind a payload. Whichever bulk connection is free takes the next
//! frame; each has a stream per [`Priority`](crate::Priority). The lower peer dials. Does not
//! decide who belongs to a mesh. Invariants: nothing is allocated for a peer before certificate,
//! version, cluster and epoch are right; a payload is copied at most once on each side; the end of
//! any connection closes the link and resolves everything that waits.

mod admission;
mod blobs;
mod dial;
mod fabric;
mod form;
mod greeting;
mod lane;
mod link;
mod reader;
mod upgrade;
mod writer;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use admission::HELLOS_WAITING_MAX;
pub use blobs::BlobReader;
pub use fabric::QuicFabric;
pub(crate) use link::QuicLink;
pub(crate) use upgrade::{Upgrade, UpgradeTo, Upgrading};

pub use crate::endpoint::{
    Congestion, HANDSHAKES_MAX, HANDSHAKES_PER_HOST_MAX, HANDSHAKES_UNPROVEN_MAX,
};

use crate::frame::FRAME_BYTES_MAX;
use crate::identity::Identity;
use crate::ids::Incarnation;
use crate::link::Caps;
use crate::region::DeviceMemory;

pub(crate) const CAPS: Caps =
    Caps { rma: false, encrypted: true, max_frame_bytes: FRAME_BYTES_MAX, lanes: 1, name: "quic" };

/// How a QUIC fabric is set up.
#[derive(Clone, Debug)]
pub struct QuicConfig {
    /// Who this process is.
    pub identity: Identity,
    /// Which life of the process this is.
    pub incarnation: Incarnation,
    /// Where to listen for control connections; port 0 lets the system choose.
    pub control_bind: SocketAddr,
    /// Where to listen for bulk connections: the first on this port, the others on the next ones
    /// (all chosen by the system when it is 0).
    pub bulk_bind: SocketAddr,
    /// The address that peers are told, where it is not the one listened on.
    pub advertise: Option<IpAddr>,
    /// Bulk connections per pair of peers, at most
    /// [`BULK_LANES_MAX`](crate::fabric::BULK_LANES_MAX); a pair uses the lesser of the two
    /// numbers.
    pub bulk_lanes: u8,
    /// How bulk connections find their rate.
    pub congestion: Congestion,
    /// Largest UDP payload on the bulk connection, in bytes; discovery finds what the path takes.
    pub mtu_bytes: u16,
    /// Flow-control window of all connections on one bulk port together, in bytes; clamped to what
    /// the socket's receive buffer holds.
    pub receive_window_bytes: u32,
    /// Wanted socket buffers (`SO_RCVBUF`, `SO_SNDBUF`), in bytes.
    pub socket_buffer_bytes: usize,
    /// Silence after which a peer counts as lost.
    pub idle_timeout: Duration,
    /// How often an idle control connection shows that it is alive; well below the idle timeout.
    pub keep_alive: Duration,
    /// How long a peer's hello for a mesh that is not formed here yet waits.
    pub hello_wait: Duration,
    /// Idle bytes that the pool of receive regions keeps.
    pub pool_bytes_max: usize,
    /// The device that frames come from and go to, if there is one: QUIC carries host memory only,
    /// UCX may do without staging.
    pub device: Option<Arc<dyn DeviceMemory>>,
}

impl QuicConfig {
    /// The measured settings: two bulk connections, Cubic, 8,952-byte packets, 4 MiB buffers, idle
    /// timeout 1.5 s, keep-alive 300 ms: a silent peer is lost after 1.5 to 1.8 s.
    pub fn new(identity: Identity, control_bind: SocketAddr, bulk_bind: SocketAddr) -> Self {
        Self {
            identity,
            incarnation: Incarnation::default(),
            control_bind,
            bulk_bind,
            advertise: None,
            bulk_lanes: 2,
            congestion: Congestion::default(),
            mtu_bytes: 8952,
            receive_window_bytes: 4 << 20,
            socket_buffer_bytes: 4 << 20,
            idle_timeout: Duration::from_millis(1500),
            keep_alive: Duration::from_millis(300),
            hello_wait: Duration::from_secs(10),
            pool_bytes_max: 256 << 20,
            device: None,
        }
    }
}

#[cfg(test)]
mod tests;

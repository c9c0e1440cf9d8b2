//! Meshes over QUIC: two connections per pair of peers, on two ports and two threads.
//!
//! Owns the fabric that dials and admits peers, and the links. The control connection carries
//! grants, refusals and aborts; the bulk connection carries frames and nothing else, so a grant
//! never waits behind a payload. The lower peer dials. Does not decide who belongs to a mesh.
//! Invariants: nothing is allocated for a peer before certificate, version, cluster and epoch are
//! right; a payload is copied at most once on each side; the end of either connection closes the
//! link and resolves everything that waits.

mod admission;
mod dial;
mod fabric;
mod form;
mod greeting;
mod link;
mod reader;
mod upgrade;
mod writer;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use admission::HELLOS_WAITING_MAX;
pub use fabric::QuicFabric;
pub(crate) use link::QuicLink;
pub(crate) use upgrade::{Upgrade, UpgradeTo, Upgrading};

use crate::frame::FRAME_BYTES_MAX;
use crate::identity::Identity;
use crate::ids::Incarnation;
use crate::link::Caps;

pub(crate) const CAPS: Caps = Caps {
    device_direct: false,
    rma: false,
    encrypted: true,
    max_frame_bytes: FRAME_BYTES_MAX,
    lanes: 1,
    name: "quic",
};

/// How a QUIC fabric is set up.
#[derive(Clone, Debug)]
pub struct QuicConfig {
    /// Who this process is.
    pub identity: Identity,
    /// Which life of the process this is.
    pub incarnation: Incarnation,
    /// Where to listen for control connections; port 0 lets the system choose.
    pub control_bind: SocketAddr,
    /// Where to listen for bulk connections.
    pub bulk_bind: SocketAddr,
    /// The address that peers are told, where it is not the one listened on.
    pub advertise: Option<IpAddr>,
    /// Largest UDP payload on the bulk connection, in bytes; discovery finds what the path takes.
    pub mtu_bytes: u16,
    /// Flow-control window of all bulk connections together, in bytes; clamped to what the socket's
    /// receive buffer holds.
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
}

impl QuicConfig {
    /// The measured settings: 8,952-byte packets, 4 MiB buffers, idle timeout 1.8 s, keep-alive
    /// 300 ms.
    pub fn new(identity: Identity, control_bind: SocketAddr, bulk_bind: SocketAddr) -> Self {
        Self {
            identity,
            incarnation: Incarnation::default(),
            control_bind,
            bulk_bind,
            advertise: None,
            mtu_bytes: 8952,
            receive_window_bytes: 4 << 20,
            socket_buffer_bytes: 4 << 20,
            idle_timeout: Duration::from_millis(1800),
            keep_alive: Duration::from_millis(300),
            hello_wait: Duration::from_secs(10),
            pool_bytes_max: 256 << 20,
        }
    }
}

//! What one member of a mesh can do with one peer, and with all of them.
//!
//! Owns the traits [`Link`] and [`Transport`] and their value types; `link/table.rs` is the one
//! bookkeeping that every implementation shares. Does not own sockets, and never waits: posting and
//! sending return at once. Invariants: a receive is posted before its frame travels; nobody makes
//! anybody allocate; every completion resolves, at the latest with
//! [`TransportError::PeerLost`] when the link closes.

mod ended;
pub(crate) mod lane;
mod observed;
pub(crate) mod table;

use std::sync::Arc;
use std::time::Duration;

use crate::completion::Completion;
use crate::error::TransportError;
use crate::frame::FrameMeta;
use crate::ids::{PeerId, RunId, Tag};
use crate::region::{MemKind, Region, Slice};

pub use ended::ABORTED_RUNS_MAX;
pub use lane::Carrier;
pub use observed::{OBSERVED_BYTES_MIN, OBSERVED_FRAMES};
pub use table::{LINK_POSTS_MAX, LINK_SENDS_MAX};

/// A place for one frame: the place and the credit at once.
#[derive(Debug)]
pub struct PostRecv {
    /// The run.
    pub run: RunId,
    /// The message.
    pub tag: Tag,
    /// Where its payload goes.
    pub region: Region,
    /// How many bytes are expected, at most the region's length.
    pub len: usize,
}

/// One frame to a peer.
#[derive(Debug)]
pub struct SendFrame {
    /// The run.
    pub run: RunId,
    /// The message.
    pub tag: Tag,
    /// What the payload is; its shape and dtype give exactly the payload's length.
    pub meta: FrameMeta,
    /// The bytes.
    pub payload: Slice,
}

/// A frame that came.
#[derive(Debug)]
pub struct Received {
    /// The posted region, filled.
    pub region: Region,
    /// Bytes received: what was posted, or 0 when [`FrameMeta::reuse`] is set.
    pub len: usize,
    /// What the payload is.
    pub meta: FrameMeta,
}

/// What happened on a link so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Payload bytes handed to the transport.
    pub bytes_sent: u64,
    /// Payload bytes received into posted regions.
    pub bytes_received: u64,
    /// Frames handed to the transport.
    pub frames_sent: u64,
    /// Frames received into posted regions.
    pub frames_received: u64,
    /// Frames of ended runs that came late and were dropped.
    pub late_frames_dropped: u64,
    /// Grants of ended runs that came late and were dropped.
    pub late_grants_dropped: u64,
    /// Round-trip time, where the transport measures one.
    pub rtt: Option<Duration>,
    /// Bytes per second at which large payloads came: the fastest of the last
    /// [`OBSERVED_FRAMES`], once there were as many and where the transport sees it.
    pub observed_bytes_per_s: Option<u64>,
}

/// One peer of one mesh.
pub trait Link: Send + Sync {
    /// Who is at the other end.
    fn peer(&self) -> PeerId;

    /// Posts a place and grants it to the peer.
    fn post_recv(&self, post: PostRecv) -> Completion<Received>;

    /// Hands over a frame, which is kept here until the peer grants it a place; resolves when the
    /// transport has taken all of it. The order of posts and sends is free.
    fn send(&self, frame: SendFrame) -> Completion<()>;

    /// Ends a run at both ends: what waits resolves `Cancelled`, what comes late is counted and
    /// dropped.
    fn abort_run(&self, run: RunId, cause: &str);

    /// Forgets a finished run at this end; wait for its completions first, what still waits
    /// resolves `Cancelled`.
    fn end_run(&self, run: RunId);

    /// Closes the link at both ends: everything pending resolves `PeerLost`.
    fn close(&self, cause: &str);

    /// Why the link is closed, if it is.
    fn closed(&self) -> Option<String>;

    /// Whether frames may leave from and arrive in memory of this kind; what the host can address
    /// may always.
    fn takes(&self, kind: MemKind) -> bool;

    /// What carries the frames of this link, and why that.
    fn carrier(&self) -> Carrier;

    /// Counters since the link was formed.
    fn stats(&self) -> LinkStats;
}

/// What a transport can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Frames are placed by remote writes.
    pub rma: bool,
    /// Bytes are encrypted and the peer authenticated.
    pub encrypted: bool,
    /// The largest payload of one frame, in bytes.
    pub max_frame_bytes: u64,
    /// Bulk connections per pair of peers.
    pub lanes: u32,
    /// What carries frames: `in-process`, `quic`, `ucx-shm`, `ucx-net`, `sim`, or `mixed`.
    pub name: &'static str,
}

/// One member's links of one formed mesh.
pub trait Transport: Send + Sync {
    /// This member.
    fn local(&self) -> PeerId;

    /// What this transport can do.
    fn caps(&self) -> Caps;

    /// Memory that frames of this transport are best received into.
    fn allocate(&self, len: usize) -> Region;

    /// The same in the memory of this member's device, for links that take it.
    ///
    /// # Errors
    /// [`TransportError::Device`] when the device has none left, a mismatch where there is none.
    fn allocate_on_device(&self, len: usize) -> Result<Region, TransportError>;

    /// The link to one peer.
    ///
    /// # Errors
    /// [`TransportError::NoLink`] for a peer that the mesh was not formed with.
    fn link(&self, peer: PeerId) -> Result<Arc<dyn Link>, TransportError>;

    /// Closes every link of this mesh; dropping the transport does the same.
    fn close(&self, cause: &str);
}

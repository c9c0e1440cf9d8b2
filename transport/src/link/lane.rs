//! The seam between a link and what carries its frames in place of its bulk connection.
//!
//! Owns the two traits: a [`FrameLane`] takes grants and granted frames, a [`FrameSink`] is told
//! what became of them and where arriving ones go. Knows no transport. Invariants: a lane never waits for its
//! link; a region that a lane was given comes back by [`FrameSink::arrived`], or is dropped when no
//! device or peer can write to it any more.

use std::sync::Arc;
use std::time::Duration;

use crate::completion::Drive;
use crate::error::TransportError;
use crate::frame::{FrameHeader, FrameMeta, Grant};
use crate::region::Region;

use super::table::Departure;

/// What carries frames.
pub(crate) trait FrameLane: Send + Sync {
    /// Takes a granted frame; its sink is told when it has left. Called under the link's lock.
    fn depart(&self, departure: Departure);

    /// The same, and lets it leave at once where nobody is in the way; called without the link's
    /// lock.
    fn depart_now(&self, departure: Departure);

    /// Tells the peer of a place for one of its frames; called without the link's lock.
    fn grant(&self, grant: Grant);

    /// Lets what was taken leave; called without the link's lock.
    fn flush(&self);

    /// What a thread that waits for a frame is to drive.
    fn driver(&self) -> Arc<dyn Drive>;

    /// Whether payloads and places may be in memory of devices.
    fn takes_device_memory(&self) -> bool;

    /// Nothing leaves or arrives any more.
    fn close(&self);

    /// What this is and why it was chosen.
    fn carrier(&self) -> Carrier;
}

/// What frames arrive at.
pub(crate) trait FrameSink: Send + Sync {
    /// Where the payload of a frame goes; `None` when nobody wants it any more.
    ///
    /// # Errors
    /// The peer broke the protocol: tell [`FrameSink::broken`].
    fn place(
        &self,
        header: &FrameHeader,
        meta: &FrameMeta,
    ) -> Result<Option<Region>, TransportError>;

    /// A frame whose payload is here, and small.
    ///
    /// # Errors
    /// As [`FrameSink::place`].
    fn came(
        &self,
        header: &FrameHeader,
        meta: FrameMeta,
        payload: &[u8],
    ) -> Result<(), TransportError>;

    /// A place has been filled.
    fn arrived(&self, header: &FrameHeader, region: Region, meta: FrameMeta);

    /// So many bytes came in so long a time, in which nothing but they kept the lane busy.
    fn observed(&self, bytes: u64, took: Duration);

    /// The peer has a place for a frame.
    ///
    /// # Errors
    /// As [`FrameSink::place`].
    fn granted(&self, grant: Grant) -> Result<(), TransportError>;

    /// A frame has been taken completely.
    fn departed(&self, departure: u64, payload_len: u64);

    /// The peer broke the protocol.
    fn broken(&self, error: &TransportError);

    /// The peer is gone.
    fn lost(&self, cause: &str);
}

/// What carries the frames of a link, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// `in-process`, `quic`, `ucx-shm`, `ucx-net`, `sim`.
    pub name: &'static str,
    /// Why it was chosen.
    pub why: String,
}

impl Carrier {
    /// The only one there is.
    pub(crate) fn only(name: &'static str) -> Self {
        Self { name, why: "the only one here".to_owned() }
    }
}

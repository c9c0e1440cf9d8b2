//! The bookkeeping of one end of one link, shared by every transport.
//!
//! Owns who waits for what: posted places by slot, frames kept for their grant, grants that came
//! before their frame, frames on their way, runs that are over. Knows no socket, thread or clock.
//! Invariants: a frame departs only for a granted place of exactly its size; every completer is
//! completed or held by this table, so [`LinkTable::close`] leaves nobody waiting; a region that a
//! reader fills is not touched until the reader gives it back.

mod departures;
mod places;

use std::sync::Arc;
use std::time::Duration;

use crate::completion::{Awaited, Completer, Completion, CompletionPool, Drive};
use crate::error::TransportError;
use crate::frame::{FrameHeader, FrameMeta, Grant, Refusal};
use crate::ids::{Epoch, PeerId, RunId, Tag};
use crate::region::{MemKind, Region};

use super::ended::EndedRuns;
use super::observed::Observed;
use super::{LinkStats, PostRecv, Received, SendFrame};
pub(crate) use departures::Departure;
use departures::Departures;
pub(crate) use places::Place;
use places::Places;

/// The most places that can be posted on one link at a time; also the most grants a peer may have
/// outstanding here.
pub const LINK_POSTS_MAX: usize = 65_536;

/// The most frames that can wait for their grant on one link.
pub const LINK_SENDS_MAX: usize = 65_536;

/// What the transport must carry to the peer next.
#[derive(Debug)]
pub(crate) enum Step {
    /// A granted frame.
    Depart(Departure),
    /// The news that a granted frame will not come.
    Refuse(Refusal),
}

/// What to do with the bytes that follow a header.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// Read them here.
    Place(Place),
    /// Skip them: the run is over.
    Late,
}

/// One end of one link.
pub(crate) struct LinkTable {
    peer: PeerId,
    epoch: Epoch,
    frame_bytes_max: u64,
    /// Whether the carrier takes memory that only devices address.
    device_memory: bool,
    places: Places,
    departures: Departures,
    ended: EndedRuns,
    closed: Option<String>,
    stats: LinkStats,
    observed: Observed,
    receives: Arc<CompletionPool<Received>>,
    sends: Arc<CompletionPool<()>>,
}

impl LinkTable {
    pub(crate) fn new(peer: PeerId, epoch: Epoch, frame_bytes_max: u64) -> Self {
        Self {
            peer,
            epoch,
            frame_bytes_max,
            device_memory: false,
            places: Places::default(),
            departures: Departures::default(),
            ended: EndedRuns::default(),
            closed: None,
            stats: LinkStats::default(),
            observed: Observed::default(),
            receives: CompletionPool::new(),
            sends: CompletionPool::new(),
        }
    }

    /// From now on memory of devices is taken too.
    pub(crate) fn take_device_memory(&mut self) {
        self.device_memory = true;
    }

    /// Whether frames may leave from and arrive in such memory.
    pub(crate) fn takes(&self, kind: MemKind) -> bool {
        self.device_memory || !kind.is_device()
    }

    /// The two halves of a receive; whoever waits for it drives `driver`.
    pub(crate) fn receiving(
        &self,
        (run, tag): (RunId, Tag),
        driver: Option<Arc<dyn Drive>>,
    ) -> (Completer<Received>, Completion<Received>) {
        self.receives.pair(Awaited::Receive { peer: self.peer, run, tag }, driver)
    }

    /// The two halves of a send.
    pub(crate) fn sending(
        &self,
        (run, tag): (RunId, Tag),
        driver: Option<Arc<dyn Drive>>,
    ) -> (Completer<()>, Completion<()>) {
        self.sends.pair(Awaited::Send { peer: self.peer, run, tag }, driver)
    }

    pub(crate) fn closed(&self) -> Option<&str> {
        self.closed.as_deref()
    }

    pub(crate) fn stats(&self) -> LinkStats {
        LinkStats { observed_bytes_per_s: self.observed.fastest(), ..self.stats }
    }

    /// How long a payload took from its first byte to its last.
    pub(crate) fn observed(&mut self, bytes: u64, took: Duration) {
        self.observed.came(bytes, took);
    }

    /// A new place; the grant goes to the peer.
    pub(crate) fn post(&mut self, post: PostRecv, completer: Completer<Received>) -> Option<Grant> {
        let admitted = self
            .open(post.run)
            .and_then(|()| self.within_frame_bytes("posted place", post.len as u64))
            .and_then(|()| self.check_kind(post.region.kind()));
        match admitted.and_then(|()| self.places.check(&post)) {
            Ok(()) => Some(self.places.insert(post, completer)),
            Err(error) => {
                completer.complete(Err(error));
                None
            }
        }
    }

    /// A new frame, matched with its grant if that is here.
    #[inline]
    pub(crate) fn send(&mut self, frame: SendFrame, completer: Completer<()>) -> Option<Step> {
        if let Err(error) = self.open(frame.run) {
            completer.complete(Err(error));
            return None;
        }
        let checked = self.check_frame(&frame);
        self.departures.insert(frame, completer, checked)
    }

    /// A grant from the peer, matched with its frame if that is here.
    pub(crate) fn granted(&mut self, grant: Grant) -> Result<Option<Step>, TransportError> {
        if self.closed.is_some() || self.ended.cause(grant.run).is_some() {
            self.stats.late_grants_dropped += 1;
            return Ok(None);
        }
        self.departures.granted(grant)
    }

    /// A frame was handed to the transport completely.
    pub(crate) fn departed(&mut self, departure: u64, payload_len: u64) {
        self.stats.frames_sent += 1;
        self.stats.bytes_sent += payload_len;
        self.departures.departed(departure);
    }

    /// The header of a frame from the peer.
    ///
    /// An error means that the peer breaks the protocol: close the link.
    pub(crate) fn arriving(&mut self, header: &FrameHeader) -> Result<Arrival, TransportError> {
        self.check_header_epoch(header)?;
        match self.places.claim(header)? {
            Some(place) => Ok(Arrival::Place(place)),
            None => self.late(header),
        }
    }

    /// Whether a frame's description fits its payload and this mesh; where it does not, the
    /// waiting receive learns so, and the payload is to be skipped.
    pub(crate) fn agrees(&mut self, header: &FrameHeader, meta: &FrameMeta) -> bool {
        let checked = meta.check(header.payload_len).and_then(|()| self.check_epoch(meta));
        let checked = checked.and_then(|()| self.places.check_len(header, meta.reuse));
        match checked {
            Ok(()) => true,
            Err(error) => {
                self.places.fail(header.slot, error);
                false
            }
        }
    }

    /// A frame whose payload is here, and small enough to be copied meanwhile.
    #[inline]
    pub(crate) fn came(
        &mut self,
        header: &FrameHeader,
        meta: FrameMeta,
        payload: &[u8],
    ) -> Result<(), TransportError> {
        self.check_header_epoch(header)?;
        let checked = meta.check(header.payload_len).and_then(|()| self.check_epoch(&meta));
        let filled = self.places.claim_and_fill(header, checked, meta, payload)?;
        match filled {
            Some(true) => {
                self.stats.frames_received += 1;
                self.stats.bytes_received += header.payload_len;
            }
            Some(false) => {}
            None => _ = self.late(header)?,
        }
        Ok(())
    }

    fn check_header_epoch(&self, header: &FrameHeader) -> Result<(), TransportError> {
        if header.epoch != self.epoch {
            return Err(TransportError::StaleEpoch { current: self.epoch, offered: header.epoch });
        }
        Ok(())
    }

    /// A frame whose slot is not posted; an error unless its run is over.
    fn late(&mut self, header: &FrameHeader) -> Result<Arrival, TransportError> {
        if self.closed.is_some() || self.ended.cause(header.run).is_some() {
            self.stats.late_frames_dropped += 1;
            return Ok(Arrival::Late);
        }
        Err(TransportError::malformed(format!(
            "frame: slot {} of run {} was never granted",
            header.slot, header.run
        )))
    }

    /// A claimed place has been filled.
    pub(crate) fn arrived(&mut self, header: &FrameHeader, region: Region, meta: FrameMeta) {
        let len = usize::try_from(header.payload_len).unwrap_or(usize::MAX);
        if self.places.fill(header.slot, Received { region, len, meta }) {
            self.stats.frames_received += 1;
            self.stats.bytes_received += header.payload_len;
        } else {
            self.stats.late_frames_dropped += 1;
        }
    }

    /// The peer will not fill a place.
    pub(crate) fn refused(&mut self, refusal: Refusal) {
        let error = TransportError::mismatch(refusal.what, refusal.granted, refusal.offered);
        self.places.fail(refusal.slot, error);
    }

    /// The run is over at both ends; false when it was over before.
    pub(crate) fn abort(&mut self, run: RunId, cause: &str) -> bool {
        let fresh = self.ended.insert(run, cause);
        if fresh {
            let cancelled = || TransportError::Cancelled { run, cause: cause.to_owned() };
            self.places.cancel(run, &cancelled);
            self.departures.cancel(run, &cancelled, true);
        }
        fresh
    }

    /// The run is over at this end; frames on their way still go.
    pub(crate) fn end(&mut self, run: RunId) {
        let cause = "the run has ended";
        if self.ended.insert(run, cause) {
            let cancelled = || TransportError::Cancelled { run, cause: cause.to_owned() };
            self.places.cancel(run, &cancelled);
            self.departures.cancel(run, &cancelled, false);
        }
    }

    /// Nothing more will come or go; false when it was closed before.
    pub(crate) fn close(&mut self, cause: &str) -> bool {
        if self.closed.is_some() {
            return false;
        }
        self.closed = Some(cause.to_owned());
        let peer = self.peer;
        let lost = || TransportError::peer_lost(peer, cause);
        self.places.cancel_all(&lost);
        self.departures.cancel_all(&lost);
        true
    }

    fn open(&self, run: RunId) -> Result<(), TransportError> {
        if let Some(cause) = &self.closed {
            return Err(TransportError::peer_lost(self.peer, cause));
        }
        match self.ended.cause(run) {
            Some(cause) => Err(TransportError::Cancelled { run, cause: cause.to_owned() }),
            None => Ok(()),
        }
    }

    fn check_frame(&self, frame: &SendFrame) -> Result<(), TransportError> {
        let len = frame.payload.len() as u64;
        self.within_frame_bytes("frame payload", len)?;
        frame.meta.check(len)?;
        self.check_epoch(&frame.meta)?;
        self.check_kind(frame.payload.kind())
    }

    fn check_kind(&self, kind: MemKind) -> Result<(), TransportError> {
        if self.takes(kind) {
            return Ok(());
        }
        let staged = "memory that the host can address; stage it first";
        Err(TransportError::mismatch("memory kinds", format!("{kind:?}"), staged))
    }

    fn check_epoch(&self, meta: &FrameMeta) -> Result<(), TransportError> {
        if meta.epoch == self.epoch {
            return Ok(());
        }
        Err(TransportError::mismatch("epochs of link and frame", self.epoch, meta.epoch))
    }

    fn within_frame_bytes(&self, what: &'static str, bytes: u64) -> Result<(), TransportError> {
        let limit = self.frame_bytes_max;
        if bytes > limit {
            return Err(TransportError::FrameTooLarge { what, bytes, limit });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

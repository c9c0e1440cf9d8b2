//! Where UCX's callbacks leave what happened, for the engine to pick up.
//!
//! Owns the callbacks and the lanes' names. Invariants: callbacks run only inside a worker's
//! progress (or a call that finishes at once), under the engine's lock; they allocate nothing of a
//! payload's size; a frame with an unknown nonce is counted and dropped; small payloads are copied
//! into their place here, large ones wait until the engine fetches them.

use std::cell::RefCell;
use std::ffi::c_void;
use std::slice;
use std::sync::Arc;

use ucx_sys::bindings as ucp;
use ucx_sys::ucs_status_t;

use super::front;
use super::lane::LaneId;
use crate::error::TransportError;
use crate::frame::{FrameHeader, FrameMeta, Nonce};
use crate::ids::IdMap;
use crate::link::lane::FrameSink;
use crate::region::Region;

/// The active message that carries a frame.
pub(super) const FRAME_MESSAGE: u32 = 1;

/// Active messages that are all front.
#[derive(Clone, Copy)]
pub(super) enum Notice {
    /// "I can reach you": a nonce.
    Probe = 2,
    /// "There is a place for your frame": a nonce, and which.
    Grant = 3,
}

/// Up to this size a payload that is here is copied while its link is locked.
const SMALL_BYTES_MAX: usize = 4096;

/// A large payload that the sender keeps until it is fetched.
pub(super) struct Rendezvous {
    pub(super) lane: LaneId,
    /// UCX's name for it.
    pub(super) data: *mut c_void,
    pub(super) header: FrameHeader,
    pub(super) meta: FrameMeta,
    pub(super) region: Region,
}

/// An operation that has ended.
pub(super) struct Finished {
    /// Its place among the flights.
    pub(super) index: usize,
    pub(super) status: ucs_status_t,
    /// UCX's request, to be given back.
    pub(super) request: *mut c_void,
}

// SAFETY: names of UCX's for data of one worker, used with exclusive access to that worker.
unsafe impl Send for Happened {}

/// What happened, in lists whose memory is used again and again.
#[derive(Default)]
pub(super) struct Happened {
    pub(super) rendezvous: Vec<Rendezvous>,
    /// Operations that have ended.
    pub(super) finished: Vec<Finished>,
    /// Endpoints that failed.
    pub(super) failed: Vec<(ucp::ucp_ep_h, ucs_status_t)>,
    /// Lanes whose peer has reached this end.
    pub(super) probed: Vec<LaneId>,
}

impl Happened {
    fn is_nothing(&self) -> bool {
        self.rendezvous.is_empty()
            && self.finished.is_empty()
            && self.failed.is_empty()
            && self.probed.is_empty()
    }
}

#[derive(Default)]
pub(super) struct Inbox {
    /// By names of our own making, which no stranger guesses.
    lanes: IdMap<Nonce, (LaneId, Arc<dyn FrameSink>)>,
    pub(super) happened: Happened,
    /// Messages of strangers, or of lanes that are closed.
    pub(super) dropped: u64,
}

/// What came with a frame's front.
enum Payload<'a> {
    Here(&'a [u8]),
    AtTheSender { data: *mut c_void, len: usize },
}

impl Inbox {
    pub(super) fn add(&mut self, nonce: Nonce, lane: LaneId, sink: Arc<dyn FrameSink>) {
        self.lanes.insert(nonce, (lane, sink));
    }

    pub(super) fn remove(&mut self, nonce: &Nonce) {
        self.lanes.remove(nonce);
    }

    /// Moves what happened into `turn`, which is empty; false when that is nothing.
    pub(super) fn hand_over(&mut self, turn: &mut Happened) -> bool {
        if self.happened.is_nothing() {
            return false;
        }
        std::mem::swap(&mut self.happened, turn);
        true
    }

    fn probe(&mut self, name: &[u8]) {
        match front::nonce(name).and_then(|nonce| self.lanes.get(nonce)) {
            Some((lane, _)) => self.happened.probed.push(*lane),
            None => self.dropped += 1,
        }
    }

    fn grant(&mut self, front: &[u8]) {
        match front::nonce(front).and_then(|nonce| self.lanes.get(nonce)) {
            Some((_, sink)) => {
                let granted = front::read_grant(front).and_then(|grant| sink.granted(grant));
                if let Err(error) = granted {
                    sink.broken(&error);
                }
            }
            None => self.dropped += 1,
        }
    }

    /// True when the payload is to be kept at the sender until it is fetched.
    fn frame(&mut self, front: &[u8], payload: Payload<'_>) -> bool {
        let known = front::nonce(front).and_then(|nonce| self.lanes.get(nonce));
        let Some((lane, sink)) = known else {
            self.dropped += 1;
            return false;
        };
        match deliver(*lane, &**sink, front, payload) {
            Ok(None) => false,
            Ok(Some(rendezvous)) => {
                self.happened.rendezvous.push(rendezvous);
                true
            }
            Err(error) => {
                sink.broken(&error);
                false
            }
        }
    }
}

/// Puts a frame into its place; what is to be fetched first is given back.
fn deliver(
    lane: LaneId,
    sink: &dyn FrameSink,
    front: &[u8],
    payload: Payload<'_>,
) -> Result<Option<Rendezvous>, TransportError> {
    let (header, meta) = front::read(front)?;
    let came = match &payload {
        Payload::Here(bytes) => bytes.len(),
        Payload::AtTheSender { len, .. } => *len,
    };
    if came as u64 != header.payload_len {
        return Err(TransportError::mismatch("payload bytes", header.payload_len, came));
    }
    if let Payload::Here(bytes) = payload
        && bytes.len() <= SMALL_BYTES_MAX
    {
        sink.came(&header, meta, bytes)?;
        return Ok(None);
    }
    let Some(mut region) = sink.place(&header, &meta)? else { return Ok(None) };
    match payload {
        Payload::Here(bytes) => {
            let Some(into) = region.bytes_mut().get_mut(..bytes.len()) else {
                return Err(TransportError::malformed("frame: larger than its place"));
            };
            into.copy_from_slice(bytes);
            sink.arrived(&header, region, meta);
            Ok(None)
        }
        Payload::AtTheSender { data, .. } => {
            Ok(Some(Rendezvous { lane, data, header, meta, region }))
        }
    }
}

/// A callback's way back to the inbox of its worker.
///
/// # Safety
/// `argument` is the address of a `RefCell<Inbox>` that lives as long as the worker, and this runs
/// under the engine's lock.
unsafe fn with_inbox<R>(argument: *mut c_void, act: impl FnOnce(&mut Inbox) -> R) -> Option<R> {
    // SAFETY: the caller's promise.
    let inbox = unsafe { &*argument.cast_const().cast::<RefCell<Inbox>>() };
    inbox.try_borrow_mut().ok().map(|mut inbox| act(&mut inbox))
}

/// # Safety
/// Called by UCX as an active message's handler.
unsafe fn bytes<'a>(at: *const c_void, len: usize) -> &'a [u8] {
    if len == 0 || at.is_null() {
        return &[];
    }
    // SAFETY: UCX gives an address and a length that are readable during the callback.
    unsafe { slice::from_raw_parts(at.cast(), len) }
}

pub(super) unsafe extern "C" fn on_frame(
    argument: *mut c_void,
    header: *const c_void,
    header_len: usize,
    data: *mut c_void,
    len: usize,
    param: *const ucp::ucp_am_recv_param_t,
) -> ucs_status_t {
    // SAFETY: UCX's arguments, valid during this call.
    let (front, flags) = unsafe { (bytes(header, header_len), (*param).recv_attr) };
    let payload = if flags & u64::from(ucp::UCP_AM_RECV_ATTR_FLAG_RNDV) == 0 {
        // SAFETY: an eager message is all here.
        Payload::Here(unsafe { bytes(data, len) })
    } else {
        Payload::AtTheSender { data, len }
    };
    // SAFETY: the argument was set together with this handler.
    let kept = unsafe { with_inbox(argument, |inbox| inbox.frame(front, payload)) };
    if kept == Some(true) { ucp::UCS_INPROGRESS } else { ucp::UCS_OK }
}

pub(super) unsafe extern "C" fn on_probe(
    argument: *mut c_void,
    header: *const c_void,
    header_len: usize,
    _data: *mut c_void,
    _len: usize,
    _param: *const ucp::ucp_am_recv_param_t,
) -> ucs_status_t {
    // SAFETY: UCX's arguments, valid during this call; the argument was set with this handler.
    unsafe { with_inbox(argument, |inbox| inbox.probe(bytes(header, header_len))) };
    ucp::UCS_OK
}

pub(super) unsafe extern "C" fn on_grant(
    argument: *mut c_void,
    header: *const c_void,
    header_len: usize,
    _data: *mut c_void,
    _len: usize,
    _param: *const ucp::ucp_am_recv_param_t,
) -> ucs_status_t {
    // SAFETY: UCX's arguments, valid during this call; the argument was set with this handler.
    unsafe { with_inbox(argument, |inbox| inbox.grant(bytes(header, header_len))) };
    ucp::UCS_OK
}

pub(super) unsafe extern "C" fn on_failure(
    argument: *mut c_void,
    endpoint: ucp::ucp_ep_h,
    status: ucs_status_t,
) {
    // SAFETY: the argument was set together with this handler.
    unsafe { with_inbox(argument, |inbox| inbox.happened.failed.push((endpoint, status))) };
}

#[cfg(test)]
mod tests;

//! The frames of one rank in one run: receives posted ahead in program order, sends under way.
//!
//! Owns the posting window, the accounting of bytes and the run's stopwatch. Does not know what a
//! frame means.
//!
//! Invariants: receives are posted in program order; at least the one that is waited for is
//! posted; beyond it at most [`POST_AHEAD_FRAMES`] and [`POSTED_BYTES_MAX`].

mod reuse;

use std::collections::{BTreeMap, HashMap};
use std::iter::Peekable;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use ditmesh_transport::Transport;
use ditmesh_transport::completion::Completion;
use ditmesh_transport::error::TransportError;
use ditmesh_transport::frame::FrameMeta;
use ditmesh_transport::ids::{Epoch, PeerId, RunId};
use ditmesh_transport::link::{Link, PostRecv, Received, SendFrame};
use ditmesh_transport::region::Slice;

use super::abort::AbortFlag;
use super::error::ExecuteError;
use super::packing::Packing;
use super::wire_tensor;
use crate::plan::message::Message;
use crate::request::wire::Axis;
use crate::request::{AxisTraffic, RunTime};
use crate::timeline::{Activity, Stopwatch};
use crate::trace_context;

/// Receives posted ahead of the one that is waited for.
pub const POST_AHEAD_FRAMES: usize = 64;
/// Bytes posted ahead of the receive that is waited for.
pub const POSTED_BYTES_MAX: usize = 256 << 20;
/// Frames that may wait for their receivers; a sound plan stays far below.
pub const SENDS_IN_FLIGHT_MAX: usize = 4096;

/// A frame on its way: to whom, what, and when it was taken.
type Sent = (usize, String, Completion<()>);

type Expected = Box<dyn Iterator<Item = (usize, Message)> + Send>;

/// What a rank's run needs of the network.
pub(super) struct Mailbag {
    transport: Arc<dyn Transport>,
    links: HashMap<usize, Arc<dyn Link>>,
    run: RunId,
    epoch: Epoch,
    packing: Packing,
    wait_limit: Duration,
    abort: Arc<AbortFlag>,
    expected: Peekable<Expected>,
    posted: HashMap<(usize, u64), (Completion<Received>, usize)>,
    posted_bytes: usize,
    sends: Vec<Sent>,
    traffic: Traffic,
    pub(super) clock: Stopwatch,
    /// W3C trace context of the span under way.
    pub(super) traceparent: Option<Arc<str>>,
}

/// What a rank sent, and where its time went.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic {
    pub(super) bytes_sent: u64,
    pub(super) frames_sent: u64,
    /// Bytes sent and saved.
    axes: BTreeMap<Axis, (u64, u64)>,
    pub(super) time: RunTime,
}

impl Traffic {
    fn count(&mut self, message: &Message, payload_bytes: usize) {
        self.bytes_sent += payload_bytes as u64;
        self.frames_sent += 1;
        // A frame without payload saves by not computing, which is another matter.
        let saved = if payload_bytes == 0 { 0 } else { message.bytes_saved() };
        let axis = self.axes.entry(message.kind.axis()).or_default();
        *axis = (axis.0 + payload_bytes as u64, axis.1 + saved as u64);
    }

    /// Axis by axis.
    pub(super) fn by_axis(&self) -> Vec<AxisTraffic> {
        let axes = self.axes.iter();
        axes.map(|(&axis, &(bytes_sent, bytes_saved))| AxisTraffic {
            axis,
            bytes_sent,
            bytes_saved,
        })
        .collect()
    }
}

/// Where a run takes place.
pub(super) struct Place {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) run: RunId,
    pub(super) epoch: Epoch,
    pub(super) packing: Packing,
    pub(super) wait_limit: Duration,
    pub(super) abort: Arc<AbortFlag>,
    /// Running since the start of the run.
    pub(super) clock: Stopwatch,
}

impl Mailbag {
    pub(super) fn new(place: Place, expected: Expected) -> Result<Self, ExecuteError> {
        let Place { transport, run, epoch, packing, wait_limit, abort, clock } = place;
        let mut bag = Self {
            transport,
            links: HashMap::new(),
            run,
            epoch,
            packing,
            wait_limit,
            abort,
            expected: expected.peekable(),
            posted: HashMap::new(),
            posted_bytes: 0,
            sends: Vec::new(),
            traffic: Traffic::default(),
            clock,
            traceparent: None,
        };
        bag.clock.begin_extra("start");
        bag.post_ahead()?;
        bag.clock.end_extra();
        Ok(bag)
    }

    /// Fails when the run was aborted.
    pub(super) fn check_abort(&self) -> Result<(), ExecuteError> {
        self.abort.cause().map_or(Ok(()), |cause| Err(ExecuteError::Aborted(cause.to_owned())))
    }

    fn link(&mut self, peer: usize) -> Result<Arc<dyn Link>, TransportError> {
        if let Some(link) = self.links.get(&peer) {
            return Ok(Arc::clone(link));
        }
        let link = self.transport.link(PeerId(peer as u32))?;
        if let Some(frames) = self.packing.describe(&*link) {
            tracing::debug!(peer, carrier = link.carrier().name, frames);
        }
        self.links.insert(peer, Arc::clone(&link));
        Ok(link)
    }

    /// Posts receives in program order as far as the window allows.
    fn post_ahead(&mut self) -> Result<(), ExecuteError> {
        while self.posted.len() < POST_AHEAD_FRAMES {
            let Some((_, next)) = self.expected.peek() else { return Ok(()) };
            let over = self.posted_bytes + next.bytes() > POSTED_BYTES_MAX;
            if over && !self.posted.is_empty() {
                return Ok(());
            }
            self.post_next()?;
        }
        Ok(())
    }

    fn post_next(&mut self) -> Result<(), ExecuteError> {
        let Some((peer, message)) = self.expected.next() else { return Ok(()) };
        let before = self.clock.turn(Activity::Send);
        let len = message.bytes();
        let link = self.link(peer).map_err(|source| from(peer, &message, source))?;
        let ways = (link.as_ref(), self.transport.as_ref());
        let region = self.packing.place(&message, ways);
        let region = region.map_err(|source| from(peer, &message, source))?;
        let post = PostRecv { run: self.run, tag: message.tag(), region, len };
        let key = (peer, message.tag().0);
        self.posted.insert(key, (link.post_recv(post), len));
        self.posted_bytes += len;
        self.clock.turn(before);
        Ok(())
    }

    /// The deadline of a wait that starts now.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.wait_limit
    }

    /// Waits for `message` from `peer`.
    pub(super) fn receive(
        &mut self,
        peer: usize,
        message: &Message,
        deadline: Instant,
    ) -> Result<Tensor, ExecuteError> {
        let received = self.take(peer, message, deadline)?;
        let before = self.clock.turn_to(Activity::Serialise, peer, message);
        wire_tensor::check(&received, message, peer, self.epoch)?;
        let tensor = self.packing.unpack(received, message)?;
        self.clock.turn(before);
        Ok(tensor)
    }

    /// Waits for the frame of `message`, whatever is in it.
    fn take(
        &mut self,
        peer: usize,
        message: &Message,
        deadline: Instant,
    ) -> Result<Received, ExecuteError> {
        let key = (peer, message.tag().0);
        while !self.posted.contains_key(&key) && self.expected.peek().is_some() {
            self.post_next()?;
        }
        let Some((mut completion, len)) = self.posted.remove(&key) else {
            return Err(ExecuteError::Order { op: "receive", missing: "its post" });
        };
        self.posted_bytes -= len;
        self.post_ahead()?;
        let before = self.clock.turn_to(Activity::Wait, peer, message);
        let received = completion.wait_until(deadline);
        self.clock.turn(before);
        self.check_abort()?;
        let received = received.map_err(|source| from(peer, message, source))?;
        trace_context::link_current(received.meta.traceparent.as_deref());
        Ok(received)
    }

    /// Hands `tensor` to the transport; returns at once.
    pub(super) fn send(
        &mut self,
        peer: usize,
        message: &Message,
        tensor: &Tensor,
    ) -> Result<(), ExecuteError> {
        if tensor.dims() != message.shape {
            return Err(ExecuteError::Mismatch {
                peer,
                expected: message.to_string(),
                found: format!("a tensor of shape {:?} to send", tensor.dims()),
            });
        }
        let link = self.link(peer).map_err(|source| to(peer, &message.to_string(), source))?;
        let before = self.clock.turn_to(Activity::Serialise, peer, message);
        let ways = (link.as_ref(), self.transport.as_ref());
        let payload = self.packing.pack(tensor, message, ways)?;
        self.clock.turn(before);
        let meta = wire_tensor::meta(message, self.epoch);
        self.transmit(peer, message, meta, payload)
    }

    /// What the receiver of `message` makes of `tensor`.
    pub(super) fn as_received(
        &mut self,
        tensor: &Tensor,
        message: &Message,
    ) -> Result<Tensor, ExecuteError> {
        self.packing.as_received(tensor, message)
    }

    /// Hands a frame to the transport.
    fn transmit(
        &mut self,
        peer: usize,
        message: &Message,
        mut meta: FrameMeta,
        payload: Slice,
    ) -> Result<(), ExecuteError> {
        self.reap()?;
        let before = self.clock.turn_to(Activity::Send, peer, message);
        if message.kind.starts_work() {
            meta.traceparent = self.traceparent.as_deref().map(str::to_owned);
        }
        let link = self.link(peer).map_err(|source| to(peer, &message.to_string(), source))?;
        self.traffic.count(message, payload.len());
        let frame = SendFrame { run: self.run, tag: message.tag(), meta, payload };
        self.sends.push((peer, message.to_string(), link.send(frame)));
        self.clock.turn(before);
        Ok(())
    }

    /// Forgets the sends that are through.
    fn reap(&mut self) -> Result<(), ExecuteError> {
        let mut index = 0;
        while let Some((peer, what, completion)) = self.sends.get_mut(index) {
            match completion.try_take() {
                None => index += 1,
                Some(Ok(())) => drop(self.sends.swap_remove(index)),
                Some(Err(source)) => {
                    let error = to(*peer, what, source);
                    self.check_abort()?;
                    return Err(error);
                }
            }
        }
        let (held, limit) = (self.sends.len(), SENDS_IN_FLIGHT_MAX);
        if held >= limit { Err(ExecuteError::TooManySends { held, limit }) } else { Ok(()) }
    }

    /// Whether every frame sent so far was taken.
    pub(super) fn is_through(&mut self) -> Result<bool, ExecuteError> {
        self.reap()?;
        Ok(self.sends.is_empty())
    }

    /// Waits until `peer` has taken every frame sent to it so far.
    pub(super) fn wait_until_taken_by(&mut self, peer: usize) -> Result<(), ExecuteError> {
        let before = self.clock.turn(Activity::Wait);
        let deadline = self.deadline();
        let sends = std::mem::take(&mut self.sends);
        let (own, others) = sends.into_iter().partition(|&(to, ..)| to == peer);
        self.sends = others;
        let taken = self.wait_for_all(own, deadline);
        self.clock.turn(before);
        taken
    }

    fn wait_for_all(&self, sends: Vec<Sent>, deadline: Instant) -> Result<(), ExecuteError> {
        for (peer, what, mut completion) in sends {
            let sent = completion.wait_until(deadline);
            self.check_abort()?;
            sent.map_err(|source| to(peer, &what, source))?;
        }
        Ok(())
    }

    /// Waits until every frame was taken, then lets the links forget the run. The stopwatch comes
    /// back with what it recorded.
    pub(super) fn finish(mut self) -> Result<(Traffic, Stopwatch), ExecuteError> {
        self.clock.begin_extra("finish");
        self.clock.turn(Activity::Wait);
        let sends = std::mem::take(&mut self.sends);
        self.wait_for_all(sends, self.deadline())?;
        self.links.values().for_each(|link| link.end_run(self.run));
        self.clock.end_extra();
        let traffic = Traffic { time: self.clock.summary(), ..self.traffic };
        Ok((traffic, self.clock))
    }
}

fn from(peer: usize, message: &Message, source: TransportError) -> ExecuteError {
    ExecuteError::Frame {
        what: message.to_string(),
        direction: "from",
        peer,
        source: Box::new(source),
    }
}

fn to(peer: usize, what: &str, source: TransportError) -> ExecuteError {
    ExecuteError::Frame { what: what.to_owned(), direction: "to", peer, source: Box::new(source) }
}

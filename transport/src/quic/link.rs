//! One end of a QUIC link.
//!
//! Owns the table, the queues towards the writers, and closing. Does not read or write; see
//! `reader.rs` and `writer.rs`. Invariants: one lock guards table and queues, and is never held
//! across an await; after closing the queues are empty and stay so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use quinn_proto::VarInt;
use tokio::sync::{Notify, watch};

use super::greeting::LaneStream;
use super::{CAPS, lane, reader, writer};
use crate::completion::{Completion, Drive};
use crate::endpoint::{QuicEndpoint, close_cause, close_code, window_bytes};
use crate::error::TransportError;
use crate::fabric::BULK_LANES_MAX;
use crate::frame::message::bounded_cause;
use crate::frame::{
    FRAME_BYTES_MAX, FrameHeader, FrameMeta, Grant, LaneOffer, LinkMessage, Priority,
};
use crate::ids::{Epoch, PeerId, RunId};
use crate::link::lane::{FrameLane, FrameSink};
use crate::link::table::{Arrival, Departure, LinkTable, Step};
use crate::link::{Carrier, Link, LinkStats, PostRecv, Received, SendFrame};
use crate::region::{MemKind, Region};
use crate::stack::Connection;

/// Streams that a welcomed peer may open on a bulk lane: one per class but the usual one.
const CLASS_STREAMS: VarInt = VarInt::from_u32(Priority::ALL.len() as u32 - 1);

pub(crate) struct QuicLink {
    pub(super) peer: PeerId,
    pub(super) epoch: Epoch,
    core: Mutex<Core>,
    pub(super) messages_waiting: Notify,
    /// By bulk connection and class; each has one writer.
    frames_waiting: Vec<[Notify; Priority::ALL.len()]>,
    /// Drives grants and the first bulk connection; weak, because it holds tasks that hold links.
    driver: Weak<dyn Drive>,
    control: Connection,
    bulk: Vec<Connection>,
    choice: watch::Sender<Choice>,
}

/// What carries the frames.
#[derive(Default)]
struct Choice {
    /// The peer's offer, not yet taken.
    offered: Option<LaneOffer>,
    /// This end has nothing else: whoever offers is told so.
    declines: bool,
    over: bool,
}

pub(super) struct Core {
    pub(super) table: LinkTable,
    /// At most one entry per refusal and abort, which the table bounds.
    messages: VecDeque<LinkMessage>,
    /// Places for the peer's frames, at most as many as are posted; they leave before `messages`.
    grants: Vec<Grant>,
    /// Granted frames by class, at most as many as the peer's grants.
    frames: [VecDeque<Departure>; Priority::ALL.len()],
    /// The writers that have nothing to do, as in `frames_waiting`.
    idle: Vec<[bool; Priority::ALL.len()]>,
    /// What carries them instead of the bulk connections.
    lane: Option<Arc<dyn FrameLane>>,
    why_quic: Option<String>,
}

impl QuicLink {
    /// Starts the tasks of a link that shares the receive buffers with those of `peers - 1` others;
    /// runs on the control endpoint's thread, the tasks of a lane run on that of its endpoint.
    pub(super) fn start(
        peer: PeerId,
        epoch: Epoch,
        control: (LaneStream, &QuicEndpoint),
        lanes: Vec<(LaneStream, &QuicEndpoint)>,
        peers: u32,
    ) -> Arc<Self> {
        let (control, at) = control;
        let link = Arc::new(Self {
            peer,
            epoch,
            core: Mutex::new(Core {
                table: LinkTable::new(peer, epoch, FRAME_BYTES_MAX),
                messages: VecDeque::new(),
                grants: Vec::new(),
                frames: Default::default(),
                idle: vec![Default::default(); lanes.len()],
                lane: None,
                why_quic: None,
            }),
            messages_waiting: Notify::new(),
            frames_waiting: lanes.iter().map(|_| Default::default()).collect(),
            driver: Arc::downgrade(&at.thread().driver()),
            control: control.connection,
            bulk: lanes.iter().map(|(lane, _)| lane.connection.clone()).collect(),
            choice: watch::Sender::default(),
        });
        tokio::spawn(reader::read_messages(Arc::clone(&link), control.receiving));
        tokio::spawn(writer::write_messages(Arc::clone(&link), control.sending));
        tokio::spawn(watch_connection(Arc::clone(&link), link.control.clone()));
        for (index, (lane, endpoint)) in lanes.into_iter().enumerate() {
            let share = endpoint.receive_window_bytes() / peers.max(1);
            let window = window_bytes(lane.connection.rtt(), share);
            lane.connection.set_receive_window(VarInt::from_u32(window));
            lane.connection.set_max_concurrent_uni_streams(CLASS_STREAMS);
            endpoint.spawn(watch_connection(Arc::clone(&link), lane.connection.clone()));
            lane::start(&link, index, lane, endpoint);
        }
        link
    }

    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Messages to write now, and grants, which go first, into `grants`, which is empty; `None`
    /// when the link is closed.
    pub(super) fn take_messages(&self, grants: &mut Vec<Grant>) -> Option<VecDeque<LinkMessage>> {
        let mut core = self.core();
        if core.table.closed().is_some() {
            return None;
        }
        std::mem::swap(&mut core.grants, grants);
        Some(std::mem::take(&mut core.messages))
    }

    /// The next frame for a writer, waits for one; `None` when the link is closed.
    pub(super) async fn next_frame(&self, lane: usize, class: Priority) -> Option<Departure> {
        loop {
            {
                let mut core = self.core();
                if core.table.closed().is_some() {
                    return None;
                }
                let next = core.frames.get_mut(class.index()).and_then(VecDeque::pop_front);
                if next.is_some() {
                    return next;
                }
                *core.idle.get_mut(lane)?.get_mut(class.index())? = true;
            }
            self.frames_waiting.get(lane)?.get(class.index())?.notified().await;
        }
    }

    /// Applies what the peer said.
    pub(super) fn handle(&self, message: LinkMessage) -> Result<(), TransportError> {
        match message {
            LinkMessage::Grants(grants) => self.grants_came(&grants)?,
            LinkMessage::Refuse(refusal) => self.core().table.refused(refusal),
            LinkMessage::Abort { run, cause } => {
                self.core().abort(run, &cause);
            }
            LinkMessage::Offer(offer) => {
                self.choice.send_modify(|choice| choice.offered = Some(offer));
                self.answer_offer();
            }
        }
        Ok(())
    }

    /// Tells the peer what else could carry the frames.
    pub(crate) fn offer(&self, offer: LaneOffer) {
        self.core().messages.push_back(LinkMessage::Offer(offer));
        self.messages_waiting.notify_one();
    }

    /// This end has nothing else that could carry the frames.
    pub(crate) fn decline(&self) {
        self.choice.send_modify(|choice| choice.declines = true);
        self.answer_offer();
    }

    fn answer_offer(&self) {
        let mut declined = false;
        self.choice.send_if_modified(|choice| {
            declined = choice.declines && choice.offered.take().is_some();
            false
        });
        if declined {
            let cause = "it is set up for nothing but QUIC".to_owned();
            self.offer(LaneOffer { cause, ..LaneOffer::default() });
        }
    }

    /// Waits for the peer's offer; the caller has a deadline.
    pub(crate) async fn offered(&self) -> Result<LaneOffer, TransportError> {
        let mut choice = self.choice.subscribe();
        let heard = choice.wait_for(|choice| choice.offered.is_some() || choice.over).await;
        let offer = heard.ok().and_then(|choice| choice.offered.clone());
        offer.ok_or_else(|| TransportError::closed(format!("the link to peer {}", self.peer)))
    }

    /// Frames stay on QUIC.
    pub(crate) fn stay(&self, why: String) {
        self.core().why_quic = Some(why);
    }

    /// Frames ride on `lane` from now on, those that the peer has granted already too.
    pub(crate) fn ride(&self, lane: Arc<dyn FrameLane>) {
        let mut core = self.core();
        if core.table.closed().is_some() {
            return lane.close();
        }
        if lane.takes_device_memory() {
            core.table.take_device_memory();
        }
        let granted = std::mem::take(&mut core.frames);
        for departure in granted.into_iter().rev().flatten() {
            lane.depart(departure);
        }
        core.lane = Some(Arc::clone(&lane));
        drop(core);
        lane.flush();
    }

    /// The peer broke the protocol.
    pub(super) fn fail(&self, error: &TransportError) {
        tracing::warn!(peer = %self.peer, %error, "closing a link");
        self.shut(&error.to_string(), close_code::PROTOCOL);
    }

    fn driver(&self, core: &Core) -> Option<Arc<dyn Drive>> {
        core.lane.as_ref().map_or_else(|| self.driver.upgrade(), |lane| Some(lane.driver()))
    }

    fn grants_came(&self, grants: &[Grant]) -> Result<(), TransportError> {
        let mut core = self.core();
        for grant in grants {
            let step = core.table.granted(*grant)?;
            core.queue(step);
        }
        self.wake(core);
        Ok(())
    }

    /// Wakes whoever has something to do, after letting go of the lock that they want.
    fn wake(&self, mut core: MutexGuard<'_, Core>) {
        let messages = !core.messages.is_empty();
        let writers = core.rouse();
        let lane = core.lane.clone();
        drop(core);
        if messages {
            self.messages_waiting.notify_one();
        }
        for (waiting, roused) in self.frames_waiting.iter().zip(writers) {
            let roused = waiting.iter().zip(roused).filter(|(_, roused)| *roused);
            roused.for_each(|(waiting, _)| waiting.notify_one());
        }
        if let Some(lane) = lane {
            lane.flush();
        }
    }

    fn shut(&self, cause: &str, code: VarInt) {
        let reason = bounded_cause(cause);
        {
            let mut core = self.core();
            core.table.close(cause);
            core.messages.clear();
            core.grants.clear();
            core.frames.iter_mut().for_each(VecDeque::clear);
            if let Some(lane) = core.lane.take() {
                lane.close();
            }
            // Under the lock: a writer that sees the link closed drops its stream, and the end of
            // a stream must not reach the peer before the reason does.
            self.control.close(code, reason.as_bytes());
            for lane in &self.bulk {
                lane.close(code, reason.as_bytes());
            }
        }
        self.messages_waiting.notify_one();
        self.frames_waiting.iter().flatten().for_each(Notify::notify_one);
        self.choice.send_modify(|choice| choice.over = true);
    }
}

impl FrameSink for QuicLink {
    fn place(
        &self,
        header: &FrameHeader,
        meta: &FrameMeta,
    ) -> Result<Option<Region>, TransportError> {
        let mut core = self.core();
        let Arrival::Place(place) = core.table.arriving(header)? else { return Ok(None) };
        Ok(core.table.agrees(header, meta).then_some(place.region))
    }

    fn came(
        &self,
        header: &FrameHeader,
        meta: FrameMeta,
        payload: &[u8],
    ) -> Result<(), TransportError> {
        self.core().table.came(header, meta, payload)
    }

    fn arrived(&self, header: &FrameHeader, region: Region, meta: FrameMeta) {
        self.core().table.arrived(header, region, meta);
    }

    fn observed(&self, bytes: u64, took: Duration) {
        self.core().table.observed(bytes, took);
    }

    fn granted(&self, grant: Grant) -> Result<(), TransportError> {
        self.grants_came(&[grant])
    }

    fn departed(&self, departure: u64, payload_len: u64) {
        self.core().table.departed(departure, payload_len);
    }

    fn broken(&self, error: &TransportError) {
        self.fail(error);
    }

    fn lost(&self, cause: &str) {
        self.shut(cause, close_code::DONE);
    }
}

impl Core {
    fn queue(&mut self, step: Option<Step>) {
        match step {
            None => {}
            Some(Step::Depart(departure)) => match &self.lane {
                Some(lane) => lane.depart(departure),
                None => {
                    if let Some(frames) = self.frames.get_mut(departure.meta.priority.index()) {
                        frames.push_back(departure);
                    }
                }
            },
            Some(Step::Refuse(refusal)) => self.messages.push_back(LinkMessage::Refuse(refusal)),
        }
    }

    /// A writer for each frame, the first bulk connection's first.
    fn rouse(&mut self) -> [[bool; Priority::ALL.len()]; BULK_LANES_MAX] {
        let mut roused = [[false; Priority::ALL.len()]; BULK_LANES_MAX];
        for (class, frames) in self.frames.iter().enumerate() {
            let mut left = frames.len();
            for (idle, roused) in self.idle.iter_mut().zip(&mut roused) {
                let (Some(idle), Some(roused)) = (idle.get_mut(class), roused.get_mut(class))
                else {
                    continue;
                };
                if left > 0 && std::mem::take(idle) {
                    *roused = true;
                    left -= 1;
                }
            }
        }
        roused
    }

    fn abort(&mut self, run: RunId, cause: &str) -> bool {
        for frames in &mut self.frames {
            frames.retain(|departure| departure.run != run);
        }
        self.table.abort(run, cause)
    }
}

impl Link for QuicLink {
    fn peer(&self) -> PeerId {
        self.peer
    }

    fn post_recv(&self, post: PostRecv) -> Completion<Received> {
        let mut core = self.core();
        let (completer, waiting) = core.table.receiving((post.run, post.tag), self.driver(&core));
        if let Some(grant) = core.table.post(post, completer) {
            let lane = core.lane.clone();
            if lane.is_none() {
                // Those that wait to be written travel together.
                core.grants.push(grant);
            }
            // After the lock: whoever is woken wants it.
            drop(core);
            match lane {
                Some(lane) => lane.grant(grant),
                None => self.messages_waiting.notify_one(),
            }
        }
        waiting
    }

    fn send(&self, frame: SendFrame) -> Completion<()> {
        let mut core = self.core();
        let (completer, waiting) = core.table.sending((frame.run, frame.tag), self.driver(&core));
        match (core.table.send(frame, completer), &core.lane) {
            (Some(Step::Depart(departure)), Some(lane)) => {
                let lane = Arc::clone(lane);
                // Whoever carries it tells this link that it has left.
                drop(core);
                lane.depart_now(departure);
            }
            (step, _) => {
                core.queue(step);
                self.wake(core);
            }
        }
        waiting
    }

    fn abort_run(&self, run: RunId, cause: &str) {
        let cause = bounded_cause(cause);
        let mut core = self.core();
        if core.abort(run, &cause) && core.table.closed().is_none() {
            core.messages.push_back(LinkMessage::Abort { run, cause });
            self.messages_waiting.notify_one();
        }
    }

    fn end_run(&self, run: RunId) {
        self.core().table.end(run);
    }

    fn close(&self, cause: &str) {
        self.shut(cause, close_code::DONE);
    }

    fn closed(&self) -> Option<String> {
        self.core().table.closed().map(str::to_owned)
    }

    fn takes(&self, kind: MemKind) -> bool {
        self.core().table.takes(kind)
    }

    fn carrier(&self) -> Carrier {
        let core = self.core();
        match (&core.lane, &core.why_quic) {
            (Some(lane), _) => lane.carrier(),
            (None, Some(why)) => Carrier { name: CAPS.name, why: why.clone() },
            (None, None) => Carrier::only(CAPS.name),
        }
    }

    fn stats(&self) -> LinkStats {
        let mut stats = self.core().table.stats();
        stats.rtt = self.bulk.iter().map(Connection::rtt).min();
        stats
    }
}

/// The end of any connection is the end of the link.
async fn watch_connection(link: Arc<QuicLink>, connection: Connection) {
    let error = connection.closed().await;
    link.shut(&close_cause(&error), close_code::DONE);
}

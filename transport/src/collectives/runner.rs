//! Carries out one schedule over a transport, in chunks.
//!
//! Owns the windows and the frames under way. Two ways to drive it: [`Collective::poll`] (never
//! waits; for virtual time, and for several at once) and [`Collective::wait`] (a plain thread). A
//! piece travels as chunks of [`CHUNK_BYTES`], and who passes it on sends a chunk while the next
//! one comes.
//!
//! Invariants: transfers of each direction start in the order of (round, chunk), at most a window's
//! worth at a time; a chunk that is passed on is the memory it came in.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::{Direction, Transfer};
use crate::completion::Completion;
use crate::error::TransportError;
use crate::frame::FrameMeta;
use crate::ids::{Epoch, RunId, Tag};
use crate::link::{PostRecv, Received, SendFrame, Transport};
use crate::region::Slice;

/// Bytes of a chunk, unless a window says otherwise.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Chunks of a piece; a round and a chunk are a tag.
pub const CHUNKS_PER_PIECE_MAX: usize = 1 << 16;

/// How much is under way at a time; zeros count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Posted receives.
    pub receives: usize,
    /// Frames that wait for their grant or are on their way.
    pub sends: usize,
    /// Bytes of a chunk, the same on all members.
    pub chunk_bytes: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { receives: 64, sends: 64, chunk_bytes: CHUNK_BYTES }
    }
}

/// What a collective moves.
#[derive(Clone, Debug)]
pub struct Pieces {
    /// The mesh.
    pub epoch: Epoch,
    /// What this member brings, by the piece index of the schedule's sends. A piece that is not
    /// among these is passed on as it comes.
    pub outgoing: BTreeMap<usize, Slice>,
    /// Expected bytes, by the piece index of the schedule's receives.
    pub incoming_bytes: BTreeMap<usize, usize>,
}

/// One chunk of one transfer.
#[derive(Clone, Copy, Debug)]
struct Step {
    transfer: Transfer,
    chunk: usize,
}

impl Step {
    fn order(&self) -> (usize, usize) {
        (self.transfer.round, self.chunk)
    }

    /// Between two members a round and a chunk name one frame.
    fn tag(&self, base: Tag) -> Tag {
        Tag(base.0.wrapping_add((self.transfer.round as u64) << 16 | self.chunk as u64))
    }
}

/// One collective under way.
pub struct Collective {
    transport: Arc<dyn Transport>,
    run: RunId,
    tag: Tag,
    window: Window,
    pieces: Pieces,
    sends: VecDeque<Step>,
    receives: VecDeque<Step>,
    sending: VecDeque<(Step, Completion<()>)>,
    receiving: VecDeque<(Step, Completion<Received>)>,
    received: BTreeMap<usize, BTreeMap<usize, Slice>>,
}

impl Collective {
    /// Prepares `schedule`; nothing moves before it is driven. The tags from `tag` on, `2^16` for
    /// each round, must be new for this run between all members.
    ///
    /// # Errors
    /// [`TransportError::Mismatch`] when the schedule names a piece that is neither brought nor
    /// comes, or one of more than [`CHUNKS_PER_PIECE_MAX`] chunks.
    pub fn new(
        transport: Arc<dyn Transport>,
        (run, tag): (RunId, Tag),
        schedule: &[Transfer],
        pieces: Pieces,
        window: Window,
    ) -> Result<Self, TransportError> {
        let mut steps = [VecDeque::new(), VecDeque::new()];
        for &transfer in schedule {
            let sends = transfer.direction == Direction::SendTo;
            let brought = pieces.outgoing.get(&transfer.piece).map(Slice::len).filter(|_| sends);
            let len = brought.or(pieces.incoming_bytes.get(&transfer.piece).copied());
            let what = if sends { "outgoing" } else { "incoming" };
            let chunks = len
                .ok_or_else(|| missing(what, transfer.piece))?
                .div_ceil(window.chunk_bytes.max(1));
            if chunks > CHUNKS_PER_PIECE_MAX {
                let what = "chunks of a piece and their limit";
                return Err(TransportError::mismatch(what, chunks, CHUNKS_PER_PIECE_MAX));
            }
            let chunks = (0..chunks.max(1)).map(|chunk| Step { transfer, chunk });
            steps[usize::from(!sends)].extend(chunks);
        }
        let [mut sends, mut receives] = steps;
        [&mut sends, &mut receives]
            .into_iter()
            .for_each(|steps| steps.make_contiguous().sort_by_key(Step::order));
        let (sending, receiving, received) = Default::default();
        Ok(Self {
            transport,
            run,
            tag,
            window,
            pieces,
            sends,
            receives,
            sending,
            receiving,
            received,
        })
    }

    /// Starts and collects what can be without waiting; true when all is done.
    ///
    /// # Errors
    /// The first error of any transfer.
    pub fn poll(&mut self) -> Result<bool, TransportError> {
        self.collect()?;
        self.start()?;
        let started = self.sends.is_empty() && self.receives.is_empty();
        Ok(started && self.sending.is_empty() && self.receiving.is_empty())
    }

    /// Drives everything from a plain thread; what came, as of [`Self::into_received`].
    ///
    /// # Errors
    /// The first error of any transfer, or [`TransportError::Deadline`].
    pub fn wait(
        mut self,
        deadline: Instant,
    ) -> Result<BTreeMap<usize, Vec<Slice>>, TransportError> {
        while !self.poll()? {
            self.wait_for_oldest(deadline)?;
        }
        Ok(self.into_received())
    }

    /// What came: the chunks of each piece, in order.
    pub fn into_received(self) -> BTreeMap<usize, Vec<Slice>> {
        let pieces = self.received.into_iter();
        pieces.map(|(piece, chunks)| (piece, chunks.into_values().collect())).collect()
    }

    fn start(&mut self) -> Result<(), TransportError> {
        while self.receiving.len() < self.window.receives.max(1)
            && let Some(step) = self.receives.pop_front()
        {
            let len = self.pieces.incoming_bytes.get(&step.transfer.piece).copied();
            let len = len.ok_or_else(|| missing("incoming", step.transfer.piece))?;
            let len = self.range(step.chunk, len).len();
            let region = self.transport.allocate(len);
            let post = PostRecv { run: self.run, tag: step.tag(self.tag), region, len };
            let waiting = self.transport.link(step.transfer.peer)?.post_recv(post);
            self.receiving.push_back((step, waiting));
        }
        while self.sending.len() < self.window.sends.max(1)
            && let Some(&step) = self.sends.front()
            && let Some(payload) = self.payload(step)
        {
            self.sends.pop_front();
            let meta =
                FrameMeta::raw(self.pieces.epoch, u32::try_from(payload.len()).unwrap_or(u32::MAX));
            let frame = SendFrame { run: self.run, tag: step.tag(self.tag), meta, payload };
            let waiting = self.transport.link(step.transfer.peer)?.send(frame);
            self.sending.push_back((step, waiting));
        }
        Ok(())
    }

    /// The bytes of a step; none while they have yet to come.
    fn payload(&self, step: Step) -> Option<Slice> {
        let piece = step.transfer.piece;
        match self.pieces.outgoing.get(&piece) {
            Some(whole) => whole.part(self.range(step.chunk, whole.len())),
            None => self.received.get(&piece)?.get(&step.chunk).cloned(),
        }
    }

    fn range(&self, chunk: usize, len: usize) -> std::ops::Range<usize> {
        let bytes = self.window.chunk_bytes.max(1);
        (chunk * bytes).min(len)..((chunk + 1) * bytes).min(len)
    }

    fn collect(&mut self) -> Result<(), TransportError> {
        for _ in 0..self.sending.len() {
            let Some((step, mut waiting)) = self.sending.pop_front() else { break };
            match waiting.try_take() {
                Some(sent) => sent?,
                None => self.sending.push_back((step, waiting)),
            }
        }
        for _ in 0..self.receiving.len() {
            let Some((step, mut waiting)) = self.receiving.pop_front() else { break };
            match waiting.try_take() {
                Some(received) => self.keep(step, received?),
                None => self.receiving.push_back((step, waiting)),
            }
        }
        Ok(())
    }

    fn keep(&mut self, step: Step, received: Received) {
        let Received { region, len, .. } = received;
        let chunks = self.received.entry(step.transfer.piece).or_default();
        chunks.insert(step.chunk, region.freeze(len));
    }

    /// What comes first in the common order cannot depend on anything later, so waiting for it is
    /// safe.
    fn wait_for_oldest(&mut self, deadline: Instant) -> Result<(), TransportError> {
        let send = self.sending.front().map(|(step, _)| step.order());
        let receive = self.receiving.front().map(|(step, _)| step.order());
        let send_first = match (send, receive) {
            (Some(send), Some(receive)) => send < receive,
            (send, _) => send.is_some(),
        };
        if send_first {
            if let Some((_, mut waiting)) = self.sending.pop_front() {
                waiting.wait_until(deadline)?;
            }
        } else if let Some((step, mut waiting)) = self.receiving.pop_front() {
            let received = waiting.wait_until(deadline)?;
            self.keep(step, received);
        } else if let Some(step) = self.sends.front() {
            return Err(missing("outgoing", step.transfer.piece));
        }
        Ok(())
    }
}

fn missing(what: &str, piece: usize) -> TransportError {
    TransportError::mismatch("schedule and pieces", format!("{what} piece {piece}"), "none")
}

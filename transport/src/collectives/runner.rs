//! Carries out one schedule over a transport.
//!
//! Owns the windows and the completions under way. Two ways to drive it: [`Collective::poll`]
//! (never waits; for virtual time) and [`Collective::wait`] (a plain thread). Invariant: transfers
//! of each direction start in the schedule's order, at most a window's worth at a time.

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

/// How many transfers of each direction are under way at a time; zero counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Posted receives.
    pub receives: usize,
    /// Frames that wait for their grant or are on their way.
    pub sends: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { receives: 64, sends: 64 }
    }
}

/// What a collective moves.
#[derive(Clone, Debug)]
pub struct Pieces {
    /// Payloads and their descriptions, by the piece index of the schedule's sends.
    pub outgoing: BTreeMap<usize, (FrameMeta, Slice)>,
    /// Expected bytes, by the piece index of the schedule's receives.
    pub incoming_bytes: BTreeMap<usize, usize>,
}

impl Pieces {
    /// Plain bytes.
    pub fn raw(epoch: Epoch, outgoing: &[Slice], incoming_bytes: &[usize]) -> Self {
        let describe = |slice: &Slice| {
            let len = u32::try_from(slice.len()).unwrap_or(u32::MAX);
            (FrameMeta::raw(epoch, len), slice.clone())
        };
        Self {
            outgoing: outgoing.iter().map(describe).enumerate().collect(),
            incoming_bytes: incoming_bytes.iter().copied().enumerate().collect(),
        }
    }
}

/// One collective under way.
pub struct Collective {
    transport: Arc<dyn Transport>,
    run: RunId,
    tag: Tag,
    window: Window,
    pieces: Pieces,
    sends: VecDeque<(usize, Transfer)>,
    receives: VecDeque<(usize, Transfer)>,
    sending: VecDeque<(usize, Completion<()>)>,
    receiving: VecDeque<(usize, usize, Completion<Received>)>,
    received: BTreeMap<usize, Received>,
}

impl Collective {
    /// Prepares `schedule`; nothing moves before it is driven. The tag must be new for this run
    /// between all members.
    pub fn new(
        transport: Arc<dyn Transport>,
        (run, tag): (RunId, Tag),
        schedule: &[Transfer],
        pieces: Pieces,
        window: Window,
    ) -> Self {
        let of = |direction| {
            let all = schedule.iter().copied().enumerate();
            all.filter(|(_, transfer)| transfer.direction == direction).collect()
        };
        Self {
            transport,
            run,
            tag,
            window,
            pieces,
            sends: of(Direction::SendTo),
            receives: of(Direction::RecvFrom),
            sending: VecDeque::new(),
            receiving: VecDeque::new(),
            received: BTreeMap::new(),
        }
    }

    /// Starts and collects what can be without waiting; true when all is done.
    ///
    /// # Errors
    /// The first error of any transfer.
    pub fn poll(&mut self) -> Result<bool, TransportError> {
        self.collect()?;
        self.start()?;
        Ok(self.sending.is_empty() && self.receiving.is_empty())
    }

    /// Drives everything from a plain thread.
    ///
    /// # Errors
    /// The first error of any transfer, or [`TransportError::Deadline`].
    pub fn wait(mut self, deadline: Instant) -> Result<BTreeMap<usize, Received>, TransportError> {
        while !self.poll()? {
            self.wait_for_oldest(deadline)?;
        }
        Ok(self.received)
    }

    /// What came, by piece.
    pub fn into_received(self) -> BTreeMap<usize, Received> {
        self.received
    }

    fn start(&mut self) -> Result<(), TransportError> {
        while self.receiving.len() < self.window.receives.max(1)
            && let Some((step, transfer)) = self.receives.pop_front()
        {
            let len = self.pieces.incoming_bytes.get(&transfer.piece).copied();
            let len = len.ok_or_else(|| missing("incoming", transfer.piece))?;
            let region = self.transport.allocate(len);
            let post = PostRecv { run: self.run, tag: self.tag, region, len };
            let waiting = self.transport.link(transfer.peer)?.post_recv(post);
            self.receiving.push_back((step, transfer.piece, waiting));
        }
        while self.sending.len() < self.window.sends.max(1)
            && let Some((step, transfer)) = self.sends.pop_front()
        {
            let outgoing = self.pieces.outgoing.get(&transfer.piece).cloned();
            let (meta, payload) = outgoing.ok_or_else(|| missing("outgoing", transfer.piece))?;
            let frame = SendFrame { run: self.run, tag: self.tag, meta, payload };
            let waiting = self.transport.link(transfer.peer)?.send(frame);
            self.sending.push_back((step, waiting));
        }
        Ok(())
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
            let Some((step, piece, mut waiting)) = self.receiving.pop_front() else { break };
            match waiting.try_take() {
                Some(received) => drop(self.received.insert(piece, received?)),
                None => self.receiving.push_back((step, piece, waiting)),
            }
        }
        Ok(())
    }

    /// Whatever step comes first cannot depend on a later one, so waiting for it is safe.
    fn wait_for_oldest(&mut self, deadline: Instant) -> Result<(), TransportError> {
        let send = self.sending.front().map(|(step, _)| *step);
        let receive = self.receiving.front().map(|(step, ..)| *step);
        let send_first = match (send, receive) {
            (Some(send), Some(receive)) => send < receive,
            (send, _) => send.is_some(),
        };
        if send_first {
            if let Some((_, mut waiting)) = self.sending.pop_front() {
                waiting.wait_until(deadline)?;
            }
        } else if let Some((_, piece, mut waiting)) = self.receiving.pop_front() {
            self.received.insert(piece, waiting.wait_until(deadline)?);
        }
        Ok(())
    }
}

fn missing(what: &str, piece: usize) -> TransportError {
    TransportError::mismatch("schedule and pieces", format!("{what} piece {piece}"), "none")
}

//! Loads that a link is measured with: a stream of equal messages, and a message to and fro.
//!
//! Owns the two loops, one for each end, over any transport; the ends agree on the values before.
//! Does not own who the ends are, where they run, or what is made of the figures. Invariants: in
//! the steady state both ends use the same memory again and again; receives are posted ahead, so no
//! grant is waited for; every wait has the caller's deadline.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::completion::Completion;
use crate::error::TransportError;
use crate::frame::FrameMeta;
use crate::ids::{Epoch, RunId, Tag};
use crate::link::{Link, PostRecv, Received, SendFrame, Transport};
use crate::region::{Region, Slice};

/// How many messages of a ping-pong are posted at a time, so that their grants travel together.
const POSTED_AT_A_TIME: u64 = 64;

/// A stream of equal messages from one end to the other.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// The mesh.
    pub epoch: Epoch,
    /// A run that nothing else uses.
    pub run: RunId,
    /// Payload of one message, in bytes.
    pub bytes: usize,
    /// How many.
    pub messages: u64,
    /// How many are under way at a time.
    pub in_flight: u64,
}

impl Stream {
    /// The sending end: from the first message to the receiver's word that it has the last.
    ///
    /// # Errors
    /// What the link says, or [`TransportError::Deadline`].
    pub fn send(
        &self,
        link: &dyn Link,
        mesh: &dyn Transport,
        deadline: Instant,
    ) -> Result<Duration, TransportError> {
        let payload = mesh.allocate(self.bytes).freeze(self.bytes);
        let mut done = self.post(link, self.messages, Region::host(0), 0);
        let begun = Instant::now();
        let mut leaving = VecDeque::new();
        for number in 0..self.messages {
            if leaving.len() as u64 >= self.in_flight.max(1) {
                wait(&mut leaving, deadline)?;
            }
            leaving.push_back(self.give(link, number, payload.clone()));
        }
        while !leaving.is_empty() {
            wait(&mut leaving, deadline)?;
        }
        done.wait_until(deadline)?;
        let took = begun.elapsed();
        link.end_run(self.run);
        Ok(took)
    }

    /// The receiving end.
    ///
    /// # Errors
    /// What the link says, or [`TransportError::Deadline`].
    pub fn receive(
        &self,
        link: &dyn Link,
        mesh: &dyn Transport,
        deadline: Instant,
    ) -> Result<(), TransportError> {
        let ahead = self.in_flight.clamp(1, self.messages.max(1));
        let mut coming: VecDeque<_> = (0..ahead.min(self.messages))
            .map(|number| self.post(link, number, mesh.allocate(self.bytes), self.bytes))
            .collect();
        let mut next = coming.len() as u64;
        while !coming.is_empty() {
            let received = wait(&mut coming, deadline)?;
            if next < self.messages {
                coming.push_back(self.post(link, next, received.region, self.bytes));
                next += 1;
            }
        }
        self.give(link, self.messages, Slice::empty()).wait_until(deadline)?;
        link.end_run(self.run);
        Ok(())
    }

    fn give(&self, link: &dyn Link, number: u64, payload: Slice) -> Completion<()> {
        give(link, self.epoch, self.run, number, payload)
    }

    fn post(
        &self,
        link: &dyn Link,
        number: u64,
        region: Region,
        len: usize,
    ) -> Completion<Received> {
        link.post_recv(PostRecv { run: self.run, tag: Tag(number), region, len })
    }
}

/// One message to and fro.
#[derive(Clone, Copy, Debug)]
pub struct PingPong {
    /// The mesh.
    pub epoch: Epoch,
    /// A run that nothing else uses.
    pub run: RunId,
    /// Payload each way, in bytes.
    pub bytes: usize,
    /// How often.
    pub rounds: u64,
}

impl PingPong {
    /// The end that begins: how long each round took.
    ///
    /// # Errors
    /// What the link says, or [`TransportError::Deadline`].
    pub fn lead(
        &self,
        link: &dyn Link,
        deadline: Instant,
    ) -> Result<Vec<Duration>, TransportError> {
        let mut rounds = Vec::with_capacity(usize::try_from(self.rounds).unwrap_or(0));
        let mut payload = Region::host(self.bytes).freeze(self.bytes);
        let mut coming = VecDeque::new();
        for number in 0..self.rounds {
            self.post_ahead(link, &mut coming, number);
            let begun = Instant::now();
            let mut leaving = give(link, self.epoch, self.run, number, payload);
            let received = wait(&mut coming, deadline)?;
            rounds.push(begun.elapsed());
            leaving.wait_until(deadline)?;
            payload = received.region.freeze(self.bytes);
        }
        link.end_run(self.run);
        Ok(rounds)
    }

    /// The end that answers.
    ///
    /// # Errors
    /// What the link says, or [`TransportError::Deadline`].
    pub fn follow(&self, link: &dyn Link, deadline: Instant) -> Result<(), TransportError> {
        let mut coming = VecDeque::new();
        let mut payload = Region::host(self.bytes).freeze(self.bytes);
        for number in 0..self.rounds {
            self.post_ahead(link, &mut coming, number);
            let received = wait(&mut coming, deadline)?;
            let mut leaving = give(link, self.epoch, self.run, number, payload);
            payload = received.region.freeze(self.bytes);
            leaving.wait_until(deadline)?;
        }
        link.end_run(self.run);
        Ok(())
    }

    /// Posts the next places when the last ones are used up.
    fn post_ahead(&self, link: &dyn Link, coming: &mut VecDeque<Completion<Received>>, at: u64) {
        if coming.is_empty() {
            let next = at..self.rounds.min(at + POSTED_AT_A_TIME);
            coming.extend(next.map(|number| self.post(link, number, Region::host(self.bytes))));
        }
    }

    fn post(&self, link: &dyn Link, number: u64, region: Region) -> Completion<Received> {
        let (run, len) = (self.run, self.bytes);
        link.post_recv(PostRecv { run, tag: Tag(number), region, len })
    }
}

fn give(link: &dyn Link, epoch: Epoch, run: RunId, number: u64, payload: Slice) -> Completion<()> {
    // Frames are bounded far below u32::MAX.
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    link.send(SendFrame { run, tag: Tag(number), meta: FrameMeta::raw(epoch, len), payload })
}

fn wait<T>(waiting: &mut VecDeque<Completion<T>>, deadline: Instant) -> Result<T, TransportError> {
    let nothing = || TransportError::closed("a load without messages");
    waiting.pop_front().ok_or_else(nothing)?.wait_until(deadline)
}

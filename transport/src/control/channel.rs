//! A control channel: both halves together, and pairs within one process.
//!
//! Owns the making of channels. Does not own their pumps; see `pump.rs`.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::beats::Beats;
use super::receiver::ControlReceiver;
use super::sender::ControlSender;
use super::state::{Life, State};
use super::wire::Item;
use crate::error::TransportError;
use crate::identity::{PeerIdentity, Role};

/// Ordered messages with one authenticated process; dropping both halves closes it.
pub struct ControlChannel {
    sender: ControlSender,
    receiver: ControlReceiver,
}

impl ControlChannel {
    pub(super) fn new(
        (outbox, beats): (mpsc::Sender<Item>, watch::Sender<u64>),
        (inbox, heard): (mpsc::Receiver<Item>, watch::Receiver<u64>),
        state: &Arc<State>,
    ) -> Self {
        let life = Life::of(state);
        Self {
            sender: ControlSender::new(outbox, beats, Arc::clone(state), Arc::clone(&life)),
            receiver: ControlReceiver::new(inbox, heard, Arc::clone(state), life),
        }
    }

    /// Two connected ends in this process; each direction queues `messages_max`.
    pub fn pair(messages_max: usize) -> (Self, Self) {
        let local = |name: &str| PeerIdentity {
            role: Role::Node,
            name: name.to_owned(),
            cluster: "in-process".to_owned(),
        };
        Self::pair_between(messages_max, local("left"), local("right"))
    }

    /// As [`ControlChannel::pair`]; the first end belongs to `left` and sees `right` as its peer.
    pub fn pair_between(
        messages_max: usize,
        left: PeerIdentity,
        right: PeerIdentity,
    ) -> (Self, Self) {
        let way = || (mpsc::channel(messages_max.max(1)), watch::channel(0));
        let ((to_right, from_left), (beats_right, heard_left)) = way();
        let ((to_left, from_right), (beats_left, heard_right)) = way();
        let end = watch::Sender::new(None);
        let at_left = State::sharing(right, end.clone());
        let at_right = State::sharing(left, end);
        let left = Self::new((to_right, beats_right), (from_right, heard_right), &at_left);
        let right = Self::new((to_left, beats_left), (from_left, heard_left), &at_right);
        (left, right)
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerIdentity {
        self.sender.peer()
    }

    /// The halves, for two tasks.
    pub fn split(self) -> (ControlSender, ControlReceiver) {
        (self.sender, self.receiver)
    }

    /// See [`ControlSender::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send(&self, message: Vec<u8>, deadline: Instant) -> Result<(), TransportError> {
        self.sender.send(message, deadline).await
    }

    /// See [`ControlReceiver::recv`].
    ///
    /// # Errors
    /// As there.
    pub async fn recv(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        self.receiver.recv().await
    }

    /// See [`ControlSender::send_blob`].
    ///
    /// # Errors
    /// As there.
    pub async fn send_blob(
        &self,
        blob: impl Into<Bytes>,
        deadline: Instant,
    ) -> Result<(), TransportError> {
        self.sender.send_blob(blob, deadline).await
    }

    /// See [`ControlReceiver::recv_blob`].
    ///
    /// # Errors
    /// As there.
    pub async fn recv_blob(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, TransportError> {
        self.receiver.recv_blob(bytes_max).await
    }

    /// See [`ControlSender::beat`].
    pub fn beat(&self, sequence: u64) {
        self.sender.beat(sequence);
    }

    /// See [`ControlReceiver::beats`].
    pub fn beats(&self) -> Beats {
        self.receiver.beats()
    }

    /// Ends the channel at both ends; what was queued still leaves.
    pub fn close(&self, reason: &str) {
        self.sender.close(reason);
    }

    /// Why the channel is over, if it is.
    pub fn closed(&self) -> Option<String> {
        self.sender.closed()
    }
}

//! The sending half of a control channel.
//!
//! Owns the bounded queue towards the other end. Invariant: what was queued leaves in order, also
//! when every half is dropped right after.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::CONTROL_QUEUE_MESSAGES_MAX;
use super::state::{Life, State};
use super::wire::{CONTROL_BLOB_BYTES_MAX, CONTROL_MESSAGE_BYTES_MAX, Item, check_len};
use crate::error::TransportError;
use crate::identity::PeerIdentity;

/// Sends messages and blobs; clones share the queue.
#[derive(Clone)]
pub struct ControlSender {
    outbox: mpsc::Sender<Item>,
    beats: watch::Sender<u64>,
    state: Arc<State>,
    _life: Arc<Life>,
}

impl ControlSender {
    pub(super) fn new(
        outbox: mpsc::Sender<Item>,
        beats: watch::Sender<u64>,
        state: Arc<State>,
        life: Arc<Life>,
    ) -> Self {
        Self { outbox, beats, state, _life: life }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerIdentity {
        &self.state.peer
    }

    /// Queues a message of at most [`CONTROL_MESSAGE_BYTES_MAX`]; waits for room. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`TransportError::FrameTooLarge`], [`TransportError::Deadline`],
    /// [`TransportError::SessionLost`].
    pub async fn send(&self, message: Vec<u8>, deadline: Instant) -> Result<(), TransportError> {
        check_len("control message", message.len(), CONTROL_MESSAGE_BYTES_MAX)?;
        self.queue(Item::Message(message), deadline).await
    }

    /// Queues a message if there is room now.
    ///
    /// # Errors
    /// As [`ControlSender::send`], with [`TransportError::TooMany`] when the queue is full.
    pub fn try_send(&self, message: Vec<u8>) -> Result<(), TransportError> {
        check_len("control message", message.len(), CONTROL_MESSAGE_BYTES_MAX)?;
        self.check_open()?;
        self.outbox.try_send(Item::Message(message)).map_err(|error| match error {
            TrySendError::Full(_) => TransportError::TooMany {
                what: "queued control messages",
                limit: CONTROL_QUEUE_MESSAGES_MAX,
            },
            TrySendError::Closed(_) => self.state.send_error(),
        })
    }

    /// Queues a blob of at most [`CONTROL_BLOB_BYTES_MAX`]; the other end takes it with
    /// [`ControlReceiver::recv_blob`](super::ControlReceiver::recv_blob). Messages sent later wait
    /// behind it.
    ///
    /// # Errors
    /// As [`ControlSender::send`].
    pub async fn send_blob(
        &self,
        blob: impl Into<Bytes>,
        deadline: Instant,
    ) -> Result<(), TransportError> {
        let blob = blob.into();
        check_len("control blob", blob.len(), CONTROL_BLOB_BYTES_MAX)?;
        self.queue(Item::Blob(blob), deadline).await
    }

    /// Shows the other end that this one is alive, ahead of all messages and blobs. Never waits; of
    /// several that have not left yet only the newest does.
    pub fn beat(&self, sequence: u64) {
        self.beats.send_replace(sequence);
    }

    /// Ends the channel at both ends; what was queued still leaves.
    pub fn close(&self, reason: &str) {
        self.state.finish(true, reason);
    }

    /// Why the channel is over, if it is.
    pub fn closed(&self) -> Option<String> {
        self.state.end().map(|end| end.cause)
    }

    async fn queue(&self, item: Item, deadline: Instant) -> Result<(), TransportError> {
        self.check_open()?;
        let queued = async {
            tokio::select! {
                biased;
                end = self.state.ended() => Err(self.state.lost(&end.cause)),
                sent = self.outbox.send(item) => sent.map_err(|_| self.state.send_error()),
            }
        };
        match timeout_at(deadline.into(), queued).await {
            Ok(result) => result,
            Err(_) => Err(TransportError::deadline(format!("room to send to {}", self.peer()))),
        }
    }

    fn check_open(&self) -> Result<(), TransportError> {
        match self.state.end() {
            Some(end) => Err(self.state.lost(&end.cause)),
            None => Ok(()),
        }
    }
}

//! The receiving half of a control channel.
//!
//! Owns the order of messages and the putting together of blobs. Invariants: what came before the
//! end is delivered before the end is reported; a blob never takes more memory than the caller's
//! bound; dropping a receive in the middle loses nothing.

use std::sync::Arc;

use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::sync::watch;

use super::beats::Beats;
use super::state::{Life, State};
use super::wire::{Item, check_len};
use crate::error::TransportError;
use crate::identity::PeerIdentity;

/// Receives messages and blobs.
pub struct ControlReceiver {
    inbox: mpsc::Receiver<Item>,
    heard: watch::Receiver<u64>,
    /// An item of the kind that was not asked for.
    put_back: Option<Item>,
    partial: Option<Partial>,
    state: Arc<State>,
    _life: Arc<Life>,
}

struct Partial {
    total: usize,
    bytes: Vec<u8>,
}

impl ControlReceiver {
    pub(super) fn new(
        inbox: mpsc::Receiver<Item>,
        heard: watch::Receiver<u64>,
        state: Arc<State>,
        life: Arc<Life>,
    ) -> Self {
        Self { inbox, heard, put_back: None, partial: None, state, _life: life }
    }

    /// The other end's heartbeats, which come beside messages and blobs.
    pub fn beats(&self) -> Beats {
        Beats::new(self.heard.clone())
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerIdentity {
        &self.state.peer
    }

    /// The next message; `None` when the other end (or this one) has closed the channel.
    ///
    /// # Errors
    /// [`TransportError::SessionLost`] when the other end is gone without having closed;
    /// [`TransportError::Mismatch`] when a blob comes next (it stays there).
    pub async fn recv(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        if self.partial.is_some() {
            return Err(unexpected("a message", "the rest of a blob"));
        }
        match self.next().await? {
            None => Ok(None),
            Some(Item::Message(message)) => Ok(Some(message)),
            Some(blob) => {
                self.put_back = Some(blob);
                Err(unexpected("a message", "a blob"))
            }
        }
    }

    /// The next blob, of at most `bytes_max`; `None` when the channel was closed before it began.
    /// A larger one ends the channel.
    ///
    /// # Errors
    /// [`TransportError::SessionLost`], [`TransportError::FrameTooLarge`], or
    /// [`TransportError::Mismatch`] when a message comes next (it stays there).
    pub async fn recv_blob(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, TransportError> {
        loop {
            if let Some(whole) = self.take_whole() {
                return Ok(Some(whole));
            }
            let Some(item) = self.next().await? else { return self.end_in_blob() };
            match (item, &mut self.partial) {
                (Item::Blob(blob), None) => {
                    self.admit(blob.len(), bytes_max)?;
                    return Ok(Some(blob.into()));
                }
                (Item::BlobStart(total), None) => {
                    self.admit(total, bytes_max)?;
                    self.partial = Some(Partial { total, bytes: Vec::new() });
                }
                (Item::BlobChunk(chunk), Some(partial)) => {
                    partial.take(&chunk)?;
                }
                (message @ Item::Message(_), None) => {
                    self.put_back = Some(message);
                    return Err(unexpected("a blob", "a message"));
                }
                _ => return Err(self.broken()),
            }
        }
    }

    /// Why the channel is over, if it is.
    pub fn closed(&self) -> Option<String> {
        self.state.end().map(|end| end.cause)
    }

    async fn next(&mut self) -> Result<Option<Item>, TransportError> {
        if let Some(item) = self.put_back.take() {
            return Ok(Some(item));
        }
        tokio::select! {
            biased;
            item = self.inbox.recv() => match item {
                Some(item) => Ok(Some(item)),
                None => self.report_end(),
            },
            _ = self.state.ended() => match self.inbox.try_recv() {
                Ok(item) => Ok(Some(item)),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => self.report_end(),
            },
        }
    }

    fn report_end(&self) -> Result<Option<Item>, TransportError> {
        match self.state.end() {
            Some(end) if !end.orderly => Err(self.state.lost(&end.cause)),
            _ => Ok(None),
        }
    }

    fn take_whole(&mut self) -> Option<Vec<u8>> {
        let partial = self.partial.take()?;
        if partial.bytes.len() == partial.total {
            return Some(partial.bytes);
        }
        self.partial = Some(partial);
        None
    }

    fn end_in_blob(&self) -> Result<Option<Vec<u8>>, TransportError> {
        match &self.partial {
            None => Ok(None),
            Some(partial) => Err(self.state.lost(&format!(
                "it ended after {} of {} bytes of a blob",
                partial.bytes.len(),
                partial.total
            ))),
        }
    }

    fn admit(&self, len: usize, bytes_max: usize) -> Result<(), TransportError> {
        check_len("control blob", len, bytes_max).inspect_err(|error| {
            self.state.finish(true, &error.to_string());
        })
    }

    fn broken(&self) -> TransportError {
        let error = TransportError::malformed("order of the chunks of a control blob");
        self.state.finish(false, &error.to_string());
        error
    }
}

impl Partial {
    fn take(&mut self, chunk: &[u8]) -> Result<(), TransportError> {
        if chunk.is_empty() || self.bytes.len() + chunk.len() > self.total {
            return Err(TransportError::malformed("chunks of a control blob"));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }
}

fn unexpected(asked: &str, came: &str) -> TransportError {
    TransportError::mismatch("what is asked for and what comes next", asked, came)
}

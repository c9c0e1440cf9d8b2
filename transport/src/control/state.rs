//! What the halves and pumps of one channel share: who is there, and whether it is over.
//!
//! Owns the end of a channel: it is set once, by whoever sees it first.

use std::fmt;
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::error::TransportError;
use crate::identity::PeerIdentity;

/// How a channel ended.
#[derive(Clone, Debug)]
pub(super) struct End {
    /// By intention, on either side.
    pub(super) orderly: bool,
    pub(super) cause: String,
}

pub(super) struct State {
    pub(super) peer: PeerIdentity,
    end: watch::Sender<Option<End>>,
    /// Why nothing more can be sent, which may be known before the reader has reached the end.
    send_failure: OnceLock<String>,
}

impl State {
    pub(super) fn new(peer: PeerIdentity) -> Arc<Self> {
        Self::sharing(peer, watch::Sender::new(None))
    }

    pub(super) fn sharing(peer: PeerIdentity, end: watch::Sender<Option<End>>) -> Arc<Self> {
        Arc::new(Self { peer, end, send_failure: OnceLock::new() })
    }

    pub(super) fn finish(&self, orderly: bool, cause: &str) {
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(End { orderly, cause: cause.to_owned() });
            }
            first
        });
    }

    pub(super) fn end(&self) -> Option<End> {
        self.end.borrow().clone()
    }

    /// Resolves when the channel has ended.
    pub(super) async fn ended(&self) -> End {
        let mut watching = self.end.subscribe();
        match watching.wait_for(Option::is_some).await.map(|end| end.clone()) {
            Ok(Some(end)) => end,
            // `self` holds the sender, so the watch cannot close under us.
            _ => End { orderly: true, cause: "the channel was dropped".to_owned() },
        }
    }

    pub(super) fn stop_sending(&self, cause: &str) {
        // The first cause stays.
        let _ = self.send_failure.set(cause.to_owned());
    }

    /// Why sending is over.
    pub(super) fn send_error(&self) -> TransportError {
        match (self.end(), self.send_failure.get()) {
            (Some(end), _) => self.lost(&end.cause),
            (None, Some(cause)) => self.lost(cause),
            (None, None) => self.lost("the other end was dropped"),
        }
    }

    pub(super) fn lost(&self, cause: &str) -> TransportError {
        TransportError::SessionLost { peer: self.peer.to_string(), cause: cause.to_owned() }
    }
}

/// Held by the halves and not by the pumps: when the last half is gone the channel is over.
pub(super) struct Life(Arc<State>);

impl Life {
    pub(super) fn of(state: &Arc<State>) -> Arc<Self> {
        Arc::new(Self(Arc::clone(state)))
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.0.finish(true, "the channel was dropped");
    }
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Life({})", self.0.peer)
    }
}

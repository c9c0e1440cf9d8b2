//! The sending side of a session: clonable, bounded, never waits.
//!
//! Owns the queue's bound and what a full queue means: the peer does not read, so the session is
//! lost. Does not own the channel.

use tokio::sync::{mpsc, watch};

/// Messages that may wait for a peer to read; one more loses the session.
pub const SESSION_QUEUE_MESSAGES_MAX: usize = 1024;

/// What goes out on a session.
#[derive(Debug)]
pub(crate) enum Outgoing<M> {
    /// A message.
    Message(M),
    /// A blob after the message that announces it.
    Blob(Vec<u8>),
}

/// Sends messages to the peer of one session.
#[derive(Debug)]
pub(crate) struct SessionHandle<M> {
    queue: mpsc::Sender<Outgoing<M>>,
    end: watch::Sender<Option<String>>,
}

impl<M> Clone for SessionHandle<M> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), end: self.end.clone() }
    }
}

/// The session's own ends of its handles.
#[derive(Debug)]
pub(crate) struct SessionEnds<M> {
    pub(crate) queue: mpsc::Receiver<Outgoing<M>>,
    pub(crate) end: watch::Receiver<Option<String>>,
}

impl<M> SessionHandle<M> {
    /// A handle and the ends that a session reads.
    pub(crate) fn new() -> (Self, SessionEnds<M>) {
        let (queue, outgoing) = mpsc::channel(SESSION_QUEUE_MESSAGES_MAX);
        let (end, ended) = watch::channel(None);
        (Self { queue, end }, SessionEnds { queue: outgoing, end: ended })
    }

    /// Queues a message. A message for a session that has ended is dropped: its loss is told by
    /// the session itself.
    pub(crate) fn send(&self, message: M) {
        self.queue(Outgoing::Message(message));
    }

    /// Queues a message and the blob that belongs to it, together or not at all.
    pub(crate) fn send_with_blob(&self, message: M, blob: Vec<u8>) {
        match self.queue.try_reserve_many(2) {
            Ok(mut permits) => {
                for outgoing in [Outgoing::Message(message), Outgoing::Blob(blob)] {
                    if let Some(permit) = permits.next() {
                        permit.send(outgoing);
                    }
                }
            }
            Err(mpsc::error::TrySendError::Full(())) => self.overflow(),
            Err(mpsc::error::TrySendError::Closed(())) => {}
        }
    }

    /// Ends the session after what is queued; `reason` is told to the peer.
    pub(crate) fn close(&self, reason: impl Into<String>) {
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(reason.into());
            }
            first
        });
    }

    fn queue(&self, outgoing: Outgoing<M>) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(outgoing) {
            self.overflow();
        }
    }

    fn overflow(&self) {
        self.close(format!("the peer left {SESSION_QUEUE_MESSAGES_MAX} messages unread"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_does_not_read_loses_its_session() {
        let (handle, ends) = SessionHandle::new();
        for message in 0..SESSION_QUEUE_MESSAGES_MAX {
            handle.send(message);
        }
        assert_eq!(*ends.end.borrow(), None);
        handle.send(SESSION_QUEUE_MESSAGES_MAX);
        assert!(ends.end.borrow().as_ref().is_some_and(|cause| cause.contains("unread")));
    }

    #[test]
    fn the_first_reason_to_close_stays() {
        let (handle, ends) = SessionHandle::<()>::new();
        handle.close("first");
        handle.close("second");
        assert_eq!(ends.end.borrow().as_deref(), Some("first"));
    }

    #[test]
    fn a_message_and_its_blob_stay_together() {
        let (handle, mut ends) = SessionHandle::new();
        handle.send_with_blob(1, vec![2]);
        assert!(matches!(ends.queue.try_recv(), Ok(Outgoing::Message(1))));
        assert!(matches!(ends.queue.try_recv(), Ok(Outgoing::Blob(blob)) if blob == [2]));
    }
}

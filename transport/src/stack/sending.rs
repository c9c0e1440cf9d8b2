//! The sending half of a stream.
//!
//! Invariants: chunks are handed to the protocol by reference; a stream that is dropped is
//! finished, so that the peer does not wait for more.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use quinn_proto::{ClosedStream, ConnectionError, FinishError, StreamId, VarInt, Written};

use super::connection::{Held, State};

pub(crate) struct SendStream {
    connection: Arc<Held>,
    id: StreamId,
}

/// Why nothing more can be written.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The peer wants no more of it.
    #[error("the peer stopped the stream with code {0}")]
    Stopped(VarInt),
    /// The connection has ended.
    #[error("the connection was lost: {0}")]
    Lost(#[from] ConnectionError),
    /// It was finished.
    #[error("the stream is finished")]
    Finished,
}

impl SendStream {
    pub(super) fn new(connection: Arc<Held>, id: StreamId) -> Self {
        Self { connection, id }
    }

    /// Writes all of it, a copy.
    pub(crate) async fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let taken = poll_fn(|context| {
                self.poll(context, |state, id| state.protocol.send_stream(id).write(bytes))
            });
            bytes = bytes.get(taken.await?..).unwrap_or_default();
        }
        Ok(())
    }

    /// Writes all of it, without a copy.
    pub(crate) async fn write_chunk(&mut self, chunk: Bytes) -> Result<(), WriteError> {
        self.write_all_chunks(&mut [chunk]).await
    }

    /// Writes all of them, without a copy.
    pub(crate) async fn write_all_chunks(
        &mut self,
        mut chunks: &mut [Bytes],
    ) -> Result<(), WriteError> {
        while !chunks.is_empty() {
            let Written { chunks: whole, .. } = poll_fn(|context| {
                self.poll(context, |state, id| state.protocol.send_stream(id).write_chunks(chunks))
            })
            .await?;
            chunks = chunks.get_mut(whole..).unwrap_or_default();
        }
        Ok(())
    }

    fn poll<T>(
        &self,
        context: &Context<'_>,
        write: impl FnOnce(&mut State, StreamId) -> Result<T, quinn_proto::WriteError>,
    ) -> Poll<Result<T, WriteError>> {
        let shared = self.connection.shared();
        let mut state = shared.lock();
        if let Some(error) = state.ended() {
            return Poll::Ready(Err(error.clone().into()));
        }
        Poll::Ready(match write(&mut state, self.id) {
            Ok(written) => {
                shared.touch_locked(&mut state);
                Ok(written)
            }
            Err(quinn_proto::WriteError::Blocked) => {
                state.writers.insert(self.id, context.waker().clone());
                // The peer is told that this end is blocked.
                shared.touch_locked(&mut state);
                return Poll::Pending;
            }
            Err(quinn_proto::WriteError::Stopped(code)) => Err(WriteError::Stopped(code)),
            Err(quinn_proto::WriteError::ClosedStream) => Err(WriteError::Finished),
        })
    }

    /// Streams of a greater priority go first.
    pub(crate) fn set_priority(&self, priority: i32) -> Result<(), ClosedStream> {
        self.connection.shared().lock().protocol.send_stream(self.id).set_priority(priority)
    }

    /// Nothing more will be written.
    pub(crate) fn finish(&mut self) -> Result<(), WriteError> {
        let shared = self.connection.shared();
        let mut state = shared.lock();
        match state.protocol.send_stream(self.id).finish() {
            Ok(()) => {
                shared.touch_locked(&mut state);
                Ok(())
            }
            // Whoever wants to know asks `stopped`.
            Err(FinishError::Stopped(_)) => Ok(()),
            Err(FinishError::ClosedStream) => Err(WriteError::Finished),
        }
    }

    /// Waits until the peer has everything, or wants no more of it.
    pub(crate) async fn stopped(&self) -> Result<Option<VarInt>, ConnectionError> {
        poll_fn(|context| {
            let mut state = self.connection.shared().lock();
            match state.protocol.send_stream(self.id).stopped() {
                Err(_) => return Poll::Ready(Ok(None)),
                Ok(Some(code)) => return Poll::Ready(Ok(Some(code))),
                Ok(None) => {}
            }
            if let Some(error) = state.ended() {
                return Poll::Ready(Err(error.clone()));
            }
            state.finishers.insert(self.id, context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        let shared = self.connection.shared();
        let mut state = shared.lock();
        state.writers.remove(&self.id);
        state.finishers.remove(&self.id);
        if state.ended().is_some() {
            return;
        }
        let mut stream = state.protocol.send_stream(self.id);
        let told = match stream.finish() {
            Ok(()) => true,
            Err(FinishError::Stopped(code)) => stream.reset(code).is_ok(),
            // It was finished before.
            Err(FinishError::ClosedStream) => false,
        };
        if told {
            shared.touch_locked(&mut state);
        }
    }
}

//! The receiving half of a stream.
//!
//! Owns the one copy of a payload: out of the packets, into the reader's memory. Invariant: a
//! stream that is dropped before its end tells the peer that nobody reads it.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn_proto::{ConnectionError, StreamId, VarInt};

use super::connection::Held;

/// What [`RecvStream::read_to_end`] reads at a time, in bytes.
const PART_BYTES_MAX: usize = 4 << 10;

pub(crate) struct RecvStream {
    connection: Arc<Held>,
    id: StreamId,
    end: Option<End>,
}

/// How the stream ended.
#[derive(Clone, Copy)]
enum End {
    Finished,
    Reset(VarInt),
}

/// Why nothing more can be read.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The peer gave it up.
    #[error("the peer gave the stream up with code {0}")]
    Reset(VarInt),
    /// The connection has ended.
    #[error("the connection was lost: {0}")]
    Lost(#[from] ConnectionError),
    /// It was read to its end, or given up here.
    #[error("the stream is over")]
    Over,
    /// There is more than was bargained for.
    #[error("the stream has more than {0} bytes")]
    TooLong(usize),
}

/// Why something of a known length could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ReadExactError {
    /// The peer said its last before.
    #[error("the stream ended after {0} bytes")]
    FinishedEarly(usize),
    /// It cannot be read.
    #[error(transparent)]
    ReadError(#[from] ReadError),
}

impl RecvStream {
    pub(super) fn new(connection: Arc<Held>, id: StreamId) -> Self {
        Self { connection, id, end: None }
    }

    /// Reads some bytes, at least one; `None` at the end.
    pub(crate) async fn read(&mut self, into: &mut [u8]) -> Result<Option<usize>, ReadError> {
        poll_fn(|context| self.poll_read(context, into)).await
    }

    /// Fills `into`.
    pub(crate) async fn read_exact(&mut self, into: &mut [u8]) -> Result<(), ReadExactError> {
        let mut filled = 0;
        while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.read(rest).await? {
                Some(more) => filled += more,
                None => return Err(ReadExactError::FinishedEarly(filled)),
            }
        }
        Ok(())
    }

    /// Everything until the end, at most `bytes_max`.
    pub(crate) async fn read_to_end(&mut self, bytes_max: usize) -> Result<Vec<u8>, ReadError> {
        let mut all = Vec::new();
        let mut part = vec![0; bytes_max.clamp(1, PART_BYTES_MAX)];
        while let Some(more) = self.read(&mut part).await? {
            all.extend_from_slice(part.get(..more).unwrap_or_default());
            if all.len() > bytes_max {
                return Err(ReadError::TooLong(bytes_max));
            }
        }
        Ok(all)
    }

    fn poll_read(
        &mut self,
        context: &Context<'_>,
        into: &mut [u8],
    ) -> Poll<Result<Option<usize>, ReadError>> {
        let shared = self.connection.shared();
        let mut state = shared.lock();
        let mut filled = 0;
        if self.end.is_none() {
            let mut stream = state.protocol.recv_stream(self.id);
            let Ok(mut chunks) = stream.read(true) else {
                return Poll::Ready(Err(ReadError::Over));
            };
            while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match chunks.next(rest.len()) {
                    Ok(Some(chunk)) => filled += copy(&chunk.bytes, rest),
                    Ok(None) => self.end = Some(End::Finished),
                    Err(quinn_proto::ReadError::Reset(code)) => self.end = Some(End::Reset(code)),
                    Err(quinn_proto::ReadError::Blocked) => break,
                }
                if self.end.is_some() {
                    break;
                }
            }
            if chunks.finalize().should_transmit() {
                shared.touch_locked(&mut state);
            }
        }
        match self.end {
            _ if filled > 0 || into.is_empty() => return Poll::Ready(Ok(Some(filled))),
            Some(End::Finished) => return Poll::Ready(Ok(None)),
            Some(End::Reset(code)) => return Poll::Ready(Err(ReadError::Reset(code))),
            None => {}
        }
        if let Some(error) = state.ended() {
            return Poll::Ready(Err(error.clone().into()));
        }
        state.readers.insert(self.id, context.waker().clone());
        Poll::Pending
    }
}

/// The protocol gives at most what was asked for.
fn copy(chunk: &[u8], to: &mut [u8]) -> usize {
    match to.get_mut(..chunk.len()) {
        Some(place) => {
            place.copy_from_slice(chunk);
            chunk.len()
        }
        None => 0,
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        if self.end.is_some() {
            return;
        }
        let shared = self.connection.shared();
        let mut state = shared.lock();
        state.readers.remove(&self.id);
        if state.ended().is_some() {
            return;
        }
        // An error means that the protocol has forgotten the stream already.
        let _ = state.protocol.recv_stream(self.id).stop(VarInt::from_u32(0));
        shared.touch_locked(&mut state);
    }
}

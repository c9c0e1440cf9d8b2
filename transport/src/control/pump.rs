//! The tasks that carry a channel over a QUIC connection: two for messages, and heartbeats' own.
//!
//! Own the streams, so that a caller may drop a half-done send or receive without tearing a message
//! apart. Invariants: the end is set by the reader, after it has handed over everything it read, or
//! by this side's own closing, so a receiver that sees the end has seen all messages; the writer
//! empties its queue before it closes, within [`LINGER`].

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::{ConnectionError, VarInt};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::CONTROL_QUEUE_MESSAGES_MAX;
use super::beats;
use super::channel::ControlChannel;
use super::state::State;
use super::wire::{Item, ReadFailure, read_item, write_item};
use crate::endpoint::{close_cause, close_code};
use crate::identity::PeerIdentity;
use crate::stack::{Connection, RecvStream, SendStream, WriteError};

/// How long the last messages of a closed channel may take.
const LINGER: Duration = Duration::from_secs(2);

/// Starts the tasks on the current runtime.
pub(super) fn start(
    connection: Connection,
    sending: SendStream,
    receiving: RecvStream,
    peer: PeerIdentity,
) -> ControlChannel {
    let state = State::new(peer);
    let (outbox, queued) = mpsc::channel(CONTROL_QUEUE_MESSAGES_MAX);
    let (arrived, inbox) = mpsc::channel(CONTROL_QUEUE_MESSAGES_MAX);
    let (beats, to_write) = watch::channel(0);
    let (read, heard) = watch::channel(0);
    // One for heartbeats, now that the peer is known.
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(1));
    tokio::spawn(beats::write(connection.clone(), to_write, Arc::clone(&state)));
    tokio::spawn(beats::read(connection.clone(), read, Arc::clone(&state)));
    let reader = read_all(connection.clone(), receiving, arrived, Arc::clone(&state));
    tokio::spawn(reader);
    tokio::spawn(write_all(connection, sending, queued, Arc::clone(&state)));
    ControlChannel::new((outbox, beats), (inbox, heard), &state)
}

async fn read_all(
    connection: Connection,
    mut stream: RecvStream,
    arrived: mpsc::Sender<Item>,
    state: Arc<State>,
) {
    let forward = async {
        loop {
            match read_item(&mut stream).await {
                // Without a receiver there is nobody to read for.
                Ok(Some(item)) => arrived.send(item).await.map_err(|_| None)?,
                // The other end has said its last word but may still listen.
                Ok(None) => return Ok(()),
                Err(failure) => return Err(Some(failure)),
            }
        }
    };
    let failure = tokio::select! {
        forwarded = forward => match forwarded {
            Ok(()) => None,
            Err(None) => return,
            Err(failure) => failure,
        },
        () = arrived.closed() => return,
        _ = state.ended() => return,
    };
    match failure {
        None => {
            drop(arrived);
            let error = connection.closed().await;
            state.finish(is_orderly(&error), &close_cause(&error));
        }
        Some(ReadFailure::Lost(cause)) => {
            let orderly = connection.close_reason().is_some_and(|error| is_orderly(&error));
            state.finish(orderly, &cause);
        }
        Some(ReadFailure::Protocol(error)) => {
            let cause = error.to_string();
            connection.close(close_code::PROTOCOL, cause.as_bytes());
            state.finish(false, &cause);
        }
    }
}

async fn write_all(
    connection: Connection,
    mut stream: SendStream,
    mut queued: mpsc::Receiver<Item>,
    state: Arc<State>,
) {
    let mut written = Ok(());
    while written.is_ok() {
        let item = tokio::select! {
            item = queued.recv() => item,
            _ = state.ended() => break,
        };
        let Some(item) = item else { break };
        written = write_item(&mut stream, item).await;
    }
    match written {
        // Whoever does not take the last words in time loses them with the connection.
        Ok(()) => drop(timeout(LINGER, last_words(&mut stream, queued)).await),
        // What can still be read is the reader's; sending ends here.
        Err(error) => {
            let cause = connection.close_reason().map(|error| close_cause(&error));
            state.stop_sending(&cause.unwrap_or_else(|| error.to_string()));
            drop(queued);
        }
    }
    let end = state.ended().await;
    connection.close(close_code::DONE, end.cause.as_bytes());
}

async fn last_words(
    stream: &mut SendStream,
    mut queued: mpsc::Receiver<Item>,
) -> Result<(), WriteError> {
    queued.close();
    while let Some(item) = queued.recv().await {
        write_item(stream, item).await?;
    }
    // An error here means that the stream is finished or reset already.
    let _ = stream.finish();
    // Resolves when the other side has everything.
    let _ = stream.stopped().await;
    Ok(())
}

fn is_orderly(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::ApplicationClosed(close) => close.error_code == close_code::DONE,
        ConnectionError::LocallyClosed => true,
        _ => false,
    }
}

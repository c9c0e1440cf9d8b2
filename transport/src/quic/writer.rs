//! The writers of a link: one of messages, one of frames per lane and class.
//!
//! Own the sending streams. Invariants: a frame is written whole or the link is closed; payload
//! bytes are handed to the QUIC stack by reference, never copied here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::link::QuicLink;
use crate::error::TransportError;
use crate::frame::message::GRANTS_PER_MESSAGE_MAX;
use crate::frame::{FrameHeader, Grant, HEADER_BYTES, LinkMessage, Priority};
use crate::link::table::Departure;
use crate::ready::READY_TIMEOUT;
use crate::region::Slice;
use crate::stack::{Connection, SendStream, WriteError};

pub(super) async fn write_messages(link: Arc<QuicLink>, mut stream: SendStream) {
    let mut grants = Vec::new();
    while let Some(messages) = link.take_messages(&mut grants) {
        if messages.is_empty() && grants.is_empty() {
            link.messages_waiting.notified().await;
            continue;
        }
        match write_all(&mut stream, &mut grants, messages).await {
            Ok(()) => {}
            Err(WriteFailure::Lost) => return,
            Err(WriteFailure::Protocol(error)) => return link.fail(&error),
        }
    }
}

/// Leaves `grants` empty; its memory is used again and again.
async fn write_all(
    stream: &mut SendStream,
    grants: &mut Vec<Grant>,
    messages: VecDeque<LinkMessage>,
) -> Result<(), WriteFailure> {
    while !grants.is_empty() {
        let later = grants.split_off(grants.len().min(GRANTS_PER_MESSAGE_MAX));
        let message = LinkMessage::Grants(std::mem::replace(grants, later));
        write_message(stream, &message).await?;
        if let (true, LinkMessage::Grants(mut written)) = (grants.is_empty(), message) {
            written.clear();
            *grants = written;
        }
    }
    for message in &messages {
        write_message(stream, message).await?;
    }
    Ok(())
}

/// Where a writer's frames go.
pub(super) enum ClassStream {
    /// The stream of the greeting, for the usual class.
    Open(SendStream),
    /// Opened when the first frame of the class comes.
    Later(Connection),
}

/// Writes frames of a class on the link's bulk connection `lane`.
pub(super) async fn write_frames(
    link: Arc<QuicLink>,
    lane: usize,
    class: Priority,
    mut stream: ClassStream,
) {
    let mut sequence = 0_u32;
    while let Some(departure) = link.next_frame(lane, class).await {
        let (id, payload_len) = (departure.id, departure.payload.len() as u64);
        let written = match stream.opened(class).await {
            Ok(stream) => write_frame(&link, stream, departure, sequence).await,
            Err(lost) => Err(lost),
        };
        match written {
            Ok(()) => link.core().table.departed(id, payload_len),
            // The watcher of the connections knows why and closes the link.
            Err(WriteFailure::Lost) => return,
            Err(WriteFailure::Protocol(error)) => return link.fail(&error),
        }
        sequence = sequence.wrapping_add(1);
    }
}

impl ClassStream {
    async fn opened(&mut self, class: Priority) -> Result<&mut SendStream, WriteFailure> {
        if let Self::Later(connection) = self {
            let stream = connection.open_uni().await.map_err(|_| WriteFailure::Lost)?;
            *self = Self::Open(stream);
            if let Self::Open(stream) = self {
                // An error means that the stream is gone, which the next write finds out.
                let _ = stream.set_priority(class as i32);
            }
        }
        match self {
            Self::Open(stream) => Ok(stream),
            Self::Later(_) => Err(WriteFailure::Lost),
        }
    }
}

enum WriteFailure {
    Lost,
    Protocol(TransportError),
}

impl From<WriteError> for WriteFailure {
    fn from(_: WriteError) -> Self {
        Self::Lost
    }
}

impl From<TransportError> for WriteFailure {
    fn from(error: TransportError) -> Self {
        Self::Protocol(error)
    }
}

async fn write_message(stream: &mut SendStream, message: &LinkMessage) -> Result<(), WriteFailure> {
    let archive = message.encode()?;
    let mut out = BytesMut::with_capacity(4 + archive.len());
    // `encode` bounds the archive far below u32::MAX.
    out.extend_from_slice(&u32::try_from(archive.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&archive);
    Ok(stream.write_chunk(out.freeze()).await?)
}

async fn write_frame(
    link: &QuicLink,
    stream: &mut SendStream,
    departure: Departure,
    sequence: u32,
) -> Result<(), WriteFailure> {
    let Departure { slot, run, tag, meta, payload, .. } = departure;
    let payload = ready(payload).await?;
    let archive = meta.encode()?;
    let header = FrameHeader {
        epoch: link.epoch,
        run,
        tag,
        slot,
        // `encode` bounds the archive far below u32::MAX.
        meta_len: u32::try_from(archive.len()).unwrap_or(u32::MAX),
        payload_len: payload.len() as u64,
        sequence,
    };
    let mut front = BytesMut::with_capacity(HEADER_BYTES + archive.len());
    front.extend_from_slice(&header.encode());
    front.extend_from_slice(&archive);
    let mut chunks = [front.freeze(), Bytes::from(payload)];
    Ok(stream.write_all_chunks(&mut chunks).await?)
}

async fn ready(payload: Slice) -> Result<Slice, TransportError> {
    let Some(event) = payload.ready().cloned() else { return Ok(payload) };
    let deadline = Instant::now() + READY_TIMEOUT;
    let waited = tokio::task::spawn_blocking(move || event.wait(deadline)).await;
    match waited {
        Ok(true) => Ok(payload),
        _ => Err(TransportError::deadline("a payload to be ready")),
    }
}

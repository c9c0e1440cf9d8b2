//! The framing of the control stream.
//!
//! Owns an 8-byte head (kind u8, 3 reserved, length u32 little-endian) before every message and
//! every chunk of a blob, the greeting, and all bounds. Invariant: a length is checked against its
//! bound before a byte is allocated for it.

use bytes::Bytes;

use crate::error::TransportError;
use crate::stack::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};

/// The largest control message, in bytes.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The largest blob, in bytes.
pub const CONTROL_BLOB_BYTES_MAX: usize = 1 << 30;

/// The pieces a blob travels in, in bytes.
const CHUNK_BYTES_MAX: usize = 256 << 10;

const HEAD_BYTES: usize = 8;
const GREETING_BYTES: usize = 8;
const GREETING_MAGIC: &[u8; 4] = b"DMC1";
const PROTOCOL_MIN: u16 = 1;
const PROTOCOL_MAX: u16 = 1;

const MESSAGE: u8 = 1;
const BLOB: u8 = 2;
const CHUNK: u8 = 3;

/// What a channel's queues carry.
pub(super) enum Item {
    Message(Vec<u8>),
    /// A whole blob: on its way out, or between two ends of one process.
    Blob(Bytes),
    /// A blob of so many bytes begins; its chunks follow.
    BlobStart(usize),
    BlobChunk(Vec<u8>),
}

pub(super) async fn write_item(stream: &mut SendStream, item: Item) -> Result<(), WriteError> {
    match item {
        Item::Message(message) => write_part(stream, MESSAGE, message.into()).await,
        Item::Blob(blob) => {
            stream.write_all(&head(BLOB, blob.len())).await?;
            let mut rest = blob;
            while !rest.is_empty() {
                let chunk = rest.split_to(rest.len().min(CHUNK_BYTES_MAX));
                write_part(stream, CHUNK, chunk).await?;
            }
            Ok(())
        }
        Item::BlobStart(len) => stream.write_all(&head(BLOB, len)).await,
        Item::BlobChunk(chunk) => write_part(stream, CHUNK, chunk.into()).await,
    }
}

/// The next item; `None` at the orderly end of the stream.
pub(super) async fn read_item(stream: &mut RecvStream) -> Result<Option<Item>, ReadFailure> {
    let mut head = [0; HEAD_BYTES];
    let Some(first) = stream.read(&mut head).await? else { return Ok(None) };
    if let Some(rest) = head.get_mut(first..) {
        stream.read_exact(rest).await?;
    }
    let [kind, 0, 0, 0, length @ ..] = head else {
        return Err(malformed("reserved bytes of a control head"));
    };
    let len = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    match kind {
        MESSAGE => {
            let message = read_part(stream, "control message", len, CONTROL_MESSAGE_BYTES_MAX);
            Ok(Some(Item::Message(message.await?)))
        }
        BLOB => {
            check_len("control blob", len, CONTROL_BLOB_BYTES_MAX)?;
            Ok(Some(Item::BlobStart(len)))
        }
        CHUNK => {
            let chunk = read_part(stream, "chunk of a control blob", len, CHUNK_BYTES_MAX);
            Ok(Some(Item::BlobChunk(chunk.await?)))
        }
        other => Err(malformed(&format!("control head: kind {other}"))),
    }
}

/// The first bytes of either side, so that both know the other has accepted it.
pub(super) async fn greet(stream: &mut SendStream) -> Result<(), WriteError> {
    let mut greeting = [0; GREETING_BYTES];
    greeting[..4].copy_from_slice(GREETING_MAGIC);
    greeting[4..6].copy_from_slice(&PROTOCOL_MIN.to_le_bytes());
    greeting[6..8].copy_from_slice(&PROTOCOL_MAX.to_le_bytes());
    stream.write_all(&greeting).await
}

/// Reads and checks the other side's greeting.
pub(super) async fn read_greeting(stream: &mut RecvStream) -> Result<(), ReadFailure> {
    let mut greeting = [0; GREETING_BYTES];
    stream.read_exact(&mut greeting).await?;
    let [m0, m1, m2, m3, min0, min1, max0, max1] = greeting;
    if [m0, m1, m2, m3] != *GREETING_MAGIC {
        return Err(malformed("greeting of a control channel"));
    }
    let (min, max) = (u16::from_le_bytes([min0, min1]), u16::from_le_bytes([max0, max1]));
    if min > PROTOCOL_MAX || max < PROTOCOL_MIN {
        return Err(ReadFailure::Protocol(TransportError::VersionMismatch {
            ours: format!("control protocol {PROTOCOL_MIN}-{PROTOCOL_MAX}"),
            theirs: format!("control protocol {min}-{max}"),
        }));
    }
    Ok(())
}

/// Why nothing more can be read.
pub(super) enum ReadFailure {
    /// The connection is gone.
    Lost(String),
    /// The peer broke the protocol.
    Protocol(TransportError),
}

impl From<ReadError> for ReadFailure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Lost(error) => Self::Lost(crate::endpoint::close_cause(&error)),
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<ReadExactError> for ReadFailure {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::ReadError(error) => error.into(),
            ReadExactError::FinishedEarly(_) => malformed("end in the middle of a message"),
        }
    }
}

pub(super) fn check_len(
    what: &'static str,
    len: usize,
    limit: usize,
) -> Result<(), TransportError> {
    if len > limit {
        let (bytes, limit) = (len as u64, limit as u64);
        return Err(TransportError::FrameTooLarge { what, bytes, limit });
    }
    Ok(())
}

async fn write_part(stream: &mut SendStream, kind: u8, body: Bytes) -> Result<(), WriteError> {
    let head = Bytes::copy_from_slice(&head(kind, body.len()));
    stream.write_all_chunks(&mut [head, body]).await
}

fn head(kind: u8, len: usize) -> [u8; HEAD_BYTES] {
    // Every length was checked against its bound, which is far below u32::MAX.
    let [a, b, c, d] = u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    [kind, 0, 0, 0, a, b, c, d]
}

async fn read_part(
    stream: &mut RecvStream,
    what: &'static str,
    len: usize,
    limit: usize,
) -> Result<Vec<u8>, ReadFailure> {
    check_len(what, len, limit)?;
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

impl From<TransportError> for ReadFailure {
    fn from(error: TransportError) -> Self {
        Self::Protocol(error)
    }
}

fn malformed(what: &str) -> ReadFailure {
    ReadFailure::Protocol(TransportError::malformed(what))
}

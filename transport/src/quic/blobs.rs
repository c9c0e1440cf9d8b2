//! Blobs over QUIC: a connection to a peer's first bulk port that belongs to no mesh.
//!
//! Owns both ends of its one stream: requests of at most [`HELLO_BYTES_MAX`] bytes one way, answers
//! and parts the other. Only nodes and workers of the cluster are served, at most
//! [`BLOB_CALLERS_MAX`] at a time, of whose parts [`BLOB_READS_MAX`] are read at a time.
//!
//! Invariants: a part is read only when it was asked for, so a slow caller holds one part; before
//! each part the server lets frames of meshes go first ([`YIELD_MAX`] at most, so that blobs get
//! on even beside a run that never pauses); a caller allocates no more than it asked for.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use quinn_proto::VarInt;
use tokio::sync::Semaphore;
use tokio::time::{timeout, timeout_at};

use super::greeting::{LaneStream, read_hello, write_hello};
use crate::blobs::{
    BLOB_CALLERS_MAX, BLOB_NAME_BYTES_MAX, BLOB_PART_BYTES_MAX, BLOB_READS_MAX, BlobError,
    BlobPart, BlobStore,
};
use crate::error::TransportError;
use crate::mesh::Mesh;
use crate::stack::{SendStream, WriteError};

#[cfg(doc)]
use crate::frame::hello::HELLO_BYTES_MAX;

/// How long a caller may think between two requests.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a part may take to leave.
const PART_TIMEOUT: Duration = Duration::from_secs(60);

/// Between looks whether frames still travel.
const YIELD_PAUSE: Duration = Duration::from_millis(2);

/// Longest wait of one part for frames.
const YIELD_MAX: Duration = Duration::from_millis(20);

/// Bytes of a request before the name.
const REQUEST_HEAD_BYTES: usize = 12;

const FOUND: u8 = 0;
const REFUSED: u8 = 1;

/// The meshes of a fabric.
pub(super) type Meshes = Arc<Mutex<Vec<Weak<Mesh>>>>;

/// The serving side of one fabric.
pub(super) struct BlobServer {
    store: Mutex<Option<Arc<dyn BlobStore>>>,
    callers: Semaphore,
    reads: Semaphore,
    meshes: Meshes,
}

impl BlobServer {
    pub(super) fn new(meshes: Meshes) -> Self {
        let (callers, reads) = (Semaphore::new(BLOB_CALLERS_MAX), Semaphore::new(BLOB_READS_MAX));
        Self { store: Mutex::default(), callers, reads, meshes }
    }

    /// Serves from `store` from now on.
    pub(super) fn offer(&self, store: Arc<dyn BlobStore>) {
        *self.store.lock().unwrap_or_else(PoisonError::into_inner) = Some(store);
    }

    /// Answers a welcomed caller until it goes.
    pub(super) async fn serve(&self, mut stream: LaneStream) -> Result<(), TransportError> {
        let lost = |error: &dyn std::fmt::Display| {
            TransportError::closed(format!("connection of a caller for blobs: {error}"))
        };
        let place = self.callers.try_acquire();
        loop {
            let request = timeout(REQUEST_TIMEOUT, read_hello(&mut stream.receiving)).await;
            // A caller that has what it wants closes.
            let Ok(Ok(request)) = request else { return Ok(()) };
            let (name, offset, len) = decode(&request)?;
            self.let_frames_go_first().await;
            let part = match &place {
                Ok(_) => self.read(name, offset, len).await,
                Err(_) => Err("it serves others already; ask again".into()),
            };
            let sent = timeout(PART_TIMEOUT, answer(&mut stream.sending, part)).await;
            let sent = sent.map_err(|_| TransportError::deadline("a caller to take a part"))?;
            sent.map_err(|error| lost(&error))?;
        }
    }

    async fn read(&self, name: String, offset: u64, len: usize) -> Result<BlobPart, String> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let store = store.ok_or("nothing is offered here")?;
        let _turn = self.reads.acquire().await.map_err(|error| error.to_string())?;
        let reading = tokio::task::spawn_blocking(move || store.read(&name, offset, len));
        let part = reading.await.map_err(|error| format!("reading it failed: {error}"))??;
        match part.bytes.len() > len {
            true => Err("it was read beyond what was asked for".into()),
            false => Ok(part),
        }
    }

    async fn let_frames_go_first(&self) {
        let until = Instant::now() + YIELD_MAX;
        let mut before = self.bytes_moved();
        while Instant::now() < until {
            tokio::time::sleep(YIELD_PAUSE).await;
            let now = self.bytes_moved();
            if now == before {
                return;
            }
            before = now;
        }
    }

    fn bytes_moved(&self) -> u64 {
        let meshes = self.meshes.lock().unwrap_or_else(PoisonError::into_inner);
        meshes.iter().filter_map(Weak::upgrade).map(|mesh| mesh.bytes_moved()).sum()
    }
}

/// The asking side.
pub struct BlobReader {
    peer: String,
    stream: LaneStream,
}

impl BlobReader {
    pub(super) fn new(peer: String, stream: LaneStream, window_bytes: u32) -> Self {
        stream.connection.set_receive_window(VarInt::from_u32(window_bytes));
        Self { peer, stream }
    }

    /// Who is asked.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// At most `len` bytes of a blob, from `offset` on.
    ///
    /// # Errors
    /// [`BlobError::Refused`] in the peer's words; the reader can go on. Otherwise the peer is
    /// lost, or too slow for `deadline`, or broke the protocol, and the reader is of no more use.
    pub async fn read(
        &mut self,
        name: &str,
        offset: u64,
        len: usize,
        deadline: Instant,
    ) -> Result<BlobPart, BlobError> {
        let len = len.min(BLOB_PART_BYTES_MAX);
        let request = encode(name, offset, len)?;
        let part = timeout_at(deadline.into(), self.exchange(&request, len)).await;
        let what = || format!("{name} from {}", self.peer);
        match part.map_err(|_| TransportError::deadline(what()))?? {
            Ok(part) => Ok(part),
            Err(cause) => {
                Err(BlobError::Refused { peer: self.peer.clone(), name: name.into(), cause })
            }
        }
    }

    async fn exchange(
        &mut self,
        request: &[u8],
        len: usize,
    ) -> Result<Result<BlobPart, String>, TransportError> {
        let LaneStream { sending, receiving, .. } = &mut self.stream;
        let lost = |error: &dyn std::fmt::Display| {
            TransportError::closed(format!("connection to {}: {error}", self.peer))
        };
        write_hello(sending, request).await.map_err(|error| lost(&error))?;
        let head = read_hello(receiving).await?;
        let (total, found) = match head.split_first() {
            Some((&FOUND, rest)) => split(
                rest.try_into()
                    .map_err(|_| TransportError::malformed("answer to a request for a blob"))?,
            ),
            Some((&REFUSED, cause)) => return Ok(Err(String::from_utf8_lossy(cause).into_owned())),
            _ => return Err(TransportError::malformed("answer to a request for a blob")),
        };
        if found > len {
            let (bytes, limit) = (found as u64, len as u64);
            return Err(TransportError::FrameTooLarge { what: "part of a blob", bytes, limit });
        }
        let mut bytes = vec![0; found];
        receiving.read_exact(&mut bytes).await.map_err(|error| lost(&error))?;
        Ok(Ok(BlobPart { total, bytes }))
    }
}

impl Drop for BlobReader {
    fn drop(&mut self) {
        self.stream.connection.close(crate::endpoint::close_code::DONE, b"no more is wanted");
    }
}

async fn answer(
    sending: &mut SendStream,
    part: Result<BlobPart, String>,
) -> Result<(), WriteError> {
    match part {
        Ok(part) => {
            let mut head = vec![FOUND];
            head.extend_from_slice(&part.total.to_le_bytes());
            // At most `BLOB_PART_BYTES_MAX`.
            let len = u32::try_from(part.bytes.len()).unwrap_or(u32::MAX);
            head.extend_from_slice(&len.to_le_bytes());
            write_hello(sending, &head).await?;
            sending.write_chunk(part.bytes.into()).await
        }
        Err(cause) => {
            let mut head = vec![REFUSED];
            head.extend(cause.bytes().take(BLOB_NAME_BYTES_MAX));
            write_hello(sending, &head).await
        }
    }
}

fn encode(name: &str, offset: u64, len: usize) -> Result<Vec<u8>, TransportError> {
    if name.len() > BLOB_NAME_BYTES_MAX {
        let (bytes, limit) = (name.len() as u64, BLOB_NAME_BYTES_MAX as u64);
        return Err(TransportError::FrameTooLarge { what: "name of a blob", bytes, limit });
    }
    let mut request = offset.to_le_bytes().to_vec();
    request.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    request.extend_from_slice(name.as_bytes());
    Ok(request)
}

/// Name, offset and length of a request.
fn decode(request: &[u8]) -> Result<(String, u64, usize), TransportError> {
    let malformed = || TransportError::malformed("request for a blob");
    let (head, name) = request.split_first_chunk::<REQUEST_HEAD_BYTES>().ok_or_else(malformed)?;
    let name = std::str::from_utf8(name).map_err(|_| malformed())?;
    let (offset, len) = split(head);
    if name.len() > BLOB_NAME_BYTES_MAX || len > BLOB_PART_BYTES_MAX {
        return Err(malformed());
    }
    Ok((name.to_owned(), offset, len))
}

/// A number of eight bytes and one of four.
fn split(numbers: &[u8; REQUEST_HEAD_BYTES]) -> (u64, usize) {
    let [a, b, c, d, e, f, g, h, len @ ..] = *numbers;
    let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]), len)
}

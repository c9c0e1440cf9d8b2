//! Carries requests of a thread that may block to the async fabric, and the parts back.
//!
//! Owns the open ways to peers. One request at a time: whoever asks waits for its part. Invariant:
//! every request is answered, at the latest when [`STALL_DEADLINE`] has passed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ditmesh_transport::blobs::{BLOB_PART_BYTES_MAX, BlobError, BlobPart};
use ditmesh_transport::fabric::{Fabric, PeerAddress};
use ditmesh_transport::quic::BlobReader;
use tokio::sync::mpsc;

/// Longest wait for one part, and for a peer to be reached.
pub(super) const STALL_DEADLINE: Duration = Duration::from_secs(20);

/// What the answer may take beyond that.
const MARGIN: Duration = Duration::from_secs(5);

/// Requests that wait; each asker has one.
const REQUESTS_MAX: usize = 16;

struct Request {
    /// Which peer, by its place.
    peer: usize,
    name: String,
    offset: u64,
    len: usize,
    answer: SyncSender<Result<BlobPart, String>>,
}

/// A way from blocking code to peers.
#[derive(Clone, Debug)]
pub(super) struct Porter(mpsc::Sender<Request>);

impl Porter {
    /// Starts carrying; it ends with its last clone.
    pub(super) fn start(
        peers: Vec<PeerAddress>,
        fabric: Arc<dyn Fabric>,
        runtime: &tokio::runtime::Handle,
    ) -> Self {
        let (requests, mut waiting) = mpsc::channel::<Request>(REQUESTS_MAX);
        runtime.spawn(async move {
            let mut open: BTreeMap<usize, BlobReader> = BTreeMap::new();
            while let Some(request) = waiting.recv().await {
                let part = carry(&request, &peers, fabric.as_ref(), &mut open).await;
                // Whoever asked may have given up.
                let _ = request.answer.try_send(part);
            }
        });
        Self(requests)
    }

    /// At most `len` bytes of a peer's blob, from `offset` on; fewer where a part holds no more.
    /// Blocks; not for async code.
    ///
    /// # Errors
    /// In words.
    pub(super) fn ask(
        &self,
        peer: usize,
        name: &str,
        offset: u64,
        len: u64,
    ) -> Result<BlobPart, String> {
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(BLOB_PART_BYTES_MAX);
        let (answer, answered) = sync_channel(1);
        let request = Request { peer, name: name.to_owned(), offset, len, answer };
        if self.0.blocking_send(request).is_err() {
            return Err("this worker is ending".into());
        }
        wait(&answered)
    }
}

fn wait(answered: &Receiver<Result<BlobPart, String>>) -> Result<BlobPart, String> {
    let patience = STALL_DEADLINE * REQUESTS_MAX as u32 + MARGIN;
    match answered.recv_timeout(patience) {
        Ok(part) => part,
        Err(RecvTimeoutError::Timeout) => Err(format!("no answer in {} s", patience.as_secs())),
        Err(RecvTimeoutError::Disconnected) => Err("this worker is ending".into()),
    }
}

async fn carry(
    request: &Request,
    peers: &[PeerAddress],
    fabric: &dyn Fabric,
    open: &mut BTreeMap<usize, BlobReader>,
) -> Result<BlobPart, String> {
    let deadline = Instant::now() + STALL_DEADLINE;
    let Request { peer, name, offset, len, .. } = request;
    let mut reader = match open.remove(peer) {
        Some(reader) => reader,
        None => {
            let address = peers.get(*peer).ok_or("there is no such peer")?.clone();
            fabric.open_blobs(address, deadline).await.map_err(|error| error.to_string())?
        }
    };
    let part = reader.read(name, *offset, *len, deadline).await;
    match &part {
        // One that was lost is dialled anew the next time.
        Err(BlobError::Transport(_)) => {}
        Ok(_) | Err(BlobError::Refused { .. }) => drop(open.insert(*peer, reader)),
    }
    part.map_err(|error| error.to_string())
}

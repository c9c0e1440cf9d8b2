//! Fetches what this host lacks of one model: its configurations at once, each tensor when it is
//! read.
//!
//! Owns whom to ask and in which order, and the proof of what came. The reference says what is
//! right; a peer that is lost, lacks it or gives something else is passed over for the next one,
//! and what is there already is not asked for again. Blocking: called on compute threads, never in
//! async code.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use ditmesh_model::checkpoint::{HEADER_SUFFIX, TensorSource};
use ditmesh_model::spec::ModelId;
use ditmesh_transport::fabric::{Fabric, PeerAddress};

use super::WeightsError;
use super::cache::{Found, Partial, TensorCache, failed};
use super::catalogue::{CATALOGUE_BYTES_MAX, Catalogue, CatalogueFile, hex};
use super::names::BlobName;
use super::porter::Porter;

/// How often all peers are asked for one thing: one that was away may be back.
const ROUNDS_MAX: usize = 3;

/// Between two rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(200);

/// How long a peer that gave nothing is asked last.
const AWAY: Duration = Duration::from_secs(30);

/// Fetches one model.
#[derive(Debug)]
pub(crate) struct Fetcher {
    model_id: u64,
    /// The members of the newest mesh.
    way: Mutex<Arc<Way>>,
    root: PathBuf,
    cache: TensorCache,
    fetched_bytes: AtomicU64,
}

/// Whom to ask.
#[derive(Debug)]
struct Way {
    /// By place, as the porter knows them: the donors in order; the reference behind them.
    donors: Vec<String>,
    porter: Porter,
    /// Until when each is asked last.
    away: Mutex<Vec<Option<Instant>>>,
}

/// The members of a mesh as a fetcher asks them.
pub(super) struct Peers {
    /// Whose word on what is right counts.
    pub(super) reference: PeerAddress,
    /// Who may have bytes, in this order.
    pub(super) donors: Vec<PeerAddress>,
}

impl Fetcher {
    /// For the model `model_id`.
    ///
    /// # Errors
    /// [`WeightsError::Cache`], when there is nowhere to keep anything.
    pub(super) fn new(
        model_id: u64,
        peers: Peers,
        fabric: Arc<dyn Fabric>,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, WeightsError> {
        let root = ditmesh_model::cache::root();
        let root = root.map_err(|error| failed(Path::new("cache"), &error))?;
        Self::below(&root, model_id, peers, fabric, runtime)
    }

    /// The same with a folder for caches of its own.
    pub(super) fn below(
        root: &Path,
        model_id: u64,
        peers: Peers,
        fabric: Arc<dyn Fabric>,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, WeightsError> {
        let (root, cache) = (root.to_owned(), TensorCache::at(root)?);
        let way = Mutex::new(Arc::new(Way::to(peers, fabric, runtime)));
        Ok(Self { model_id, way, root, cache, fetched_bytes: AtomicU64::new(0) })
    }

    /// The model it fetches.
    pub(super) fn model(&self) -> u64 {
        self.model_id
    }

    /// Asks the members of a newer mesh from now on.
    pub(super) fn renew(
        &self,
        peers: Peers,
        fabric: Arc<dyn Fabric>,
        runtime: &tokio::runtime::Handle,
    ) {
        let way = Arc::new(Way::to(peers, fabric, runtime));
        *self.way.lock().unwrap_or_else(PoisonError::into_inner) = way;
    }

    fn way(&self) -> Arc<Way> {
        Arc::clone(&self.way.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Fetches configurations, tokenizers and headers; the folder they are in.
    ///
    /// # Errors
    /// [`WeightsError`].
    pub(super) fn prepare(&self) -> Result<PathBuf, WeightsError> {
        let list = self.ask_reference(&BlobName::Catalogue, CATALOGUE_BYTES_MAX)?;
        let catalogue = Catalogue::parse(&list, self.model_id)?;
        let folder = self.root.join(format!("ditmesh/fetched/{:016x}", self.model_id));
        for file in &catalogue.files {
            let mut path = folder.join(&file.path).into_os_string();
            if file.has_weights() {
                path.push(HEADER_SUFFIX);
            }
            self.front(file, Path::new(&path))?;
        }
        tracing::info!(
            model = format!("{:016x}", self.model_id),
            files = catalogue.files.len(),
            folder = %folder.display(),
            "a model that is not on this host comes from peers"
        );
        Ok(folder)
    }

    /// Brings what is fetched of a file at once to `path`, unless it is there.
    fn front(&self, file: &CatalogueFile, path: &Path) -> Result<(), WeightsError> {
        let is_right = |bytes: &[u8]| hex(digest(&SHA256, bytes).as_ref()) == file.front_digest;
        if fs::read(path).is_ok_and(|bytes| is_right(&bytes)) {
            return Ok(());
        }
        let name = BlobName::File(file.path.clone());
        let bytes = self.ask_reference(&name, file.front_bytes)?;
        if !is_right(&bytes) {
            let peers = "the coordinator's node".to_owned();
            return Err(WeightsError::Damaged { what: file.path.clone(), peers });
        }
        let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
            let partial = path.with_extension(format!("partial-{}", std::process::id()));
            fs::write(&partial, &bytes)?;
            fs::rename(&partial, path)
        });
        written.map_err(|error| failed(path, &error))
    }

    /// The first `limit` bytes of a blob of the reference.
    fn ask_reference(&self, name: &BlobName, limit: u64) -> Result<Vec<u8>, WeightsError> {
        let (text, way) = (name.text(self.model_id), self.way());
        let mut bytes = Vec::new();
        let mut tried = String::new();
        let mut rounds = 0;
        while rounds < ROUNDS_MAX {
            let at = bytes.len() as u64;
            match way.porter.ask(way.donors.len(), &text, at, limit - at) {
                Ok(part) => {
                    let total = part.total.min(limit);
                    bytes.extend_from_slice(&part.bytes);
                    self.fetched_bytes.fetch_add(part.bytes.len() as u64, Ordering::Relaxed);
                    if bytes.len() as u64 >= total || part.bytes.is_empty() {
                        bytes.truncate(usize::try_from(total).unwrap_or(usize::MAX));
                        return Ok(bytes);
                    }
                }
                Err(cause) => {
                    tried = cause;
                    rounds += 1;
                    std::thread::sleep(ROUND_PAUSE);
                }
            }
        }
        Err(WeightsError::Unreachable { what: text, tried })
    }

    fn tensor(&self, file: &Path, range: Range<usize>) -> Result<PathBuf, WeightsError> {
        let path = file.to_string_lossy().into_owned();
        let range = range.start as u64..range.end as u64;
        let name = BlobName::Digest(path.clone(), range.clone());
        let expected = self.ask_reference(&name, SHA256_OUTPUT_LEN as u64)?;
        let expected = hex(&expected);
        let blob = BlobName::File(path).text(self.model_id);
        let (mut tried, mut damaged, way) = (Vec::new(), Vec::new(), self.way());
        for round in 0..ROUNDS_MAX {
            if round > 0 {
                std::thread::sleep(ROUND_PAUSE);
            }
            for place in way.order() {
                let Some(peer) = way.donors.get(place) else { continue };
                if damaged.contains(peer) {
                    continue;
                }
                let bytes = range.end - range.start;
                let mut partial = match self.cache.find(&expected, bytes)? {
                    Found::Whole(path) => return Ok(path),
                    Found::Partial(partial) => partial,
                };
                let whose =
                    if partial.bytes == 0 { peer.clone() } else { format!("{peer} and others") };
                if let Err(cause) = self.fill(&way, &mut partial, place, &blob, &range)? {
                    tracing::info!(blob, peer, cause, round, "the next peer is asked");
                    way.set_away(place);
                    tried.push(format!("{peer}: {cause}"));
                    continue;
                }
                match self.cache.finish(partial, &expected)? {
                    Some(path) => return Ok(path),
                    None => {
                        tracing::warn!(blob, from = whose, "what came is damaged and refused");
                        if whose == *peer {
                            damaged.push(peer.clone());
                        }
                    }
                }
            }
        }
        if !damaged.is_empty() {
            return Err(WeightsError::Damaged { what: blob, peers: damaged.join(", ") });
        }
        let tried = tried.split_off(tried.len().saturating_sub(way.donors.len())).join("; ");
        Err(WeightsError::Unreachable { what: blob, tried })
    }

    /// Asks one peer for the rest of a tensor; in words why it did not give all of it. What it gave
    /// stays.
    fn fill(
        &self,
        way: &Way,
        partial: &mut Partial,
        place: usize,
        blob: &str,
        range: &Range<u64>,
    ) -> Result<Result<(), String>, WeightsError> {
        while partial.bytes < range.end - range.start {
            let at = range.start + partial.bytes;
            let part = match way.porter.ask(place, blob, at, range.end - at) {
                Ok(part) if part.bytes.is_empty() => {
                    return Ok(Err("its file is too short".into()));
                }
                Ok(part) => part,
                Err(cause) => return Ok(Err(cause)),
            };
            partial.add(&part.bytes)?;
            self.fetched_bytes.fetch_add(part.bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(Ok(()))
    }
}

impl Way {
    fn to(peers: Peers, fabric: Arc<dyn Fabric>, runtime: &tokio::runtime::Handle) -> Self {
        let Peers { reference, donors: mut addresses } = peers;
        let donors: Vec<_> = addresses.iter().map(|peer| format!("node {}", peer.name)).collect();
        addresses.push(reference);
        let away = Mutex::new(vec![None; donors.len()]);
        Self { donors, porter: Porter::start(addresses, fabric, runtime), away }
    }

    /// Places of all donors: those that gave nothing lately last.
    fn order(&self) -> Vec<usize> {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let mut order: Vec<usize> = (0..self.donors.len()).collect();
        order.sort_by_key(|place| away.get(*place).is_some_and(|until| *until > Some(now)));
        order
    }

    fn set_away(&self, place: usize) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = away.get_mut(place) {
            *until = Some(Instant::now() + AWAY);
        }
    }
}

impl TensorSource for Fetcher {
    fn model_id(&self) -> ModelId {
        ModelId(self.model_id)
    }

    fn bring(&self, file: &Path, range: Range<usize>) -> Result<PathBuf, String> {
        self.tensor(file, range).map_err(|error| error.to_string())
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        let bytes = self.fetched_bytes.load(Ordering::Relaxed);
        tracing::info!(model = format!("{:016x}", self.model_id), bytes, "came from peers");
    }
}

//! What a process offers of a model's folder to peers that lack it.
//!
//! Invariants: only files of the model's list are read, never another path; the list and the
//! digests are taken from the files themselves, when somebody first asks; nothing is offered under
//! another model's name.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use ditmesh_transport::blobs::{BlobPart, BlobStore};

use super::catalogue::{Catalogue, CatalogueFile};
use super::names::BlobName;

/// Digests that are remembered; a model has some hundred tensors.
const DIGESTS_MAX: usize = 65_536;

/// Bytes that are digested at a time.
const DIGEST_STEP_BYTES: usize = 1 << 20;

/// A model's folder, for peers.
pub(crate) struct ModelStore {
    folder: PathBuf,
    model_id: u64,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// With its text.
    catalogue: Option<(Catalogue, Vec<u8>)>,
    digests: HashMap<(String, Range<u64>), Vec<u8>>,
}

impl ModelStore {
    /// Offers the model `model_id` in `folder`.
    pub(crate) fn new(folder: PathBuf, model_id: u64) -> Self {
        Self { folder, model_id, known: Mutex::default() }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses the list of files, which is made when it is first needed.
    fn with_catalogue<T>(&self, use_it: impl FnOnce(&Catalogue, &[u8]) -> T) -> Result<T, String> {
        let mut known = self.known();
        if known.catalogue.is_none() {
            let failed = |error: io::Error| format!("{}: {error}", self.folder.display());
            let made = Catalogue::of(&self.folder, self.model_id).map_err(failed)?;
            let text = serde_json::to_vec(&made).map_err(|error| error.to_string())?;
            known.catalogue = Some((made, text));
        }
        let (catalogue, text) = known.catalogue.as_ref().ok_or("no list of files")?;
        Ok(use_it(catalogue, text))
    }

    fn open(&self, path: &str) -> Result<(File, CatalogueFile), String> {
        let found = self.with_catalogue(|catalogue, _| {
            catalogue.files.iter().find(|file| file.path == path).cloned()
        })?;
        let listed = found.ok_or_else(|| format!("the model has no file {path}"))?;
        let file = File::open(self.folder.join(path)).map_err(|error| error.to_string())?;
        Ok((file, listed))
    }

    fn digest(&self, path: String, range: Range<u64>) -> Result<Vec<u8>, String> {
        let key = (path, range);
        if let Some(found) = self.known().digests.get(&key) {
            return Ok(found.clone());
        }
        let (file, listed) = self.open(&key.0)?;
        let range = &key.1;
        if range.start > range.end || range.end > listed.bytes {
            return Err(format!("{} has no bytes {}-{}", key.0, range.start, range.end));
        }
        let mut context = Context::new(&SHA256);
        let mut step = vec![0; DIGEST_STEP_BYTES];
        let mut at = range.start;
        while at < range.end {
            let wanted = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(step.len());
            let piece = step.get_mut(..wanted).unwrap_or_default();
            file.read_exact_at(piece, at).map_err(|error| error.to_string())?;
            context.update(piece);
            at += wanted as u64;
        }
        let digest = context.finish().as_ref().to_vec();
        let mut known = self.known();
        if known.digests.len() < DIGESTS_MAX {
            known.digests.insert(key, digest.clone());
        }
        Ok(digest)
    }
}

impl BlobStore for ModelStore {
    fn read(&self, name: &str, offset: u64, len: usize) -> Result<BlobPart, String> {
        let (model, blob) = BlobName::parse(name).ok_or("there is no such name")?;
        if model != self.model_id {
            return Err(format!("model {:016x} is here, not that one", self.model_id));
        }
        match blob {
            BlobName::Catalogue => self.with_catalogue(|_, text| part(text, offset, len)),
            BlobName::Digest(path, range) => Ok(part(&self.digest(path, range)?, offset, len)),
            BlobName::File(path) => {
                let (file, listed) = self.open(&path)?;
                let rest = listed.bytes.saturating_sub(offset);
                let mut bytes = vec![0; usize::try_from(rest).unwrap_or(usize::MAX).min(len)];
                file.read_exact_at(&mut bytes, offset).map_err(|error| error.to_string())?;
                Ok(BlobPart { total: listed.bytes, bytes })
            }
        }
    }
}

/// A part of what is in memory.
fn part(whole: &[u8], offset: u64, len: usize) -> BlobPart {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(whole.len());
    let end = start.saturating_add(len).min(whole.len());
    let bytes = whole.get(start..end).unwrap_or_default().to_vec();
    BlobPart { total: whole.len() as u64, bytes }
}

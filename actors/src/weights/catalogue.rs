//! The list of a model's files, as the coordinator's node has them.
//!
//! Owns what belongs to a model (the files that diffusers writes, in its folder and one level
//! below) and the rules for a list that comes from elsewhere. Invariant: every path of a checked
//! list stays below the model's folder.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path};

use aws_lc_rs::digest::{SHA256, digest};
use ditmesh_model::checkpoint::header_bytes;
use serde::{Deserialize, Serialize};

use super::WeightsError;

/// Files of one model, at most.
const FILES_MAX: usize = 4096;

/// Bytes of a file that is fetched whole, at most: configurations, tokenizers, indexes.
const WHOLE_BYTES_MAX: u64 = 64 << 20;

/// Bytes of a list that is read, at most.
pub(super) const CATALOGUE_BYTES_MAX: u64 = 4 << 20;

/// Extensions of files that are fetched whole.
const WHOLE: [&str; 3] = ["json", "model", "txt"];

/// The extension of weight files.
const WEIGHTS: &str = "safetensors";

/// A model's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Catalogue {
    /// Digest that names the model.
    pub(super) model_id: u64,
    pub(super) files: Vec<CatalogueFile>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CatalogueFile {
    /// Relative to the model's folder, with `/`.
    pub(super) path: String,
    /// Length of the whole file.
    pub(super) bytes: u64,
    /// What is fetched of it at once: all, or a weight file's header.
    pub(super) front_bytes: u64,
    /// SHA-256 of that, in hexadecimal.
    pub(super) front_digest: String,
}

impl Catalogue {
    /// Lists `folder`; reads small files and the headers of large ones.
    pub(super) fn of(folder: &Path, model_id: u64) -> io::Result<Self> {
        let mut files = Vec::new();
        list(folder, "", &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { model_id, files })
    }

    /// Reads a list that a peer sent and checks it.
    pub(super) fn parse(bytes: &[u8], model_id: u64) -> Result<Self, WeightsError> {
        let catalogue: Self = serde_json::from_slice(bytes)
            .map_err(|error| WeightsError::Catalogue(error.to_string()))?;
        let bad = |cause: String| Err(WeightsError::Catalogue(cause));
        if catalogue.model_id != model_id {
            return bad(format!("it is of model {:x}, not {model_id:x}", catalogue.model_id));
        }
        if catalogue.files.len() > FILES_MAX {
            return bad(format!("{} files, at most {FILES_MAX}", catalogue.files.len()));
        }
        for file in &catalogue.files {
            let plain = Path::new(&file.path)
                .components()
                .all(|component| matches!(component, Component::Normal(_)));
            if !plain || file.path.is_empty() || file.path.split('/').count() > 2 {
                return bad(format!("{:?} is no path of a model's file", file.path));
            }
            if file.front_bytes > WHOLE_BYTES_MAX || file.front_bytes > file.bytes {
                return bad(format!("{} bytes of {} at once", file.front_bytes, file.path));
            }
        }
        Ok(catalogue)
    }
}

impl CatalogueFile {
    /// Whether its tensors are fetched one by one.
    pub(super) fn has_weights(&self) -> bool {
        extension(&self.path) == WEIGHTS
    }
}

fn list(folder: &Path, prefix: &str, files: &mut Vec<CatalogueFile>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Follows links: caches of models are full of them.
        let meta = fs::metadata(entry.path())?;
        if meta.is_dir() && prefix.is_empty() {
            list(&entry.path(), &format!("{name}/"), files)?;
        } else if meta.is_file() && files.len() < FILES_MAX {
            let (path, bytes) = (format!("{prefix}{name}"), meta.len());
            if let Some(front) = front(&entry.path(), &path, bytes)? {
                let front_digest = hex(digest(&SHA256, &front).as_ref());
                let front_bytes = front.len() as u64;
                files.push(CatalogueFile { path, bytes, front_bytes, front_digest });
            }
        }
    }
    Ok(())
}

/// What of a file is fetched at once; `None` when it does not belong to a model.
fn front(file: &Path, path: &str, bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let wanted = match extension(path) {
        WEIGHTS => {
            let mut length = [0; 8];
            File::open(file)?.read_exact(&mut length)?;
            match header_bytes(length) {
                Some(header) => header.min(bytes),
                None => return Ok(None),
            }
        }
        known if WHOLE.contains(&known) && bytes <= WHOLE_BYTES_MAX => bytes,
        _ => return Ok(None),
    };
    let mut front = Vec::new();
    File::open(file)?.take(wanted).read_to_end(&mut front)?;
    Ok(Some(front))
}

fn extension(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(_, extension)| extension)
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

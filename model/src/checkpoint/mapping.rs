//! A weight file mapped into memory, read-only.
//!
//! Owns the one `unsafe` of loading. Pages are read by the kernel when they are touched, so a
//! stage that takes a tenth of the tensors reads about a tenth of the file.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::CheckpointError;

/// The bytes of one file.
#[derive(Debug)]
pub(super) struct Mapping {
    path: PathBuf,
    map: Mmap,
}

impl Mapping {
    /// Maps `path`.
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only and private to this process. Another program that shortens
        // the file while it is mapped could fault this one; weight files are not rewritten in
        // place (downloads and converters write a new file and rename it), and this is documented.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

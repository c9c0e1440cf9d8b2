//! A weight file mapped into memory, read-only.
//!
//! Owns the one `unsafe` of loading. Pages are read by the kernel when they are touched, so a
//! stage that takes a tenth of the tensors reads about a tenth of the file.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};

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

    /// Lets go of the pages of `range`, which count as memory of this process until then; reading
    /// them again brings them back. Best effort: where it fails they stay.
    pub(super) fn release(&self, range: Range<usize>) {
        // SAFETY: the map is shared with the file and never written, so that pages that are
        // dropped come back with the same content when they are touched.
        let done = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
        if let Err(error) = done {
            tracing::debug!(path = %self.path.display(), %error, "mapped pages stay");
        }
    }

    /// The whole file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

//! Named bytes that one process has and others of its cluster lack: the files of a model.
//!
//! Owns the trait of who has them, the values that travel, and their bounds. Does not know what a
//! name means. They travel on a connection of their own, part by part, each asked for: whoever
//! asks decides how much is under way, and frames of meshes go first (`quic/blobs.rs`).

use crate::error::TransportError;

/// The largest part of a blob, in bytes.
pub const BLOB_PART_BYTES_MAX: usize = 1 << 20;

/// The longest name of a blob, in bytes.
pub const BLOB_NAME_BYTES_MAX: usize = 1024;

/// Callers of blobs at a time; more are told to come again.
pub const BLOB_CALLERS_MAX: usize = 256;

/// Parts that are read at a time; other callers wait for theirs.
pub const BLOB_READS_MAX: usize = 4;

/// Bytes of one blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobPart {
    /// Length of the whole blob.
    pub total: u64,
    /// As many as were asked for, fewer at the blob's end.
    pub bytes: Vec<u8>,
}

/// Has blobs.
pub trait BlobStore: Send + Sync {
    /// Reads at most `len` bytes from `offset` on; blocks. `len` is at most
    /// [`BLOB_PART_BYTES_MAX`].
    ///
    /// # Errors
    /// In words for whoever asked: there is no such blob here, or it cannot be read.
    fn read(&self, name: &str, offset: u64, len: usize) -> Result<BlobPart, String>;
}

/// Why a part of a blob was not had from a peer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BlobError {
    /// The peer does not have it, or cannot read it.
    #[error("{peer} has no {name}: {cause}")]
    Refused {
        /// Who was asked.
        peer: String,
        /// The blob.
        name: String,
        /// Its words.
        cause: String,
    },
    /// The peer could not be asked, or was lost.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

//! Copies of checkpoints on their way to the agents that hold them, and back.
//!
//! They travel in parts, one at a time, so that a heartbeat waits for at most one of them; latents
//! are small. The key is the client's, which outlives every coordinator.

use super::RequestKey;

/// Bytes of one part, at most: on 5 Mbit/s a tenth of a second.
pub const PART_BYTES_MAX: usize = 64 << 10;

/// Bytes of one copy, at most; a larger checkpoint is held by the coordinator alone.
pub const COPY_BYTES_MAX: u64 = 64 << 20;

/// A piece of a checkpoint as it is written to disk.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct CopyPart {
    /// Whose.
    pub key: RequestKey,
    /// After which step, from 0.
    pub step: u32,
    /// Bytes of the whole copy.
    pub len: u64,
    /// Bytes before this part.
    pub offset: u64,
    /// At most [`PART_BYTES_MAX`].
    pub bytes: Vec<u8>,
}

impl CopyPart {
    /// The part of `copy` that begins at `offset`.
    pub(crate) fn of(key: RequestKey, step: u32, copy: &[u8], offset: u64) -> Self {
        let begin = usize::try_from(offset).map_or(copy.len(), |begin| begin.min(copy.len()));
        let end = copy.len().min(begin + PART_BYTES_MAX);
        let bytes = copy.get(begin..end).unwrap_or_default().to_vec();
        Self { key, step, len: copy.len() as u64, offset, bytes }
    }
}

/// A whole copy that an agent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct HeldCopy {
    /// Whose.
    pub key: RequestKey,
    /// After which step, from 0.
    pub step: u32,
}

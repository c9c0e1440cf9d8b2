//! The small messages of a link, on its control connection: grants, refusals, aborts.
//!
//! Owns the types and their encoding (a u32 length, then an rkyv archive). Does not own batching or
//! what a grant does to a link; see `link/table.rs`.

use rkyv::rancor::Error as RkyvError;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use crate::error::TransportError;
use crate::ids::{RunId, Tag};

use super::LaneOffer;

/// The largest link message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The most grants one message carries (40 bytes each at most).
pub(crate) const GRANTS_PER_MESSAGE_MAX: usize = 1024;

/// The longest cause or reason that travels, in bytes.
pub(crate) const CAUSE_BYTES_MAX: usize = 1024;

/// "Send it now": a place for one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Grant {
    /// The run.
    pub run: RunId,
    /// The message.
    pub tag: Tag,
    /// The receiver's name for the place.
    pub slot: u32,
    /// How many bytes the place takes; a frame brings exactly these, or none (`reuse`).
    pub bytes: u64,
}

/// "It will not come": the sender cannot fill a granted place.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Refusal {
    /// The run.
    pub run: RunId,
    /// The place, from the grant.
    pub slot: u32,
    /// What disagrees.
    pub what: String,
    /// The receiver's value.
    pub granted: String,
    /// The sender's value.
    pub offered: String,
}

/// One message of a link's control connection.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub enum LinkMessage {
    /// Places for frames, in the order of posting.
    Grants(Vec<Grant>),
    /// A granted frame that will not come.
    Refuse(Refusal),
    /// The run is over for both ends.
    Abort {
        /// The run.
        run: RunId,
        /// Why.
        cause: String,
    },
    /// What else could carry the frames of this link.
    Offer(LaneOffer),
}

impl LinkMessage {
    /// The archive, at most [`MESSAGE_BYTES_MAX`].
    ///
    /// # Errors
    /// [`TransportError::FrameTooLarge`] or [`TransportError::Malformed`].
    pub fn encode(&self) -> Result<AlignedVec, TransportError> {
        let archive = rkyv::to_bytes::<RkyvError>(self)
            .map_err(|error| TransportError::malformed(format!("link message: {error}")))?;
        check_len(archive.len())?;
        Ok(archive)
    }

    /// Reads exactly one archive.
    ///
    /// # Errors
    /// [`TransportError::FrameTooLarge`] or [`TransportError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, TransportError> {
        check_len(bytes.len())?;
        let mut aligned = AlignedVec::<16>::with_capacity(bytes.len());
        aligned.extend_from_slice(bytes);
        rkyv::from_bytes::<Self, RkyvError>(&aligned)
            .map_err(|_| TransportError::malformed("link message: not a valid archive"))
    }
}

/// Cuts a text to [`CAUSE_BYTES_MAX`] at a character's boundary.
pub(crate) fn bounded_cause(cause: &str) -> String {
    let mut end = cause.len().min(CAUSE_BYTES_MAX);
    while !cause.is_char_boundary(end) {
        end -= 1;
    }
    cause[..end].to_owned()
}

fn check_len(len: usize) -> Result<(), TransportError> {
    if len > MESSAGE_BYTES_MAX {
        return Err(TransportError::FrameTooLarge {
            what: "link message",
            bytes: len as u64,
            limit: MESSAGE_BYTES_MAX as u64,
        });
    }
    Ok(())
}

//! What a payload is: the description that travels with it.
//!
//! Owns the fields, their bounds, and the check that shape and element type give exactly the bytes
//! that came. Does not own what step or patch mean; the executor compares them with its program.

use rkyv::api::low;
use rkyv::rancor::Error as RkyvError;
use rkyv::ser::allocator::SubAllocator;
use rkyv::util::{Align, AlignedVec};
use rkyv::{Archive, Deserialize, Serialize};

use crate::error::TransportError;
use crate::ids::Epoch;

use super::{Dtype, Priority, Shape};

/// The most metadata a frame can carry, in bytes.
pub const META_BYTES_MAX: usize = 64 * 1024;

/// The most dimensions a shape can have.
pub const SHAPE_DIMS_MAX: usize = 8;

/// The longest trace context, in bytes (W3C `traceparent` takes 55).
pub const TRACEPARENT_BYTES_MAX: usize = 128;

/// Metadata up to this size is read without asking the allocator for memory; only a trace context
/// makes it larger.
const META_BYTES_USUAL: usize = 512;

/// The description of one frame's payload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct FrameMeta {
    /// Element type: a [`Dtype`] code.
    pub dtype: u8,
    /// Dimensions; with the element type they give the
    /// payload's length ([`Dtype::payload_bytes`]).
    pub shape: Shape,
    /// Denoising step.
    pub step: u32,
    /// Index of the patch within the step.
    pub patch: u32,
    /// The mesh.
    pub epoch: Epoch,
    /// A cached forward: the receiver reuses what it has, and no payload follows.
    pub reuse: bool,
    /// The payload is a change: the receiver adds it to what it holds of these rows.
    pub residual: bool,
    /// A decision that one rank took for all.
    pub decision: Option<u32>,
    /// What the frame overtakes on its way.
    pub priority: Priority,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// Milliseconds since the Unix epoch after which nobody wants the payload any more.
    pub deadline_ms: Option<u64>,
}

impl FrameMeta {
    /// A payload of `len` plain bytes.
    pub fn raw(epoch: Epoch, len: u32) -> Self {
        Self { dtype: Dtype::U8.code(), shape: Shape::from([len]), epoch, ..Self::default() }
    }

    /// Checks the bounds and that the description fits `payload_len` bytes; a reuse frame describes
    /// the reused tensor and has no payload.
    ///
    /// # Errors
    /// [`TransportError::Malformed`] for a bound, [`TransportError::Mismatch`] for the length.
    pub fn check(&self, payload_len: u64) -> Result<(), TransportError> {
        let described = self.described_bytes()?;
        let traceparent_len = self.traceparent.as_ref().map_or(0, String::len);
        if traceparent_len > TRACEPARENT_BYTES_MAX {
            return Err(TransportError::malformed(format!(
                "frame metadata: traceparent of {traceparent_len} bytes, limit \
                 {TRACEPARENT_BYTES_MAX}"
            )));
        }
        let expected = if self.reuse { 0 } else { described };
        if payload_len != expected {
            return Err(TransportError::mismatch(
                "payload bytes and shape",
                format!("{payload_len} bytes"),
                format!("{:?} of dtype {} = {expected} bytes", self.shape, self.dtype),
            ));
        }
        Ok(())
    }

    /// Bytes of the described tensor, by checked arithmetic.
    ///
    /// # Errors
    /// [`TransportError::Malformed`] for an unknown dtype, too many dimensions or an overflow.
    pub fn described_bytes(&self) -> Result<u64, TransportError> {
        let Some(dtype) = Dtype::from_code(self.dtype) else {
            return Err(TransportError::malformed(format!(
                "frame metadata: dtype code {}",
                self.dtype
            )));
        };
        if self.shape.count() > SHAPE_DIMS_MAX {
            return Err(TransportError::malformed(format!(
                "frame metadata: {} dimensions, limit {SHAPE_DIMS_MAX}",
                self.shape.count()
            )));
        }
        let bytes = dtype.payload_bytes(self.shape.iter().map(|&dim| u64::from(dim)));
        bytes.ok_or_else(|| {
            TransportError::malformed(format!("frame metadata: shape {:?} overflows", self.shape))
        })
    }

    /// The archive, at most [`META_BYTES_MAX`].
    ///
    /// # Errors
    /// [`TransportError::FrameTooLarge`] or [`TransportError::Malformed`].
    pub fn encode(&self) -> Result<AlignedVec, TransportError> {
        let archive = rkyv::to_bytes::<RkyvError>(self)
            .map_err(|error| TransportError::malformed(format!("frame metadata: {error}")))?;
        check_len(archive.len())?;
        Ok(archive)
    }

    /// Writes the archive behind what is in `out`, whose length is a multiple of 16 bytes, and
    /// gives the archive's length; memory that `out` has is used.
    ///
    /// # Errors
    /// As [`FrameMeta::encode`].
    pub(crate) fn encode_onto(&self, out: &mut Vec<u8>) -> Result<usize, TransportError> {
        let before = out.len();
        // The archive needs nothing on the side.
        let none = SubAllocator::new(&mut []);
        low::to_bytes_in_with_alloc::<_, _, RkyvError>(self, &mut *out, none)
            .map_err(|error| TransportError::malformed(format!("frame metadata: {error}")))?;
        check_len(out.len() - before)?;
        Ok(out.len() - before)
    }

    /// Reads exactly one archive; bounds are checked before anything is built.
    ///
    /// # Errors
    /// [`TransportError::FrameTooLarge`] or [`TransportError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, TransportError> {
        check_len(bytes.len())?;
        let mut usual = Align([0; META_BYTES_USUAL]);
        let mut larger = AlignedVec::<16>::new();
        let aligned = match usual.get_mut(..bytes.len()) {
            Some(usual) => {
                usual.copy_from_slice(bytes);
                &*usual
            }
            None => {
                larger.extend_from_slice(bytes);
                larger.as_slice()
            }
        };
        let archived = low::access::<ArchivedFrameMeta, RkyvError>(aligned)
            .map_err(|_| TransportError::malformed("frame metadata: not a valid archive"))?;
        if !archived.shape.is_bounded() {
            return Err(TransportError::malformed("frame metadata: too many dimensions"));
        }
        low::deserialize::<Self, RkyvError>(archived)
            .map_err(|_| TransportError::malformed("frame metadata: not a valid archive"))
    }
}

fn check_len(len: usize) -> Result<(), TransportError> {
    if len > META_BYTES_MAX {
        return Err(TransportError::FrameTooLarge {
            what: "frame metadata",
            bytes: len as u64,
            limit: META_BYTES_MAX as u64,
        });
    }
    Ok(())
}

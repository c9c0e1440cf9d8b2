//! The fixed 64-byte header of a frame.
//!
//! Little-endian: magic u32 @0, version u16 @4, kind u8 @6, reserved u8 @7, schema hash u64 @8,
//! epoch u64 @16, run u64 @24, tag u64 @32, payload length u64 @40, slot u32 @48, metadata length
//! u32 @52, sequence u32 @56, CRC-32 of bytes 0..60 @60.
//!
//! Owns this layout and the first checks of a frame, in this order: checksum, magic and version,
//! lengths. Allocates nothing.

use crate::error::TransportError;
use crate::ids::{Epoch, RunId, Tag};

use super::{META_BYTES_MAX, PROTOCOL_MAX, SCHEMA_HASH};

/// Size of the header in bytes.
pub const HEADER_BYTES: usize = 64;

const MAGIC: u32 = u32::from_le_bytes(*b"DMF1");
const KIND_DATA: u8 = 1;

/// What a frame is and how much follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The mesh.
    pub epoch: Epoch,
    /// The run.
    pub run: RunId,
    /// The message.
    pub tag: Tag,
    /// The receiver's place, from its grant.
    pub slot: u32,
    /// Bytes of metadata that follow.
    pub meta_len: u32,
    /// Bytes of payload after the metadata.
    pub payload_len: u64,
    /// Position in the sender's stream of frames, wrapping.
    pub sequence: u32,
}

impl FrameHeader {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&PROTOCOL_MAX.to_le_bytes());
        out[6] = KIND_DATA;
        out[8..16].copy_from_slice(&SCHEMA_HASH.to_le_bytes());
        out[16..24].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.run.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.tag.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.payload_len.to_le_bytes());
        out[48..52].copy_from_slice(&self.slot.to_le_bytes());
        out[52..56].copy_from_slice(&self.meta_len.to_le_bytes());
        out[56..60].copy_from_slice(&self.sequence.to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads and checks the first [`HEADER_BYTES`] of `bytes`; `payload_bytes_max` is what the link
    /// negotiated.
    ///
    /// # Errors
    /// [`TransportError::Malformed`], [`TransportError::VersionMismatch`] or
    /// [`TransportError::FrameTooLarge`].
    pub fn decode(bytes: &[u8], payload_bytes_max: u64) -> Result<Self, TransportError> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(TransportError::malformed(format!(
                "frame header: {} bytes of {HEADER_BYTES}",
                bytes.len()
            )));
        };
        let crc = crc32fast::hash(&bytes[..60]);
        if crc != u32_at(bytes, 60) {
            return Err(TransportError::malformed("frame header: checksum"));
        }
        if u32_at(bytes, 0) != MAGIC {
            return Err(TransportError::malformed("frame header: magic"));
        }
        check_version(bytes)?;
        let header = Self {
            epoch: Epoch(u64_at(bytes, 16)),
            run: RunId(u64_at(bytes, 24)),
            tag: Tag(u64_at(bytes, 32)),
            payload_len: u64_at(bytes, 40),
            slot: u32_at(bytes, 48),
            meta_len: u32_at(bytes, 52),
            sequence: u32_at(bytes, 56),
        };
        header.check_lengths(payload_bytes_max)?;
        Ok(header)
    }

    fn check_lengths(&self, payload_bytes_max: u64) -> Result<(), TransportError> {
        let too_large =
            |what, bytes, limit| Err(TransportError::FrameTooLarge { what, bytes, limit });
        if self.meta_len as usize > META_BYTES_MAX {
            return too_large("frame metadata", u64::from(self.meta_len), META_BYTES_MAX as u64);
        }
        if self.payload_len > payload_bytes_max {
            return too_large("frame payload", self.payload_len, payload_bytes_max);
        }
        Ok(())
    }
}

fn check_version(bytes: &[u8; HEADER_BYTES]) -> Result<(), TransportError> {
    let version = u16::from_le_bytes([bytes[4], bytes[5]]);
    let schema = u64_at(bytes, 8);
    if version != PROTOCOL_MAX || schema != SCHEMA_HASH {
        return Err(TransportError::VersionMismatch {
            ours: format!("frame version {PROTOCOL_MAX}, schema {SCHEMA_HASH:016x}"),
            theirs: format!("frame version {version}, schema {schema:016x}"),
        });
    }
    if bytes[6] != KIND_DATA || bytes[7] != 0 {
        return Err(TransportError::malformed(format!("frame header: kind {}", bytes[6])));
    }
    Ok(())
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

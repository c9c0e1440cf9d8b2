//! What travels in front of a payload over UCX: the link's nonce, the frame's header, its metadata;
//! and what travels without a payload.
//!
//! Owns the layout of the active message's header: 16 bytes of nonce, 64 of [`FrameHeader`], then
//! exactly `meta_len` bytes of metadata. A grant is 16 bytes of nonce and 28, little-endian: run u64
//! @16, tag u64 @24, bytes u64 @32, slot u32 @40. Pure. Invariants: lengths are checked before
//! metadata is looked at; a buffer that is written again keeps its memory.

use crate::error::TransportError;
use crate::frame::{FRAME_BYTES_MAX, FrameHeader, FrameMeta, Grant, HEADER_BYTES, Nonce};
use crate::ids::{RunId, Tag};

/// Bytes of a nonce.
const NONCE_BYTES: usize = size_of::<Nonce>();

/// Bytes of a grant behind the nonce.
const GRANT_BYTES: usize = 28;

/// Writes a front into `out`, whatever was there before.
pub(super) fn write(
    out: &mut Vec<u8>,
    nonce: &Nonce,
    mut header: FrameHeader,
    meta: &FrameMeta,
) -> Result<(), TransportError> {
    out.clear();
    out.extend_from_slice(nonce);
    out.extend_from_slice(&[0; HEADER_BYTES]);
    let meta_len = meta.encode_onto(out)?;
    // `encode_onto` bounds the archive far below u32::MAX.
    header.meta_len = u32::try_from(meta_len).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(NONCE_BYTES..NONCE_BYTES + HEADER_BYTES) {
        place.copy_from_slice(&header.encode());
    }
    Ok(())
}

/// The link that a front names; `None` when it is too short to name one.
pub(super) fn nonce(front: &[u8]) -> Option<&Nonce> {
    front.first_chunk()
}

/// Writes nothing but a nonce.
pub(super) fn write_name(out: &mut Vec<u8>, nonce: &Nonce) {
    out.clear();
    out.extend_from_slice(nonce);
}

pub(super) fn write_grant(out: &mut Vec<u8>, nonce: &Nonce, grant: Grant) {
    write_name(out, nonce);
    let Grant { run, tag, slot, bytes } = grant;
    out.extend_from_slice(&run.0.to_le_bytes());
    out.extend_from_slice(&tag.0.to_le_bytes());
    out.extend_from_slice(&bytes.to_le_bytes());
    out.extend_from_slice(&slot.to_le_bytes());
}

/// Reads the grant that follows the nonce.
pub(super) fn read_grant(front: &[u8]) -> Result<Grant, TransportError> {
    let rest = front.get(NONCE_BYTES..).unwrap_or_default();
    let whole = <&[u8; GRANT_BYTES]>::try_from(rest);
    let rest = whole.map_err(|_| {
        TransportError::malformed(format!("grant: {} bytes of {GRANT_BYTES}", rest.len()))
    })?;
    let number = |at: usize| {
        let bytes = rest.get(at..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    };
    let slot = rest.last_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    Ok(Grant { run: RunId(number(0)), tag: Tag(number(8)), bytes: number(16), slot })
}

/// Reads what follows the nonce.
pub(super) fn read(front: &[u8]) -> Result<(FrameHeader, FrameMeta), TransportError> {
    let rest = front.get(NONCE_BYTES..).unwrap_or_default();
    let header = FrameHeader::decode(rest, FRAME_BYTES_MAX)?;
    let meta = rest.get(HEADER_BYTES..).unwrap_or_default();
    if meta.len() != header.meta_len as usize {
        return Err(TransportError::malformed(format!(
            "frame front: {} bytes of metadata, its header says {}",
            meta.len(),
            header.meta_len
        )));
    }
    Ok((header, FrameMeta::decode(meta)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::ids::Epoch;

    /// Bytes before the metadata.
    const FRONT_BYTES_MIN: usize = NONCE_BYTES + HEADER_BYTES;

    fn header(slot: u32, payload_len: u64) -> FrameHeader {
        let (epoch, run, tag) = (Epoch(3), RunId(7), Tag(9));
        FrameHeader { epoch, run, tag, slot, meta_len: 0, payload_len, sequence: 5 }
    }

    fn front(nonce: Nonce, slot: u32, len: u32) -> Vec<u8> {
        let mut out = vec![1, 2, 3];
        let meta = FrameMeta::raw(Epoch(3), len);
        write(&mut out, &nonce, header(slot, len.into()), &meta).unwrap();
        out
    }

    proptest! {
        #[test]
        fn a_front_is_read_as_it_was_written(name: Nonce, slot: u32, len in 0_u32..1 << 20) {
            let bytes = front(name, slot, len);
            prop_assert_eq!(nonce(&bytes), Some(&name));
            let (read, meta) = read(&bytes).unwrap();
            prop_assert_eq!((read.slot, read.payload_len), (slot, u64::from(len)));
            prop_assert_eq!(meta, FrameMeta::raw(Epoch(3), len));
            prop_assert_eq!(bytes.len(), FRONT_BYTES_MIN + read.meta_len as usize);
        }

        #[test]
        fn a_grant_is_read_as_it_was_written_and_no_other_length_is_one(
            name: Nonce,
            numbers: (u64, u64, u32, u64),
            cut in 0_usize..60,
        ) {
            let (run, tag, slot, bytes) = numbers;
            let (grant, mut out) = (Grant { run: RunId(run), tag: Tag(tag), slot, bytes }, vec![7]);
            write_grant(&mut out, &name, grant);
            prop_assert_eq!(nonce(&out), Some(&name));
            prop_assert_eq!(read_grant(&out).unwrap(), grant);
            let whole = out.len();
            out.resize(cut, 0);
            prop_assert!(read_grant(&out).is_err() || cut == whole);
        }

        #[test]
        fn no_front_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            crate::ucx::read_any_front(&bytes);
        }

        #[test]
        fn no_changed_front_panics(
            name: Nonce,
            len in 0_u32..1 << 20,
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut bytes = front(name, 1, len);
            crate::ucx::read_any_front(&bytes);
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            crate::ucx::read_any_front(&bytes);
        }

        #[test]
        fn a_cut_or_longer_front_is_refused(at in 0_usize..200, more in 1_usize..64) {
            let bytes = front([7; 16], 1, 64);
            let cut = &bytes[..at.min(bytes.len() - 1)];
            prop_assert!(read(cut).is_err());
            let mut longer = bytes.clone();
            longer.resize(bytes.len() + more, 0);
            prop_assert!(read(&longer).is_err());
        }

        #[test]
        fn a_changed_header_is_refused(at in NONCE_BYTES..FRONT_BYTES_MIN, flip in 1_u8..) {
            let mut bytes = front([7; 16], 1, 64);
            bytes[at] ^= flip;
            prop_assert!(read(&bytes).is_err());
        }
    }
}

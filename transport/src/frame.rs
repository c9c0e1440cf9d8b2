//! Everything this crate puts on the wire, and its bounds.
//!
//! Owns the wire types: [`FrameHeader`] (fixed), [`FrameMeta`] (rkyv), the link messages (grants,
//! refusals, aborts) and the hello of a connection. Knows no socket. Invariants: a decoder looks at
//! the header's checksum, version and lengths before anything is allocated, never panics and never
//! allocates more than its named bound, whatever the bytes.
//!
//! On the wire a frame is: header (64 bytes), metadata (`meta_len`), payload (`payload_len`).

mod dtype;
mod header;
pub(crate) mod hello;
pub(crate) mod message;
mod meta;
mod offer;
mod priority;
mod shape;

pub use dtype::{Dtype, ROW_SCALE_BYTES};
pub use header::{FrameHeader, HEADER_BYTES};
pub use message::{Grant, LinkMessage, MESSAGE_BYTES_MAX, Refusal};
pub use meta::{FrameMeta, META_BYTES_MAX, SHAPE_DIMS_MAX, TRACEPARENT_BYTES_MAX};
pub use offer::{DeviceOffer, LaneOffer, Nonce};
pub use priority::Priority;
pub use shape::Shape;

/// The oldest frame protocol this build speaks.
pub const PROTOCOL_MIN: u16 = 1;

/// The newest frame protocol this build speaks.
pub const PROTOCOL_MAX: u16 = 1;

/// The largest payload of one frame, in bytes.
pub const FRAME_BYTES_MAX: u64 = 1 << 30;

/// Changes whenever the source of a wire type does, so that two builds that would misread each
/// other refuse each other instead.
pub const SCHEMA_HASH: u64 = schema_hash(&[
    include_str!("frame/dtype.rs"),
    include_str!("frame/header.rs"),
    include_str!("frame/hello.rs"),
    include_str!("frame/message.rs"),
    include_str!("frame/meta.rs"),
    include_str!("frame/offer.rs"),
    include_str!("frame/priority.rs"),
    include_str!("frame/shape.rs"),
]);

/// 64-bit FNV-1a over all the texts; usable for the schemas of other layers too.
pub const fn schema_hash(texts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut text = 0;
    while text < texts.len() {
        let bytes = texts[text].as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            at += 1;
        }
        text += 1;
    }
    hash
}

/// The body of the fuzz target and of the corpus test: no input may panic any decoder.
pub fn decode_anything(bytes: &[u8]) {
    if let Ok(header) = FrameHeader::decode(bytes, FRAME_BYTES_MAX) {
        assert_eq!(header.encode()[..], bytes[..HEADER_BYTES]);
    }
    if let Ok(meta) = FrameMeta::decode(bytes) {
        assert!(meta.shape.len() <= SHAPE_DIMS_MAX);
        let _ = meta.check(bytes.len() as u64);
    }
    let _ = LinkMessage::decode(bytes);
    let _ = hello::Hello::decode(bytes);
    let _ = hello::Answer::decode(bytes);
}

#[cfg(test)]
mod tests;

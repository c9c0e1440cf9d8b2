//! What a frame costs beside its payload.
//!
//! Owns the loop that writes and reads header and metadata of a frame as links do.

use std::hint::black_box;
use std::time::Instant;

use ditmesh_transport::frame::{Dtype, FRAME_BYTES_MAX, FrameHeader};
use ditmesh_transport::{Epoch, FrameMeta, RunId, Tag};

/// Frames per measurement.
const FRAMES: u32 = 20_000;

/// Microseconds to write and read header and metadata of one frame.
pub(super) fn measure() -> Result<f64, String> {
    let meta = FrameMeta {
        dtype: Dtype::F32.code(),
        shape: [2, 4096, 16, 72].into(),
        step: 7,
        patch: 3,
        epoch: Epoch(1),
        ..FrameMeta::default()
    };
    let begun = Instant::now();
    for sequence in 0..FRAMES {
        let words = |error: ditmesh_transport::TransportError| error.to_string();
        let archive = black_box(&meta).encode().map_err(words)?;
        let header = FrameHeader {
            epoch: Epoch(1),
            run: RunId(1),
            tag: Tag(u64::from(sequence)),
            slot: sequence,
            meta_len: archive.len() as u32,
            payload_len: 1 << 20,
            sequence,
        };
        let bytes = black_box(header.encode());
        black_box(FrameHeader::decode(&bytes, FRAME_BYTES_MAX).map_err(words)?);
        black_box(FrameMeta::decode(black_box(&archive)).map_err(words)?);
    }
    Ok(begun.elapsed().as_secs_f64() * 1e6 / f64::from(FRAMES))
}

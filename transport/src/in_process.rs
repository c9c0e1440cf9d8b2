//! Meshes inside one process: links that are one memcpy.
//!
//! Owns the hub in which the fabrics of one engine meet; there is no global state, two hubs know
//! nothing of each other. The semantics of grants are those of the network: a frame waits for its
//! post, then whoever came second copies it once into the posted region.

mod hub;
mod link;

pub use hub::InProcessHub;

use crate::link::Caps;

/// Idle bytes that the pool of one in-process fabric keeps.
pub const IN_PROCESS_POOL_BYTES_MAX: usize = 256 << 20;

pub(crate) const CAPS: Caps = Caps {
    rma: false,
    encrypted: false,
    max_frame_bytes: crate::frame::FRAME_BYTES_MAX,
    lanes: 1,
    name: "in-process",
};

//! What is known of the links of a mesh: what carries them, what they sustain.

/// What carries the frames of one link of a rank.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct LinkCarrier {
    /// The member at the other end.
    pub peer: u32,
    /// `quic`, `ucx-shm`, `ucx-net`, `in-process`.
    pub transport: String,
    /// Why that one.
    pub why: String,
    /// What it sustains, where the order said to measure it and that could be done.
    pub measured: Option<LinkMeasured>,
}

/// What a link was seen to sustain.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub struct LinkMeasured {
    /// Of a small message to and fro, microseconds.
    pub round_trip_us: u32,
    /// Payload in one direction, bytes per second.
    pub bytes_per_s: u64,
}

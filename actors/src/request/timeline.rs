//! The timeline of a rank as it travels: what ran when, in chunks.
//!
//! A caller who asked for it gets the chunks of every rank as events before the result.

use serde::{Deserialize, Serialize};

/// Spans of one chunk: 48 bytes each, far below what a control message holds.
pub const CHUNK_SPANS_MAX: usize = 4096;

/// A part of one rank's timeline.
#[derive(
    Clone,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub struct TimelineChunk {
    /// The rank.
    pub rank: u32,
    /// Nanoseconds since the Unix epoch at which this rank's run started, by its own clock; times
    /// of spans count from here.
    pub started_unix_ns: u64,
    /// What the spans' names are.
    pub names: Vec<String>,
    /// In the order in which they ended; at most [`CHUNK_SPANS_MAX`].
    pub spans: Vec<TimelineSpan>,
    /// Spans that were left out because the timeline was full, of the whole rank.
    pub left_out: u64,
}

/// Something that a rank did.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub struct TimelineSpan {
    /// Nanoseconds since the start of the run.
    pub start_ns: u64,
    /// Nanoseconds since the start of the run.
    pub end_ns: u64,
    /// The message, for what is done with one: its name on the wire.
    pub tag: u64,
    /// The other member, for what is done with a message.
    pub peer: u32,
    /// Index into the chunk's names.
    pub name: u16,
    /// Denoising step, or [`NOWHERE`].
    pub step: u16,
    /// Patch of the step, or [`NOWHERE`].
    pub patch: u16,
    /// Block of the model, or [`NOWHERE`].
    pub block: u16,
    /// What it is.
    pub kind: SpanKind,
}

/// Of no step, no patch or no block.
pub const NOWHERE: u16 = u16::MAX;

/// What a span covers. Phases lie inside operations, what is done with a message inside either.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum SpanKind {
    /// One operation of the program.
    Operation,
    /// One phase of a forward pass.
    Phase,
    /// Copying a message to or from a frame.
    Serialise,
    /// Handing a frame to the transport.
    Send,
    /// Waiting for a frame.
    Wait,
}

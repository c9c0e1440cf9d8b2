//! The first message of a connection between two members of a mesh, and its answer.
//!
//! Owns a hand-written encoding that stays readable across versions: magic and protocol range come
//! first and never move, so two builds that share nothing else can still name their disagreement.
//! Does not own the decision; see `quic/admission.rs`.

use crate::error::TransportError;
use crate::fabric::BULK_LANES_MAX;
use crate::ids::{Epoch, Incarnation, PeerId};

use super::message::bounded_cause;

/// The largest hello or answer, in bytes.
pub(crate) const HELLO_BYTES_MAX: usize = 4096;

const MAGIC: &[u8; 4] = b"DMH1";

/// Which of the connections of a link this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Grants, refusals, aborts.
    Control,
    /// Frames, on one of `of` connections.
    Bulk { index: u8, of: u8 },
    /// Blobs, for no mesh.
    Blobs,
}

/// Who dials whom, for which mesh, with which protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) protocol_min: u16,
    pub(crate) protocol_max: u16,
    pub(crate) schema: u64,
    pub(crate) epoch: Epoch,
    pub(crate) incarnation: Incarnation,
    pub(crate) from: PeerId,
    pub(crate) to: PeerId,
    pub(crate) lane: Lane,
    pub(crate) build: String,
    pub(crate) cluster: String,
}

/// What the accepting side says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Welcome { incarnation: Incarnation },
    Version { theirs: String },
    Stale { current: Epoch },
    Cluster { theirs: String },
    Identity { expected: String, found: String },
    Refused { cause: String },
}

impl Hello {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.protocol_min.to_le_bytes());
        out.extend_from_slice(&self.protocol_max.to_le_bytes());
        out.extend_from_slice(&self.schema.to_le_bytes());
        put_text(&mut out, &self.build);
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.from.0.to_le_bytes());
        out.extend_from_slice(&self.to.0.to_le_bytes());
        out.extend_from_slice(&match self.lane {
            Lane::Control => [0, 0],
            Lane::Blobs => [0, 1],
            Lane::Bulk { index, of } => [of, index],
        });
        put_text(&mut out, &self.cluster);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, TransportError> {
        let mut from = Reader::new(bytes, "hello")?;
        Ok(Self {
            protocol_min: u16::from_le_bytes(from.take()?),
            protocol_max: u16::from_le_bytes(from.take()?),
            schema: u64::from_le_bytes(from.take()?),
            build: from.text()?,
            epoch: Epoch(u64::from_le_bytes(from.take()?)),
            incarnation: Incarnation(u64::from_le_bytes(from.take()?)),
            from: PeerId(u32::from_le_bytes(from.take()?)),
            to: PeerId(u32::from_le_bytes(from.take()?)),
            lane: match from.take::<2>()? {
                [0, 0] => Lane::Control,
                [0, 1] => Lane::Blobs,
                [of, index] if index < of && usize::from(of) <= BULK_LANES_MAX => {
                    Lane::Bulk { index, of }
                }
                [of, index] => return Err(from.malformed(&format!("lane {index} of {of}"))),
            },
            cluster: from.text()?,
        })
    }
}

impl Answer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(MAGIC);
        match self {
            Self::Welcome { incarnation } => {
                out.push(0);
                out.extend_from_slice(&incarnation.0.to_le_bytes());
            }
            Self::Version { theirs } => {
                out.push(1);
                put_text(&mut out, theirs);
            }
            Self::Stale { current } => {
                out.push(2);
                out.extend_from_slice(&current.0.to_le_bytes());
            }
            Self::Cluster { theirs } => {
                out.push(3);
                put_text(&mut out, theirs);
            }
            Self::Identity { expected, found } => {
                out.push(4);
                put_text(&mut out, expected);
                put_text(&mut out, found);
            }
            Self::Refused { cause } => {
                out.push(5);
                put_text(&mut out, cause);
            }
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, TransportError> {
        let mut from = Reader::new(bytes, "answer to a hello")?;
        let [kind] = from.take()?;
        Ok(match kind {
            0 => Self::Welcome { incarnation: Incarnation(u64::from_le_bytes(from.take()?)) },
            1 => Self::Version { theirs: from.text()? },
            2 => Self::Stale { current: Epoch(u64::from_le_bytes(from.take()?)) },
            3 => Self::Cluster { theirs: from.text()? },
            4 => Self::Identity { expected: from.text()?, found: from.text()? },
            5 => Self::Refused { cause: from.text()? },
            other => return Err(from.malformed(&format!("kind {other}"))),
        })
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = bounded_cause(text);
    // `bounded_cause` keeps this far below u16::MAX.
    out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(0).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], what: &'static str) -> Result<Self, TransportError> {
        let mut reader = Self { rest: bytes, what };
        if bytes.len() > HELLO_BYTES_MAX {
            return Err(TransportError::FrameTooLarge {
                what,
                bytes: bytes.len() as u64,
                limit: HELLO_BYTES_MAX as u64,
            });
        }
        match reader.take()? {
            magic if magic == *MAGIC => Ok(reader),
            _ => Err(reader.malformed("magic")),
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], TransportError> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.malformed("too short"));
        };
        self.rest = rest;
        Ok(*taken)
    }

    fn text(&mut self) -> Result<String, TransportError> {
        let len = usize::from(u16::from_le_bytes(self.take()?));
        let Some((text, rest)) = self.rest.split_at_checked(len) else {
            return Err(self.malformed("too short"));
        };
        self.rest = rest;
        let text = std::str::from_utf8(text).map_err(|_| self.malformed("not UTF-8"))?;
        Ok(text.to_owned())
    }

    fn malformed(&self, how: &str) -> TransportError {
        TransportError::malformed(format!("{}: {how}", self.what))
    }
}

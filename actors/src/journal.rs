//! What a coordinator must not forget: epochs, members, who was forced to leave, requests that have
//! no result, and the index of their checkpoints.
//!
//! Owns the entries, what they add up to ([`Remembered`]) and their form in a file. The file itself
//! and the thread that writes it are in [`file`] and [`keeper`]. Pure.
//!
//! Invariants: an entry counts only when it is whole, by its length and digest; whatever follows
//! the first one that is not is dropped, as a write that a crash cut short leaves it. What is
//! remembered of a request is enough to run it again without its caller.

pub(crate) mod file;
pub(crate) mod keeper;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rkyv::rancor;

use crate::protocol::RequestKey;
use crate::request::GenerateRequest;

/// First bytes of a journal; the last digit is the version of its form.
const MAGIC: &[u8] = b"ditmesh journal 2\n";

/// One thing to remember.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub(crate) enum Entry {
    /// Epochs up to this one may be in use.
    Epochs(u64),
    /// The newest life of a member.
    Member { node: String, device: Option<u32>, incarnation: u64 },
    /// A request came in, so many milliseconds after 1970; its tensors are in it.
    Accepted { request: u64, key: RequestKey, asked: Box<GenerateRequest>, at_ms: u64 },
    /// A run of it has begun: it waits for its turn no longer.
    Begun { request: u64 },
    /// A checkpoint of it is in a file with this digest.
    Kept { request: u64, step: u32, digest: u64 },
    /// It has its result, or nobody wants one.
    Ended { request: u64 },
    /// A node was declared gone for good, or has joined anew since.
    Forced { node: String, gone: bool },
}

/// A checkpoint in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) step: u32,
    pub(crate) digest: u64,
}

/// A request without a result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pending {
    pub(crate) key: RequestKey,
    pub(crate) asked: Box<GenerateRequest>,
    /// Since when it waits, in milliseconds after 1970; `None` once it has begun.
    pub(crate) waits_since_ms: Option<u64>,
    pub(crate) kept: Option<Kept>,
}

impl Pending {
    /// How long it has waited for its turn at `now_ms`; a request that had begun waits anew, as
    /// after any loss.
    pub(crate) fn waited(&self, now_ms: u64) -> Duration {
        let waited_ms = self.waits_since_ms.map_or(0, |since| now_ms.saturating_sub(since));
        Duration::from_millis(waited_ms)
    }
}

/// What all entries add up to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Remembered {
    pub(crate) epochs: u64,
    /// Newest lives, of nodes and of their devices.
    pub(crate) members: BTreeMap<(String, Option<u32>), u64>,
    pub(crate) requests: BTreeMap<u64, Pending>,
    /// Nodes that were forced to leave and have not joined since.
    pub(crate) forced: BTreeSet<String>,
}

impl Remembered {
    /// Adds an entry.
    pub(crate) fn add(&mut self, entry: Entry) {
        match entry {
            Entry::Epochs(epochs) => self.epochs = self.epochs.max(epochs),
            Entry::Member { node, device, incarnation } => {
                let newest = self.members.entry((node, device)).or_default();
                *newest = incarnation.max(*newest);
            }
            Entry::Accepted { request, key, asked, at_ms } => {
                let waits_since_ms = Some(at_ms);
                self.requests.insert(request, Pending { key, asked, waits_since_ms, kept: None });
            }
            Entry::Begun { request } => {
                if let Some(pending) = self.requests.get_mut(&request) {
                    pending.waits_since_ms = None;
                }
            }
            Entry::Kept { request, step, digest } => {
                if let Some(pending) = self.requests.get_mut(&request) {
                    pending.kept = Some(Kept { step, digest });
                }
            }
            Entry::Ended { request } => drop(self.requests.remove(&request)),
            Entry::Forced { node, gone: true } => drop(self.forced.insert(node)),
            Entry::Forced { node, gone: false } => drop(self.forced.remove(&node)),
        }
    }

    /// The fewest entries that add up to this.
    fn entries(&self) -> Vec<Entry> {
        let mut entries = vec![Entry::Epochs(self.epochs)];
        entries.extend(self.members.iter().map(|((node, device), &incarnation)| Entry::Member {
            node: node.clone(),
            device: *device,
            incarnation,
        }));
        let gone = true;
        entries.extend(self.forced.iter().map(|node| Entry::Forced { node: node.clone(), gone }));
        for (&request, Pending { key, asked, waits_since_ms, kept }) in &self.requests {
            let (asked, at_ms) = (asked.clone(), waits_since_ms.unwrap_or_default());
            entries.push(Entry::Accepted { request, key: *key, asked, at_ms });
            if waits_since_ms.is_none() {
                entries.push(Entry::Begun { request });
            }
            if let &Some(Kept { step, digest }) = kept {
                entries.push(Entry::Kept { request, step, digest });
            }
        }
        entries
    }

    /// A whole journal.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        self.entries().iter().for_each(|entry| append(&mut bytes, entry));
        bytes
    }

    /// Reads a journal as far as it is whole; the number of bytes that are not.
    pub(crate) fn from_bytes(bytes: &[u8]) -> (Self, usize) {
        let mut remembered = Self::default();
        let Some(mut rest) = bytes.strip_prefix(MAGIC) else { return (remembered, bytes.len()) };
        while let Some((entry, after)) = next_entry(rest) {
            remembered.add(entry);
            rest = after;
        }
        (remembered, rest.len())
    }
}

/// Appends an entry in its form in a file: length (u32), digest (u64), both little-endian, and
/// body.
pub(crate) fn append(bytes: &mut Vec<u8>, entry: &Entry) {
    let Ok(body) = rkyv::to_bytes::<rancor::Error>(entry) else { return };
    let Ok(len) = u32::try_from(body.len()) else { return };
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&digest(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
}

fn next_entry(bytes: &[u8]) -> Option<(Entry, &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    let (expected, rest) = rest.split_first_chunk()?;
    let (body, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    if digest(body) != u64::from_le_bytes(*expected) {
        return None;
    }
    let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(body.len());
    aligned.extend_from_slice(body);
    let entry = rkyv::from_bytes::<Entry, rancor::Error>(&aligned).ok()?;
    Some((entry, rest))
}

/// FNV-1a of bytes: tells a torn write, not a forger; the file is its owner's.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

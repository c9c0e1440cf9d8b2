//! Copies of checkpoints on other nodes: who is given one, and who is asked for one.
//!
//! A pure engine beside membership and dispatcher. The coordinator has every checkpoint itself, in
//! memory and in its journal; agents hold copies for a coordinator that has lost both. Owns who
//! holds what, the copies on their way and those that are asked back. Does not own what is in them.
//!
//! Invariants: one copy of a request is on its way to a holder at a time, and the newest checkpoint
//! follows it, so that a slow link makes copies rarer and nothing else; a copy that is asked back
//! comes, from one holder or the next, or is given up within [`RECALL_MAX`]; a request that has
//! ended is dropped by whoever holds it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::checkpoint::Checkpoint;
use crate::journal::file::to_bytes;
use crate::membership::Now;
use crate::protocol::copies::{COPY_BYTES_MAX, CopyPart, HeldCopy};
use crate::protocol::{FromCoordinator, RequestKey};

/// Nodes that hold a request's copy besides the coordinator, where there are as many.
pub(super) const HOLDERS: usize = 2;

/// Longest time for a copy to come back; its request then goes on without.
pub(super) const RECALL_MAX: Duration = Duration::from_secs(3);

/// Longest time that a copy is held for a request that nobody asks for.
pub(super) const UNCLAIMED_MAX: Duration = Duration::from_secs(60);

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum CopiesCommand {
    /// Say this to the agent of a node.
    Say { node: String, message: FromCoordinator },
    /// What was asked back is here, or will not come.
    Recalled { key: RequestKey, copy: Option<Recalled> },
}

/// A copy that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recalled {
    pub(super) node: String,
    pub(super) step: u32,
    pub(super) bytes: Vec<u8>,
}

type Commands = Vec<CopiesCommand>;

/// The newest checkpoint of a request and who is to hold it.
#[derive(Debug)]
struct Newest {
    step: u32,
    checkpoint: Arc<Checkpoint>,
    holders: Vec<String>,
}

/// A copy on its way.
#[derive(Debug)]
struct Transfer {
    step: u32,
    bytes: Arc<Vec<u8>>,
    /// Bytes that the holder has once it has the part that is on its way.
    sent: u64,
}

/// A copy on its way back.
#[derive(Debug)]
struct Recall {
    node: String,
    step: u32,
    bytes: Vec<u8>,
    /// Steps that are here without it.
    steps: u32,
    until: Now,
}

/// The engine.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Steps of the whole copies, by request and node.
    held: BTreeMap<RequestKey, BTreeMap<String, u32>>,
    newest: BTreeMap<RequestKey, Newest>,
    transfers: BTreeMap<(RequestKey, String), Transfer>,
    recalls: BTreeMap<RequestKey, Recall>,
    /// Requests that are held and that nobody asks for, and since when.
    unclaimed: BTreeMap<RequestKey, Now>,
}

impl Copies {
    /// A checkpoint is complete: hands it on to `holders`.
    pub(super) fn hand_on(
        &mut self,
        key: RequestKey,
        checkpoint: Arc<Checkpoint>,
        holders: Vec<String>,
    ) -> Commands {
        let step = checkpoint.step as u32;
        if self.newest.get(&key).is_some_and(|newest| newest.step >= step) {
            return Vec::new();
        }
        self.newest.insert(key, Newest { step, checkpoint, holders: holders.clone() });
        let idle = |node: &String| !self.transfers.contains_key(&(key, node.clone()));
        let idle: Vec<String> = holders.into_iter().filter(idle).collect();
        self.begin(key, &idle)
    }

    /// An agent has so many bytes of a copy.
    pub(super) fn taken(&mut self, node: &str, key: RequestKey, step: u32, bytes: u64) -> Commands {
        let place = (key, node.to_owned());
        let Some(transfer) = self.transfers.get_mut(&place).filter(|t| t.step == step) else {
            return Vec::new();
        };
        if bytes != transfer.sent {
            // It could not keep it; the next checkpoint may fare better.
            self.transfers.remove(&place);
            return Vec::new();
        }
        if bytes < transfer.bytes.len() as u64 {
            let part = transfer.next_part(key);
            return vec![say(node, FromCoordinator::HoldCopy(Box::new(part)))];
        }
        self.transfers.remove(&place);
        self.held.entry(key).or_default().insert(node.into(), step);
        let newer = self.newest.get(&key).is_some_and(|newest| {
            newest.step > step && newest.holders.iter().any(|holder| holder == node)
        });
        if newer { self.begin(key, &[node.to_owned()]) } else { Vec::new() }
    }

    /// A request has ended.
    pub(super) fn ended(&mut self, key: &RequestKey) -> Commands {
        self.newest.remove(key);
        self.recalls.remove(key);
        self.unclaimed.remove(key);
        let mut nodes: BTreeSet<String> =
            self.held.remove(key).unwrap_or_default().into_keys().collect();
        self.transfers.retain(|(of, node), _| {
            let other = of != key;
            if !other {
                nodes.insert(node.clone());
            }
            other
        });
        let drop_copy = |node: String| say(&node, FromCoordinator::DropCopy { key: *key });
        nodes.into_iter().map(drop_copy).collect()
    }

    /// A node's agent is there and says what it holds; `is_open` tells requests that are known.
    pub(super) fn returned(
        &mut self,
        now: Now,
        node: &str,
        copies: &[HeldCopy],
        is_open: impl Fn(&RequestKey) -> bool,
    ) {
        for HeldCopy { key, step } in copies {
            self.held.entry(*key).or_default().insert(node.into(), *step);
            if !is_open(key) {
                self.unclaimed.entry(*key).or_insert(now);
            }
        }
    }

    /// A node's agent is gone, and what it held.
    pub(super) fn node_gone(&mut self, node: &str) -> Commands {
        self.held.retain(|_, nodes| {
            nodes.remove(node);
            !nodes.is_empty()
        });
        self.transfers.retain(|(_, holder), _| holder != node);
        let asked = self.recalls.iter().filter(|(_, recall)| recall.node == node);
        let asked: Vec<RequestKey> = asked.map(|(key, _)| *key).collect();
        asked.into_iter().flat_map(|key| self.ask_another(key)).collect()
    }

    /// Asks back what agents hold of a request of which `steps` steps are here; nothing when that
    /// is no more. [`CopiesCommand::Recalled`] follows in any case.
    pub(super) fn recall(&mut self, now: Now, key: RequestKey, steps: u32) -> Commands {
        self.unclaimed.remove(&key);
        if self.recalls.contains_key(&key) {
            return Vec::new();
        }
        self.ask(key, steps, now + RECALL_MAX).unwrap_or_default()
    }

    /// Whether the agent of a node holds a copy.
    pub(super) fn is_held_by(&self, key: &RequestKey, node: &str) -> bool {
        self.held.get(key).is_some_and(|nodes| nodes.contains_key(node))
    }

    /// A part of a copy came back.
    pub(super) fn part(&mut self, node: &str, part: CopyPart) -> Commands {
        let CopyPart { key, step, len, offset, bytes } = part;
        let Some(recall) = self.recalls.get_mut(&key).filter(|r| r.node == node && r.step == step)
        else {
            return Vec::new();
        };
        let here = recall.bytes.len() as u64;
        let fits = !bytes.is_empty() && offset == here && here + bytes.len() as u64 <= len;
        if !fits || len > COPY_BYTES_MAX {
            return self.ask_another(key);
        }
        recall.bytes.extend_from_slice(&bytes);
        let offset = recall.bytes.len() as u64;
        if offset < len {
            return vec![say(node, FromCoordinator::SendCopy { key, step, offset })];
        }
        let bytes = self.recalls.remove(&key).map(|recall| recall.bytes).unwrap_or_default();
        let copy = Some(Recalled { node: node.into(), step, bytes });
        vec![CopiesCommand::Recalled { key, copy }]
    }

    /// Time passed.
    pub(super) fn tick(&mut self, now: Now) -> Commands {
        let mut commands = Vec::new();
        self.recalls.retain(|&key, recall| {
            let late = recall.until <= now;
            if late {
                commands.push(CopiesCommand::Recalled { key, copy: None });
            }
            !late
        });
        let old = |since: &Now| now.saturating_sub(*since) >= UNCLAIMED_MAX;
        let unclaimed = self.unclaimed.iter().filter(|(_, since)| old(since));
        let unclaimed: Vec<RequestKey> = unclaimed.map(|(key, _)| *key).collect();
        commands.extend(unclaimed.iter().flat_map(|key| self.ended(key)));
        commands
    }

    /// Sends the newest checkpoint on its way to `nodes`.
    fn begin(&mut self, key: RequestKey, nodes: &[String]) -> Commands {
        let Some(newest) = self.newest.get(&key).filter(|_| !nodes.is_empty()) else {
            return Vec::new();
        };
        let Ok(bytes) = to_bytes(&newest.checkpoint) else { return Vec::new() };
        if bytes.len() as u64 > COPY_BYTES_MAX {
            tracing::debug!(bytes = bytes.len(), "a checkpoint is too large to be copied");
            return Vec::new();
        }
        let (step, bytes) = (newest.step, Arc::new(bytes));
        let mut commands = Vec::new();
        for node in nodes {
            let mut transfer = Transfer { step, bytes: Arc::clone(&bytes), sent: 0 };
            let part = transfer.next_part(key);
            commands.push(say(node, FromCoordinator::HoldCopy(Box::new(part))));
            self.transfers.insert((key, node.clone()), transfer);
        }
        commands
    }

    /// Asks whoever holds most of a request, when that is more than `steps`.
    fn ask(&mut self, key: RequestKey, steps: u32, until: Now) -> Option<Commands> {
        let nodes = self.held.get(&key)?.iter().filter(|(_, step)| **step >= steps);
        let (node, &step) = nodes.max_by_key(|(_, step)| **step)?;
        let order = say(node, FromCoordinator::SendCopy { key, step, offset: 0 });
        let (node, bytes) = (node.clone(), Vec::new());
        self.recalls.insert(key, Recall { node, step, bytes, steps, until });
        Some(vec![order])
    }

    /// The one that was asked has nothing: another one may have.
    fn ask_another(&mut self, key: RequestKey) -> Commands {
        let Some(failed) = self.recalls.remove(&key) else { return Vec::new() };
        if let Some(nodes) = self.held.get_mut(&key) {
            nodes.remove(&failed.node);
        }
        let asked = self.ask(key, failed.steps, failed.until);
        asked.unwrap_or_else(|| vec![CopiesCommand::Recalled { key, copy: None }])
    }
}

impl Transfer {
    fn next_part(&mut self, key: RequestKey) -> CopyPart {
        let part = CopyPart::of(key, self.step, &self.bytes, self.sent);
        self.sent += part.bytes.len() as u64;
        part
    }
}

fn say(node: &str, message: FromCoordinator) -> CopiesCommand {
    CopiesCommand::Say { node: node.into(), message }
}

/// Who holds a request's copies, of the nodes whose agents are there: not the coordinator's, which
/// has the original; first those that did not produce it, of these whoever holds it already.
pub(super) fn holders(
    there: &[String],
    coordinator: &str,
    producers: &BTreeSet<String>,
    key: &RequestKey,
    copies: &Copies,
) -> Vec<String> {
    let mut others: Vec<&String> = there.iter().filter(|node| *node != coordinator).collect();
    if !others.is_empty() {
        // Requests begin at different nodes, or the first two would hold everything.
        let first = (key.number % others.len() as u64) as usize;
        others.rotate_left(first);
    }
    others.sort_by_key(|node| (producers.contains(*node), !copies.is_held_by(key, node)));
    others.into_iter().take(HOLDERS).cloned().collect()
}

#[cfg(test)]
mod tests;

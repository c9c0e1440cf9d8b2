//! What the coordinator takes from one life to the next.
//!
//! Owns the journal, the requests of an earlier life until their clients claim them, what those had
//! reached, and which copies of it agents hold ([`super::copies`]). Without a journal it remembers
//! nothing.
//!
//! Invariant: a request of an earlier life runs whether its client is back or not, but one that
//! nobody claims within [`ORPHAN_MAX`] is cancelled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::copies::{Copies, CopiesCommand};
use super::recovery::Journey;
use crate::checkpoint::{Checkpoint, CheckpointStore};
use crate::dispatcher::RequestId;
use crate::generation::{self, GenerationHandle, UpdateSink};
use crate::journal::Entry;
use crate::journal::keeper::{Journal, Opened, Told};
use crate::manifest::Manifest;
use crate::membership::{Incarnation, Member, Membership, Now};
use crate::protocol::copies::HeldCopy;
use crate::protocol::{DeviceId, RequestKey};
use crate::request::GenerateRequest;

/// Longest time that a request of an earlier life waits for its client.
const ORPHAN_MAX: Duration = Duration::from_secs(60);

/// Requests that were given up whose checkpoints are kept for their clients.
const LEFT_MAX: usize = 64;

/// A request whose client has not come back.
struct Orphan {
    /// Never locked: what it holds must be seen by one thread at a time only.
    handle: Mutex<GenerationHandle>,
    since: Now,
}

/// Requests that are to be submitted once the model is known.
type Early = Vec<(RequestId, GenerateRequest, UpdateSink)>;

/// Checkpoints that nobody has handed on yet.
type Fresh = Arc<Mutex<BTreeMap<RequestKey, Arc<Checkpoint>>>>;

/// The memory.
#[derive(Default)]
pub(super) struct Memory {
    journal: Option<Journal>,
    orphans: BTreeMap<RequestKey, Orphan>,
    /// Requests of an earlier life that are not submitted yet.
    journeys: BTreeMap<RequestId, Journey>,
    /// How long these had waited when this life began.
    waited: BTreeMap<RequestId, Duration>,
    /// Requests of clients that can ask again: the journal names them, if there is one.
    named: BTreeMap<RequestId, RequestKey>,
    pub(super) copies: Copies,
    fresh: Fresh,
    /// What requests had reached that were given up, for clients that ask again, and since when.
    left: BTreeMap<RequestKey, (Now, Arc<Checkpoint>)>,
    /// Requests that have ended and may have copies.
    ended: Vec<RequestKey>,
    /// Epochs that an earlier life may have used.
    pub(super) epochs: u64,
    /// Members as an earlier life knew them.
    pub(super) members: Vec<(Member, Incarnation)>,
    /// Nodes that an earlier life was told are gone for good.
    pub(super) forced: BTreeSet<String>,
}

impl Memory {
    /// With a journal and what it said; what an earlier life had not finished is to be submitted.
    /// `cancel` hears of requests that nobody wants any more.
    pub(super) fn of(
        journal: Option<(Journal, Opened)>,
        now: Now,
        unix_ms: u64,
        next_request: &AtomicU64,
        cancel: impl Fn(RequestId) + Clone + Send + 'static,
    ) -> (Self, Early) {
        let Some((journal, opened)) = journal else { return (Self::default(), Vec::new()) };
        let Opened { remembered, mut checkpoints } = opened;
        let epochs = remembered.epochs;
        let members = remembered.members.into_iter().map(known).collect();
        let forced = remembered.forced;
        let journal = Some(journal);
        let mut memory = Self { journal, epochs, members, forced, ..Self::default() };
        let of_key = remembered.requests.iter().map(|(&id, pending)| (pending.key, id));
        let newest: BTreeMap<_, _> = of_key.collect();
        let (mut early, mut reached) = (Vec::new(), BTreeMap::new());
        for (id, pending) in remembered.requests {
            next_request.fetch_max(id + 1, Ordering::Relaxed);
            let cause = "it was restarted and read its journal";
            let earlier = reached.remove(&pending.key);
            let known = checkpoints.remove(&id).into_iter().chain(earlier);
            let checkpoint = known.max_by_key(|checkpoint| checkpoint.step);
            if newest.get(&pending.key) != Some(&id) {
                // Its client asked again before it was noticed to be cut off; the newer request
                // goes on from what this one had reached.
                reached.extend(checkpoint.map(|checkpoint| (pending.key, checkpoint)));
                if let Some(journal) = &memory.journal {
                    journal.note(Entry::Ended { request: id });
                }
                continue;
            }
            // What had not begun has lost nothing, and gets what it asked for.
            let journey = match (pending.waits_since_ms, checkpoint) {
                (Some(_), None) => Journey::default(),
                (_, checkpoint) => Journey::after_restart(checkpoint, cause),
            };
            tracing::info!(
                request = id,
                steps = journey.steps(),
                "a request outlived its coordinator"
            );
            memory.journeys.insert(id, journey);
            memory.waited.insert(id, pending.waited(unix_ms));
            memory.named.insert(id, pending.key);
            let cancel = cancel.clone();
            let (sink, handle) = generation::channel(move || cancel(id));
            let (since, handle) = (now, Mutex::new(handle));
            memory.orphans.insert(pending.key, Orphan { handle, since });
            early.push((id, *pending.asked, sink));
        }
        (memory, early)
    }

    /// The members of `manifest` as an earlier life knew them, absent.
    pub(super) fn membership(&self, manifest: &Manifest) -> Membership {
        let known = self.members.iter();
        let membership = known.fold(Membership::new(manifest), |membership, (member, life)| {
            membership.knowing(member, *life)
        });
        self.forced.iter().fold(membership, |membership, node| membership.without(node))
    }

    /// A client asks for a request: its handle, when an earlier life had accepted it.
    pub(super) fn claim(&mut self, key: RequestKey) -> Option<GenerationHandle> {
        let orphan = self.orphans.remove(&key)?;
        Some(orphan.handle.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Cancels what nobody has claimed.
    pub(super) fn give_up_orphans(&mut self, now: Now) {
        self.orphans.retain(|key, orphan| {
            let waits = now.saturating_sub(orphan.since) < ORPHAN_MAX;
            if !waits {
                tracing::warn!(?key, "the client of a request did not come back");
            }
            waits
        });
        self.left.retain(|_, (since, _)| now.saturating_sub(*since) < ORPHAN_MAX);
    }

    /// Keeps what a request had reached for a while, in case its client asks again.
    pub(super) fn leave(&mut self, now: Now, key: RequestKey, checkpoint: Arc<Checkpoint>) {
        self.left.insert(key, (now, checkpoint));
        if self.left.len() > LEFT_MAX {
            let oldest = self.left.iter().min_by_key(|(_, (since, _))| *since).map(|(key, _)| *key);
            self.left.remove(&oldest.unwrap_or(key));
        }
    }

    /// A client asks again: its request goes on from what it had reached.
    pub(super) fn take_up(&mut self, key: &RequestKey, id: RequestId) {
        if let Some((_, checkpoint)) = self.left.remove(key) {
            let cause = "its client could not reach it for a while and asked again";
            let journey = Journey::after_restart(Some(Checkpoint::clone(&checkpoint)), cause);
            self.journeys.insert(id, journey);
        }
    }

    /// What a request has behind it.
    pub(super) fn journey_of(&mut self, id: RequestId) -> Journey {
        self.journeys.remove(&id).unwrap_or_default()
    }

    /// How long a request that is submitted now had waited before this life of the coordinator.
    pub(super) fn waited(&mut self, id: RequestId) -> Duration {
        self.waited.remove(&id).unwrap_or_default()
    }

    /// That of a request that is not submitted yet.
    pub(super) fn early_journey(&self, id: RequestId) -> Option<&Journey> {
        self.journeys.get(&id)
    }

    /// As [`Self::early_journey`], to change it.
    pub(super) fn early_journey_mut(&mut self, id: RequestId) -> &mut Journey {
        self.journeys.entry(id).or_default()
    }

    /// Requests that have a key.
    pub(super) fn requests(&self) -> Vec<RequestId> {
        self.named.keys().copied().collect()
    }

    pub(super) fn key_of(&self, id: RequestId) -> Option<RequestKey> {
        self.named.get(&id).copied()
    }

    /// Requests of this key, the newest last: a client that could not reach its first one for a while
    /// has asked again before that was noticed.
    pub(super) fn requests_of(&self, key: &RequestKey) -> Vec<RequestId> {
        self.named.iter().filter(|(_, named)| *named == key).map(|(&id, _)| id).collect()
    }

    /// Remembers a request of `unix_ms` until it ends; `told` when that is on the disk, at once
    /// without a journal.
    pub(super) fn accept(
        &mut self,
        id: RequestId,
        key: RequestKey,
        request: &GenerateRequest,
        unix_ms: u64,
        told: Told,
    ) {
        self.named.insert(id, key);
        let Some(journal) = &self.journal else { return told(Ok(())) };
        let (asked, at_ms) = (Box::new(request.clone()), unix_ms);
        journal.note_and_tell(Entry::Accepted { request: id, key, asked, at_ms }, told);
    }

    /// A request has its result.
    pub(super) fn forget(&mut self, id: RequestId) {
        self.journeys.remove(&id);
        self.waited.remove(&id);
        let Some(key) = self.named.remove(&id) else { return };
        // A client that asked again before its first request was given up needs the copies still.
        if self.requests_of(&key).is_empty() {
            self.ended.push(key);
        }
        if let Some(journal) = &self.journal {
            journal.note(Entry::Ended { request: id });
        }
    }

    /// What to tell the holders of requests that have ended.
    pub(super) fn drop_ended(&mut self) -> Vec<CopiesCommand> {
        let ended = std::mem::take(&mut self.ended);
        ended.iter().flat_map(|key| self.copies.ended(key)).collect()
    }

    /// The agent of a node is back, with these copies.
    pub(super) fn copies_returned(&mut self, now: Now, node: &str, held: &[HeldCopy]) {
        let named = &self.named;
        let is_open = |key: &RequestKey| named.values().any(|known| known == key);
        self.copies.returned(now, node, held, is_open);
    }

    /// The newest checkpoint of a request that nobody has handed on.
    pub(super) fn fresh(&self, key: &RequestKey) -> Option<Arc<Checkpoint>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner).remove(key)
    }

    /// Where the checkpoints of a run go; `told` when there is one that nobody has handed on.
    pub(super) fn store_for(
        &self,
        requests: &[RequestId],
        told: impl Fn(RequestKey) + Send + Sync + 'static,
    ) -> CheckpointStore {
        let keys: Vec<_> = requests.iter().map(|&id| (id, self.key_of(id))).collect();
        if keys.iter().all(|(_, key)| key.is_none()) {
            return CheckpointStore::default();
        }
        let (journal, fresh) = (self.journal.clone(), self.fresh.clone());
        CheckpointStore::that_tells(Box::new(move |checkpoint| {
            for (index, &(request, key)) in keys.iter().enumerate() {
                let own = match checkpoint.images {
                    1 => Some(checkpoint.clone()),
                    _ => checkpoint.of_image(index).map(Arc::new),
                };
                let Some(own) = own else { continue };
                if let Some(journal) = &journal {
                    journal.keep(request, own.clone());
                }
                let Some(key) = key else { continue };
                let waiting = &mut *fresh.lock().unwrap_or_else(PoisonError::into_inner);
                if waiting.insert(key, own).is_none() {
                    told(key);
                }
            }
        }))
    }

    /// Remembers that a run of a request begins.
    pub(super) fn note_begun(&self, id: RequestId) {
        if let Some(journal) = self.journal.as_ref().filter(|_| self.named.contains_key(&id)) {
            journal.note(Entry::Begun { request: id });
        }
    }

    /// Notes a member's newest life.
    pub(super) fn note_member(&self, member: &Member, incarnation: Incarnation) {
        if let Some(journal) = &self.journal {
            let (node, device) = match member {
                Member::Agent(node) => (node.clone(), None),
                Member::Worker(device) => (device.node.clone(), Some(device.index)),
            };
            journal.note(Entry::Member { node, device, incarnation: incarnation.0 });
        }
    }

    /// Remembers, before anybody is told so, that a node is gone for good, or has joined anew.
    pub(super) fn note_forced(&self, node: &str, gone: bool) {
        if let Some(journal) = &self.journal {
            journal.note(Entry::Forced { node: node.into(), gone });
            journal.sync();
        }
    }

    /// Makes sure that no later life uses `epoch` again.
    pub(super) fn reserve_epoch(&self, epoch: u64) {
        if let Some(journal) = &self.journal {
            journal.reserve(epoch);
        }
    }
}

fn known(((node, device), incarnation): ((String, Option<u32>), u64)) -> (Member, Incarnation) {
    let member = match device {
        None => Member::Agent(node),
        Some(index) => Member::Worker(DeviceId { node, index }),
    };
    (member, Incarnation(incarnation))
}

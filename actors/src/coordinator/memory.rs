//! What the coordinator takes from one life to the next.
//!
//! Owns the journal, the requests of an earlier life until their clients claim them, and what those
//! had reached. Without a journal it remembers nothing.
//!
//! Invariant: a request of an earlier life runs whether its client is back or not, but one that
//! nobody claims within [`ORPHAN_MAX`] is cancelled.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ractor::ActorRef;

use super::recovery::Journey;
use super::{CoordinatorMsg, State};
use crate::checkpoint::CheckpointStore;
use crate::dispatcher::RequestId;
use crate::generation::{self, GenerationHandle, UpdateSink};
use crate::journal::Entry;
use crate::journal::keeper::{Journal, Opened};
use crate::membership::{Incarnation, Member};
use crate::protocol::{DeviceId, RequestKey};
use crate::request::GenerateRequest;

/// Longest time that a request of an earlier life waits for its client.
const ORPHAN_MAX: Duration = Duration::from_secs(60);

/// A request whose client has not come back.
struct Orphan {
    /// Never locked: what it holds must be seen by one thread at a time only.
    handle: Mutex<GenerationHandle>,
    since: Instant,
}

/// Requests that are to be submitted once the model is known.
type Early = Vec<(RequestId, GenerateRequest, UpdateSink)>;

/// The memory.
#[derive(Default)]
pub(super) struct Memory {
    journal: Option<Journal>,
    orphans: BTreeMap<RequestKey, Orphan>,
    /// Requests of an earlier life that are not submitted yet.
    journeys: BTreeMap<RequestId, Journey>,
    /// Requests that the journal names.
    named: BTreeMap<RequestId, RequestKey>,
    /// Epochs that an earlier life may have used.
    pub(super) epochs: u64,
    /// Members as an earlier life knew them.
    pub(super) members: Vec<(Member, Incarnation)>,
}

impl Memory {
    /// Opens the journal in `folder`; what an earlier life had not finished is to be submitted.
    pub(super) fn open(
        folder: Option<&Path>,
        myself: &ActorRef<CoordinatorMsg>,
        next_request: &AtomicU64,
    ) -> (Self, Early) {
        let Some(folder) = folder else { return (Self::default(), Vec::new()) };
        let (journal, opened) = match Journal::open(folder) {
            Ok((journal, opened)) => (Some(journal), opened),
            Err(error) => {
                let path = folder.display();
                tracing::error!(%path, %error, "no journal: a restart will remember nothing");
                (None, Opened::default())
            }
        };
        let Opened { remembered, mut checkpoints } = opened;
        let epochs = remembered.epochs;
        let members = remembered.members.into_iter().map(known).collect();
        let mut memory = Self { journal, epochs, members, ..Self::default() };
        let mut early = Vec::new();
        for (id, pending) in remembered.requests {
            next_request.fetch_max(id + 1, Ordering::Relaxed);
            let journey = Journey::after_restart(checkpoints.remove(&id));
            tracing::info!(
                request = id,
                steps = journey.steps(),
                "a request outlived its coordinator"
            );
            memory.journeys.insert(id, journey);
            memory.named.insert(id, pending.key);
            let canceller = myself.clone();
            let (sink, handle) = generation::channel(move || {
                // A coordinator that has ended has cancelled everything.
                let _ = canceller.cast(CoordinatorMsg::Cancel(id));
            });
            let since = Instant::now();
            let handle = Mutex::new(handle);
            memory.orphans.insert(pending.key, Orphan { handle, since });
            early.push((id, *pending.asked, sink));
        }
        (memory, early)
    }

    /// A client asks for a request: its handle, when an earlier life had accepted it.
    pub(super) fn claim(&mut self, key: RequestKey) -> Option<GenerationHandle> {
        let orphan = self.orphans.remove(&key)?;
        Some(orphan.handle.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Cancels what nobody has claimed.
    pub(super) fn give_up_orphans(&mut self) {
        self.orphans.retain(|key, orphan| {
            let waits = orphan.since.elapsed() < ORPHAN_MAX;
            if !waits {
                tracing::warn!(?key, "the client of a request did not come back");
            }
            waits
        });
    }

    /// What a request has behind it.
    pub(super) fn journey_of(&mut self, id: RequestId) -> Journey {
        self.journeys.remove(&id).unwrap_or_default()
    }

    /// A request has its result.
    pub(super) fn forget(&mut self, id: RequestId) {
        if let (Some(_), Some(journal)) = (self.named.remove(&id), &self.journal) {
            journal.note(Entry::Ended { request: id });
        }
    }

    /// Where the checkpoints of a run go.
    pub(super) fn store_for(&self, requests: &[RequestId]) -> CheckpointStore {
        let Some(journal) = self.journal.clone() else { return CheckpointStore::default() };
        let requests = requests.to_vec();
        CheckpointStore::that_tells(Box::new(move |checkpoint| {
            for (index, &request) in requests.iter().enumerate() {
                let own = match checkpoint.images {
                    1 => Some(checkpoint.clone()),
                    _ => checkpoint.of_image(index).map(Arc::new),
                };
                if let Some(own) = own {
                    journal.keep(request, own);
                }
            }
        }))
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

impl State {
    /// Remembers a request until it ends.
    pub(super) fn remember(&mut self, id: RequestId, key: RequestKey, request: &GenerateRequest) {
        if let Some(journal) = &self.memory.journal {
            self.memory.named.insert(id, key);
            let asked = Box::new(request.clone());
            journal.note(Entry::Accepted { request: id, key, asked });
        }
    }
}

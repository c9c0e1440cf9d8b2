//! Requests of clients on their way into the journal.
//!
//! Owns those that are not accepted yet, and what becomes of one that its client asks for again: a
//! client hears of its request only once the journal has it on the disk, or that it has not.
//! Nothing else waits for that.
//!
//! Invariant: a request is here, in the queue or ended; one that is cancelled here is never queued.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::ActorRef;

use super::advance::Step;
use super::desk::Desk;
use super::{CoordinatorMsg, State};
use crate::agent::node_agent::unix_ms;
use crate::dispatcher::{QUEUE_REQUESTS_MAX, RequestId};
use crate::generation::{GenerateError, UpdateSink};
use crate::journal::keeper::Told;
use crate::membership::Now;
use crate::protocol::RequestKey;
use crate::request::GenerateRequest;

/// Longest wait for the disk.
const WRITTEN_DEADLINE: Duration = Duration::from_secs(30);

/// Requests that are being written down.
#[derive(Default)]
pub(super) struct Acceptance {
    waiting: BTreeMap<RequestId, Waiting>,
}

struct Waiting {
    request: Box<GenerateRequest>,
    sink: UpdateSink,
    since: Instant,
}

impl State {
    /// Has a request of a client written down; it is queued after that.
    pub(super) fn accept(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        key: RequestKey,
        id: RequestId,
        request: Box<GenerateRequest>,
        sink: UpdateSink,
    ) {
        if self.acceptance.waiting.len() >= QUEUE_REQUESTS_MAX {
            return sink.result(Err(not_accepted("too many wait for it already")));
        }
        let coordinator = myself.clone();
        let told = Box::new(move |outcome| {
            // A coordinator that has ended accepts nothing.
            let _ = coordinator.cast(CoordinatorMsg::Written(id, outcome));
        });
        self.desk.accept(self.now(), unix_ms(), key, id, &request, told);
        let since = Instant::now();
        self.acceptance.waiting.insert(id, Waiting { request, sink, since });
    }

    /// A request is on the disk, or will not be.
    pub(super) async fn written(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        id: RequestId,
        outcome: Result<(), String>,
    ) {
        let Some(Waiting { request, sink, .. }) = self.acceptance.waiting.remove(&id) else {
            return;
        };
        match outcome {
            Ok(()) => {
                self.advance(myself, Step::Recall(id)).await;
                self.submit(myself, id, *request, sink).await;
            }
            Err(cause) => {
                self.desk.memory.forget(id);
                sink.result(Err(not_accepted(&cause)));
            }
        }
    }

    /// Ends a request that waits for the disk without a picture; nothing for one that does not.
    pub(super) fn withdraw(&mut self, id: RequestId, error: GenerateError) {
        if let Some(waiting) = self.acceptance.waiting.remove(&id) {
            self.desk.memory.forget(id);
            waiting.sink.result(Err(error));
        }
    }

    /// Gives up what the disk does not take in time.
    pub(super) fn stop_awaiting_disk(&mut self) {
        let late = |waiting: &Waiting| waiting.since.elapsed() >= WRITTEN_DEADLINE;
        let waiting = self.acceptance.waiting.iter().filter(|(_, waiting)| late(waiting));
        let late: Vec<RequestId> = waiting.map(|(&id, _)| id).collect();
        for id in late {
            let seconds = WRITTEN_DEADLINE.as_secs();
            self.withdraw(id, not_accepted(&format!("the disk did not answer for {seconds} s")));
        }
    }

    /// Ends all that wait for the disk.
    pub(super) fn withdraw_all(&mut self, error: &GenerateError) {
        let ids: Vec<RequestId> = self.acceptance.waiting.keys().copied().collect();
        ids.into_iter().for_each(|id| self.withdraw(id, error.clone()));
    }
}

impl Desk {
    /// Has a request of a client written down, which goes on from what it had reached when it was
    /// asked before.
    pub(super) fn accept(
        &mut self,
        now: Now,
        unix_ms: u64,
        key: RequestKey,
        id: RequestId,
        request: &GenerateRequest,
        told: Told,
    ) {
        // It may ask anew before it is noticed that it was gone.
        for before in self.memory.requests_of(&key) {
            self.leave_behind(now, before);
        }
        self.memory.take_up(&key, id);
        self.memory.accept(id, key, request, unix_ms, told);
    }

    /// A request is given up, perhaps since the way to its client is lost: keeps what it had
    /// reached.
    pub(super) fn leave_behind(&mut self, now: Now, id: RequestId) {
        let (Some(key), Some(request)) = (self.memory.key_of(id), self.requests.get(&id)) else {
            return;
        };
        let run = request.run.and_then(|run| self.runs.get(&run));
        let reached = run.and_then(|run| {
            let image = run.drawn().iter().position(|drawn| *drawn == id)?;
            run.newest_checkpoint()?.of_image(image).map(Arc::new)
        });
        if let Some(checkpoint) = reached.or_else(|| request.journey.checkpoint.clone()) {
            self.memory.leave(now, key, checkpoint);
        }
    }
}

fn not_accepted(cause: &str) -> GenerateError {
    GenerateError::NotAccepted(format!(
        "the coordinator cannot write the request to its journal: {cause}; see to the disk of its \
         state folder and ask again"
    ))
}

#[cfg(test)]
mod tests;

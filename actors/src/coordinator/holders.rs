//! Copies of checkpoints between the coordinator and the agents that hold them.
//!
//! Owns which requests want a copy back from whom ([`super::copies`]): those that wait, when an agent
//! holds a later step than is here; and what a request has when it is back.

use std::collections::BTreeSet;

use ractor::ActorRef;

use super::advance::Step;
use super::copies::{self, CopiesCommand, Recalled};
use super::desk::Desk;
use super::recovery::Journey;
use super::{CoordinatorMsg, State};
use crate::dispatcher::{Need, RequestId};
use crate::journal::file;
use crate::membership::Now;
use crate::protocol::RequestKey;

impl State {
    /// A checkpoint is complete: its copies go to whoever is to hold them.
    pub(super) async fn checkpointed(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        key: RequestKey,
    ) {
        let commands = self.desk.hand_on(&key);
        self.advance(myself, Step::Copies(commands)).await;
    }

    /// Tells the holders of requests that have ended.
    pub(super) async fn drop_copies(&mut self, myself: &ActorRef<CoordinatorMsg>) {
        let commands = self.desk.memory.drop_ended();
        if !commands.is_empty() {
            self.advance(myself, Step::Copies(commands)).await;
        }
    }
}

impl Desk {
    /// Hands a request's newest checkpoint on.
    pub(super) fn hand_on(&mut self, key: &RequestKey) -> Vec<CopiesCommand> {
        let Some(checkpoint) = self.memory.fresh(key) else { return Vec::new() };
        // One that has ended meanwhile has no run.
        let requests = self.memory.requests_of(key).into_iter();
        let mut runs = requests.filter_map(|id| self.runs.get(&self.requests.get(&id)?.run?));
        let Some(run) = runs.next_back() else { return Vec::new() };
        let producers: BTreeSet<String> =
            run.producers().map(|device| device.node.clone()).collect();
        let mut there = self.membership.nodes_there();
        there.retain(|node| !self.membership.is_leaving(node));
        let holders = copies::holders(&there, &self.host, &producers, key, &self.memory.copies);
        self.memory.copies.hand_on(*key, checkpoint, holders)
    }

    /// Asks back the copy of a request that waits, when it holds more than is here.
    pub(super) fn recall(&mut self, now: Now, request: RequestId) -> Vec<CopiesCommand> {
        let Some(key) = self.memory.key_of(request) else { return Vec::new() };
        let steps = match self.requests.get(&request) {
            Some(known) if known.run.is_some() => return Vec::new(),
            Some(known) => known.journey.steps(),
            None => self.memory.early_journey(request).map_or(0, Journey::steps),
        };
        self.memory.copies.recall(now, key, steps)
    }

    /// What was asked back is here, or will not come: which requests can be started, and what each
    /// needs when that has changed.
    pub(super) fn recalled(
        &mut self,
        key: &RequestKey,
        copy: Option<&Recalled>,
    ) -> Vec<(RequestId, Option<Need>)> {
        let requests = self.memory.requests_of(key).into_iter();
        let released = requests.map(|request| {
            let taken = copy.is_some_and(|copy| self.take_copy(request, copy));
            (request, if taken { self.need_of(request) } else { None })
        });
        released.collect()
    }

    /// A request goes on from a copy; false when that is not one.
    fn take_copy(&mut self, request: RequestId, copy: &Recalled) -> bool {
        let Recalled { node, step, bytes } = copy;
        let whole = file::from_bytes(bytes)
            .filter(|checkpoint| (checkpoint.step as u32, checkpoint.images) == (*step, 1));
        let Some(checkpoint) = whole else {
            tracing::warn!(request, node, "a copy of a checkpoint is damaged");
            return false;
        };
        tracing::info!(request, node, step, "a checkpoint came back from the node that held it");
        let journey = match self.requests.get_mut(&request) {
            // It did not wait for the copy.
            Some(known) if known.run.is_some() => return false,
            Some(known) => &mut known.journey,
            None => self.memory.early_journey_mut(request),
        };
        let earlier = std::mem::take(journey);
        *journey = Journey::recalled(earlier, checkpoint, node);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::memory::Memory;
    use crate::manifest::Manifest;
    use crate::request::{GenerateRequest, ModelSource};

    /// Else the second one would be withheld for ever, and everything behind it.
    #[test]
    fn a_copy_that_does_not_come_back_releases_both_requests_of_a_client_that_asked_again() {
        let manifest = Manifest::in_process(ModelSource::Builtin, 1, 1);
        let mut desk = Desk::new(&manifest, Memory::default());
        let key = RequestKey { client: 1, number: 7 };
        for id in [3, 4] {
            let request = GenerateRequest::new("a red apple");
            desk.accept(Now::ZERO, 0, key, id, &request, Box::new(|_| {}));
        }
        assert_eq!(desk.recalled(&key, None), [(3, None), (4, None)]);
    }
}

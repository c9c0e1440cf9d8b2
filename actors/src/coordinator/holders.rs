//! Copies of checkpoints between the coordinator and the agents that hold them.
//!
//! Owns what is done about the engine's commands ([`super::copies`]), and which requests want a
//! copy back: those that wait, when an agent holds a later step than is here.

use std::collections::BTreeSet;

use ractor::ActorRef;

use super::copies::{self, CopiesCommand, Recalled};
use super::recovery::Journey;
use super::{CoordinatorMsg, State};
use crate::dispatcher::{DispatcherEvent, RequestId};
use crate::journal::file;
use crate::membership::Member;
use crate::protocol::{RequestKey, ToCoordinator};

impl State {
    /// A checkpoint is complete: its copies go to whoever is to hold them.
    pub(super) async fn checkpointed(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        key: RequestKey,
    ) {
        let Some(checkpoint) = self.memory.fresh(&key) else { return };
        // One that has ended meanwhile has no run.
        let request = self.memory.request_of(&key).and_then(|id| self.requests.get(&id));
        let run = request.and_then(|request| self.runs.get(&request.run?));
        let Some(run) = run else { return };
        let producers: BTreeSet<String> =
            run.producers().map(|device| device.node.clone()).collect();
        let mut there = self.membership.nodes_there();
        there.retain(|node| !self.membership.is_leaving(node));
        let coordinator = self.manifest.coordinator_node();
        let holders = copies::holders(&there, coordinator, &producers, &key, &self.memory.copies);
        let commands = self.memory.copies.hand_on(key, checkpoint, holders);
        self.carry_out_copies(myself, commands).await;
    }

    /// An agent says something about copies.
    pub(super) async fn about_copies(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        node: &str,
        message: ToCoordinator,
    ) {
        let now = self.now();
        let commands = match message {
            ToCoordinator::CopiesHeld(held) => {
                self.memory.copies_returned(now, node, &held);
                return self.recall_all(myself).await;
            }
            ToCoordinator::CopyTaken { key, step, bytes } => {
                self.memory.copies.taken(node, key, step, bytes)
            }
            ToCoordinator::CopyPart(part) => self.memory.copies.part(node, *part),
            message => return tracing::warn!(node, ?message, "unexpected message"),
        };
        self.carry_out_copies(myself, commands).await;
    }

    /// A node's agent is gone, and its copies with it.
    pub(super) async fn holder_gone(&mut self, myself: &ActorRef<CoordinatorMsg>, node: &str) {
        let commands = self.memory.copies.node_gone(node);
        self.carry_out_copies(myself, commands).await;
    }

    /// Gives up copies that do not come back, and drops those of requests that have ended.
    pub(super) async fn tend_copies(&mut self, myself: &ActorRef<CoordinatorMsg>) {
        let now = self.now();
        let commands = self.memory.copies.tick(now);
        self.carry_out_copies(myself, commands).await;
    }

    /// Tells the holders of requests that have ended.
    pub(super) async fn drop_copies(&mut self, myself: &ActorRef<CoordinatorMsg>) {
        let commands = self.memory.drop_ended();
        self.carry_out_copies(myself, commands).await;
    }

    async fn recall_all(&mut self, myself: &ActorRef<CoordinatorMsg>) {
        for request in self.memory.requests() {
            self.recall(myself, request).await;
        }
    }

    /// Asks back the copy of a request that waits, when it holds more than is here. The request is
    /// not started meanwhile.
    pub(super) async fn recall(&mut self, myself: &ActorRef<CoordinatorMsg>, request: RequestId) {
        let Some(key) = self.memory.key_of(request) else { return };
        let steps = match self.requests.get(&request) {
            Some(known) if known.run.is_some() => return,
            Some(known) => known.journey.steps(),
            None => self.memory.early_journey(request).map_or(0, |journey| journey.steps()),
        };
        let now = self.now();
        let commands = self.memory.copies.recall(now, key, steps);
        if commands.is_empty() {
            return;
        }
        self.dispatch(myself, DispatcherEvent::Withheld { request }).await;
        self.carry_out_copies(myself, commands).await;
    }

    async fn carry_out_copies(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        commands: Vec<CopiesCommand>,
    ) {
        for command in commands {
            match command {
                CopiesCommand::Say { node, message } => {
                    // One that has gone is reported gone.
                    if let Some(session) = self.sessions.get(&Member::Agent(node)) {
                        session.handle.send(message);
                    }
                }
                CopiesCommand::Recalled { key, copy } => self.recalled(myself, key, copy).await,
            }
        }
    }

    async fn recalled(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        key: RequestKey,
        copy: Option<Recalled>,
    ) {
        let Some(request) = self.memory.request_of(&key) else { return };
        let taken = copy.is_some_and(|copy| self.take_copy(request, &copy));
        let need = if taken { self.need_of(request) } else { None };
        self.dispatch(myself, DispatcherEvent::Released { request, need }).await;
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
            Some(known) => &mut known.journey,
            None => self.memory.early_journey_mut(request),
        };
        let earlier = std::mem::take(journey);
        *journey = Journey::recalled(earlier, checkpoint, node);
        true
    }
}

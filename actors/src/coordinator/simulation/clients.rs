//! Clients: they ask, some until a deadline of their own, ask again when they hear nothing, lose
//! their connections, and may give up.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ms;
use super::runs::spec;
use super::world::{FAULTS_END, Wake, World};
use crate::coordinator::advance::{Hands, Step};
use crate::coordinator::recovery::FRUITLESS_LOSSES_MAX;
use crate::dispatcher::{DispatcherCommand, DispatcherEvent, MeshNeed, Need, ReplicaId, RequestId};
use crate::generation::{self, GenerationHandle, Update, UpdateSink};
use crate::membership::Now;
use crate::protocol::RequestKey;
use crate::request::GenerateRequest;

/// Until a client asks again.
const ASK_AGAIN: Now = ms(500);

/// A client's request at this life of the coordinator, as the client has it.
pub(super) struct Caller {
    request: RequestId,
    handle: GenerationHandle,
}

/// A request that waits for its turn.
#[derive(Clone, Copy)]
pub(super) struct Wait {
    since: Now,
    deadline: Duration,
}

fn key_of(client: u64) -> RequestKey {
    RequestKey { client, number: client }
}

impl World {
    /// A client asks, unless it has its answer or waits for one.
    pub(super) fn ask(&mut self, client: u64) {
        if self.watch.is_answered(client) {
            return;
        }
        self.at(ASK_AGAIN, Wake::Ask(client));
        let loses_its_connection = self.now < FAULTS_END && self.dice.roll(25) == 0;
        let (now, unix_ms) = (self.now, self.now.as_millis() as u64);
        let deadline_s = self.deadlines.get(&client).copied();
        let Some(coordinator) = &mut self.coordinator else { return };
        if coordinator.callers.contains_key(&client) && !loses_its_connection {
            return;
        }
        let key = key_of(client);
        let before = coordinator.callers.remove(&client);
        if let Some(handle) = coordinator.desk.memory.claim(key) {
            let request =
                coordinator.desk.memory.requests_of(&key).last().copied().unwrap_or_default();
            coordinator.callers.insert(client, Caller { request, handle });
            return self.attend_to_all();
        }
        let id = coordinator.next_request;
        coordinator.next_request += 1;
        let dropped = coordinator.dropped.clone();
        let (sink, handle) = generation::channel(move || dropped.put(id));
        let request = GenerateRequest { deadline_s, ..GenerateRequest::new("a") };
        let before_it = coordinator.desk.memory.requests_of(&key);
        let reached = before_it.iter().filter_map(|id| self.reached.get(id)).max().copied();
        self.reached.extend(reached.map(|steps| (id, steps)));
        coordinator.desk.accept(now, unix_ms, key, id, &request, Box::new(|_| {}));
        coordinator.callers.insert(client, Caller { request: id, handle });
        let life = coordinator.number;
        if before.is_some() {
            self.note(|| format!("client {client} has lost its connection and asks anew"));
        }
        let after = self.dice.between(0, 20);
        self.at(after, Wake::Written { life, id, request: Box::new(request), sink });
        if let Some(Caller { handle, .. }) = before {
            // It is noticed now, or later, that the connection is gone.
            let after = self.dice.between(0, 400);
            self.at(after, Wake::Hangup(handle));
        }
        self.attend_to_all();
    }

    /// A request is on the disk.
    pub(super) fn written(
        &mut self,
        life: u64,
        id: RequestId,
        request: GenerateRequest,
        sink: UpdateSink,
    ) {
        let current = self.coordinator.as_ref().filter(|current| current.number == life);
        // One that was cancelled meanwhile is never queued.
        if current.is_some_and(|current| current.desk.memory.key_of(id).is_some()) {
            self.advance(Step::Recall(id));
            self.submit(id, request, sink);
        }
    }

    /// Queues a request.
    pub(super) fn submit(&mut self, id: RequestId, request: GenerateRequest, sink: UpdateSink) {
        let Some(coordinator) = &mut self.coordinator else { return };
        let client = coordinator.desk.memory.key_of(id).map_or(0, |key| key.client);
        let named = self.named.get(&client);
        let mesh = named.map_or(MeshNeed::Open { guided: true }, |&d| MeshNeed::Exactly(d));
        let asked = (spec(), mesh, 0);
        let span = tracing::Span::none();
        let submitted = coordinator.desk.take_in(id, request, asked, sink, span);
        self.advance(Step::Dispatcher(submitted));
    }

    /// Looks for what callers were told.
    pub(super) fn hear_results(&mut self) {
        let Some(coordinator) = &mut self.coordinator else { return };
        let mut answers = Vec::new();
        for (&client, caller) in &mut coordinator.callers {
            while let Some(update) = caller.handle.try_next() {
                if let Update::Result(outcome) = update {
                    let outcome = outcome.map(|_| ()).map_err(|error| error.to_string());
                    answers.push((client, caller.request, outcome));
                }
            }
        }
        let life = coordinator.number;
        for (client, id, outcome) in answers {
            self.note(|| format!("request {id} of client {client} ends: {outcome:?}"));
            let after = self.dice.between(1, 5);
            self.at(after, Wake::Answer { client, life, request: id, outcome });
        }
    }

    /// A result reaches its client, if the connection it goes over still stands.
    pub(super) fn answer(
        &mut self,
        client: u64,
        life: u64,
        request: RequestId,
        outcome: Result<(), String>,
    ) {
        let current = self.coordinator.as_ref().filter(|current| current.number == life);
        let caller = current.and_then(|current| current.callers.get(&client));
        if caller.is_some_and(|caller| caller.request == request) {
            self.watch.answer(client, outcome);
        }
    }

    /// Follows which requests wait for their turns, since when, and for how long they may.
    pub(super) fn follow_waits(&mut self, event: &DispatcherEvent, said: &[DispatcherCommand]) {
        let now = self.now;
        match event {
            DispatcherEvent::Submitted { request, deadline: Some(deadline), .. } => {
                // One that had begun waits anew, others since they were asked for.
                let pending = self.remembered.requests.get(request);
                let asked_ms = pending.and_then(|pending| pending.waits_since_ms);
                let since = asked_ms.map_or(now, Duration::from_millis);
                self.waits.insert(*request, Wait { since, deadline: *deadline });
            }
            DispatcherEvent::ReplicaLost { going_on, .. } => {
                for (id, _) in going_on {
                    let client = self.desk().memory.key_of(*id).map_or(0, |key| key.client);
                    if let Some(&seconds) = self.deadlines.get(&client) {
                        let deadline = Duration::from_secs(seconds.into());
                        self.waits.insert(*id, Wait { since: now, deadline });
                    }
                }
            }
            DispatcherEvent::Cancelled { request } => {
                self.waits.remove(request);
            }
            _ => {}
        }
        for command in said {
            match command {
                DispatcherCommand::Start { requests, .. } => {
                    self.waits.retain(|id, _| !requests.contains(id));
                }
                DispatcherCommand::Fail { request, .. } => {
                    self.waits.remove(request);
                }
                _ => {}
            }
        }
    }

    /// Looks whether requests that wait have their end when their deadlines are over.
    pub(super) fn check_deadlines(&mut self) {
        for (id, wait) in &self.waits {
            let Wait { since, deadline } = *wait;
            self.watch.expires(since + deadline, self.now, format_args!("request {id}"));
        }
    }

    /// Notes how often requests are lost without a step between: they are given up then.
    pub(super) fn count_losses(&mut self, replica: ReplicaId, going_on: &[(RequestId, Need)]) {
        let Some(coordinator) = &self.coordinator else { return };
        let under_way = coordinator.desk.dispatcher.under_way();
        let lost = under_way.into_iter().filter(|(_, epoch, _)| *epoch == replica);
        let kept: BTreeMap<RequestId, usize> =
            self.checkpoints.iter().map(|(&id, checkpoint)| (id, checkpoint.step + 1)).collect();
        for (id, ..) in lost {
            let steps = kept.get(&id).copied().unwrap_or(0);
            let (at, times) = self.losses.entry(id).or_default();
            *times = if steps > *at { 1 } else { *times + 1 };
            *at = steps;
            if *times >= FRUITLESS_LOSSES_MAX && going_on.iter().all(|(other, _)| *other != id) {
                let key = coordinator.desk.memory.key_of(id);
                self.watch.may_be_lost(key.map_or(0, |key| key.client));
            }
        }
    }

    /// A client gives up; whether the coordinator hears of it or not, it has its end.
    pub(super) fn cancel(&mut self, client: u64) {
        if self.watch.is_answered(client) {
            return;
        }
        self.watch.cancels(client);
        self.watch.answer(client, Err("given up".into()));
        if let Some(coordinator) = &mut self.coordinator {
            drop(coordinator.callers.remove(&client));
        }
        self.attend_to_all();
    }
}

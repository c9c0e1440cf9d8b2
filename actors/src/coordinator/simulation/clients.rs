//! Clients: they ask, some until a deadline of their own, ask again when they hear nothing, and may
//! give up.

use std::time::Duration;

use super::Sabotage;
use super::copies::key_of;
use super::desk::{ASK_AGAIN, OPEN, Request, need};
use super::world::{Wake, World};
use crate::coordinator::advance::Step;
use crate::dispatcher::{DispatcherEvent, MeshNeed, Need};
use crate::journal::Entry;
use crate::request::GenerateRequest;

impl World {
    pub(super) fn end_request(&mut self, id: u64, outcome: Result<(), String>) {
        let Some(desk) = &mut self.desk else { return };
        let Some(request) = desk.requests.remove(&id) else { return self.watch.ended_again(id) };
        let (client, desk_number) = (request.client, desk.number);
        desk.answered.insert(client);
        self.note(|| format!("request {id} of client {client} ends: {outcome:?}"));
        self.watch.ended(desk_number, id);
        if !self.is(Sabotage::ForgetEnds) {
            self.journal.push(Entry::Ended { request: id });
        }
        if let Some(desk) = &mut self.desk {
            let told = desk.copies.ended(&key_of(client));
            self.carry_out_copies(told);
        }
        let after = self.dice.between(1, 5);
        self.at(after, Wake::Answer { client, desk: desk_number, outcome });
    }

    /// A result reaches its client, if the connection it goes over still stands.
    pub(super) fn answer(&mut self, client: u64, desk: u64, outcome: Result<(), String>) {
        if self.desk.as_ref().is_some_and(|current| current.number == desk) {
            self.watch.answer(client, outcome);
        }
    }

    pub(super) fn ask(&mut self, client: u64) {
        if self.watch.is_answered(client) {
            return;
        }
        self.at(ASK_AGAIN, Wake::Ask(client));
        let Some(desk) = &mut self.desk else { return };
        let known = desk.requests.values().any(|request| request.client == client);
        if known || desk.answered.contains(&client) {
            return;
        }
        let id = desk.next_request;
        desk.next_request += 1;
        let key = key_of(client);
        let deadline_s = self.deadlines.get(&client).copied();
        let asked = Box::new(GenerateRequest { deadline_s, ..GenerateRequest::new("a") });
        let at_ms = self.now.as_millis() as u64;
        self.journal.push(Entry::Accepted { request: id, key, asked, at_ms });
        self.recall(id, client, 0);
        self.admit(id, client, 0, Some(Duration::ZERO));
    }

    /// Queues a request, which has `waited` for its turn, or had one in another life.
    pub(super) fn admit(&mut self, id: u64, client: u64, steps: u32, waited: Option<Duration>) {
        let named = self.named.get(&client).filter(|_| waited.is_some());
        let mesh = named.map_or(OPEN, |&degrees| MeshNeed::Exactly(degrees));
        let waited = waited.unwrap_or_default();
        let waits_since = self.now.saturating_sub(waited);
        let deadline_s = self.deadlines.get(&client).copied();
        let Some(desk) = &mut self.desk else { return };
        desk.requests.insert(id, Request { client, run: None, steps, waits_since });
        let deadline = deadline_s.map(|seconds| Duration::from_secs(seconds.into()));
        let (request, need) = (id, Need { mesh, ..need(steps) });
        let submitted = DispatcherEvent::Submitted { request, need, deadline, waited };
        self.advance(Step::Dispatcher(submitted));
    }

    /// Looks whether requests that wait have their end when their deadlines are over.
    pub(super) fn check_deadlines(&mut self) {
        let Some(desk) = &self.desk else { return };
        for (id, request) in &desk.requests {
            if let Some(seconds) = self.deadlines.get(&request.client)
                && request.run.is_none()
            {
                let deadline = request.waits_since + Duration::from_secs(u64::from(*seconds));
                self.watch.expires(deadline, self.now, format!("request {id}"));
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
        let Some(desk) = &self.desk else { return };
        let request = desk.requests.iter().find(|(_, request)| request.client == client);
        if let Some((&request, _)) = request {
            self.advance(Step::Dispatcher(DispatcherEvent::Cancelled { request }));
        }
    }
}

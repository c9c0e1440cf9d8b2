//! Every request ends exactly once, whichever lives of the coordinator it sees: what has a result
//! is not drawn again by the next life, and no client that got an answer gets another.

use super::Watch;

pub(in super::super) const NAME: &str = "ends once";

impl Watch {
    /// A life of the coordinator ends a request.
    pub(in super::super) fn ended(&mut self, life: u64, request: u64) {
        if let Some(before) = self.results.insert(request, life) {
            let lives = format!("lives {before} and {life} of the coordinator");
            self.broken(NAME, format!("request {request} has results of {lives}"));
        }
    }

    /// A client gets its answer; one that has given up does not listen any more.
    pub(in super::super) fn answer(&mut self, client: u64, outcome: Result<(), String>) {
        let answers = self.answers.entry(client).or_default();
        answers.push(outcome);
        if answers.len() > 1 && !self.cancelled.contains(&client) {
            self.broken(NAME, format!("client {client} is answered again"));
        }
    }
}

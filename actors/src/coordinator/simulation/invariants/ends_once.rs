//! Every request ends exactly once: a client gets one answer, and no life of the coordinator gives two.

use super::Watch;

pub(in super::super) const NAME: &str = "ends once";

impl Watch {
    /// A life of the coordinator ends a request.
    pub(in super::super) fn ended(&mut self, desk: u64, request: u64) {
        let results = self.results.entry((desk, request)).or_default();
        *results += 1;
        if *results > 1 {
            let count = *results;
            self.broken(NAME, format!("request {request} has {count} results"));
        }
    }

    /// A client gets its answer.
    pub(in super::super) fn answer(&mut self, client: u64, outcome: Result<(), String>) {
        self.answers.entry(client).or_default().push(outcome);
    }
}

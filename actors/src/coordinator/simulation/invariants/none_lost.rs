//! None is lost: when all faults are over every request has its answer, and it is a picture unless
//! its client gave up, or set a deadline which it waited for, or it was lost again and again without
//! a step between.

use super::Watch;
use crate::membership::Now;

pub(in super::super) const NAME: &str = "none lost";

impl Watch {
    /// A client gives up.
    pub(in super::super) fn cancels(&mut self, client: u64) {
        self.cancelled.push(client);
    }

    /// A client lets its request wait for so long only.
    pub(in super::super) fn may_expire(&mut self, client: u64) {
        self.may_expire.push(client);
    }

    /// A client's request was lost as often as a request may be.
    pub(in super::super) fn may_be_lost(&mut self, client: u64) {
        self.lost.push(client);
    }

    /// Requests that were lost too often.
    pub(in super::super) fn fruitless(&self) -> u64 {
        self.lost.len() as u64
    }

    /// Answers that requests had waited for too long.
    pub(in super::super) fn expired(&self) -> u64 {
        let answers = self.answers.values().flatten();
        answers.filter(|answer| answer.as_ref().is_err_and(|error| is_expiry(error))).count() as u64
    }

    pub(super) fn check_none_lost(&mut self, now: Now, clients: u64) {
        for client in 0..clients {
            let wrong = match self.answers.get(&client).and_then(|answers| answers.first()) {
                None => Some(format!("client {client} has no answer at {now:?}")),
                Some(Ok(())) => None,
                Some(Err(_)) if self.cancelled.contains(&client) => None,
                Some(Err(error)) if self.may_expire.contains(&client) && is_expiry(error) => None,
                Some(Err(_)) if self.lost.contains(&client) => None,
                Some(Err(error)) => Some(format!("client {client} was told: {error}")),
            };
            if let Some(wrong) = wrong {
                self.broken(NAME, wrong);
            }
        }
    }
}

fn is_expiry(error: &str) -> bool {
    error.starts_with("it waited ")
}

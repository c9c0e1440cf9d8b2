//! None is lost: when all faults are over every request has its answer, and it is a picture unless its
//! client gave up.

use super::Watch;
use crate::membership::Now;

pub(in super::super) const NAME: &str = "none lost";

impl Watch {
    /// A client gives up.
    pub(in super::super) fn cancels(&mut self, client: u64) {
        self.cancelled.push(client);
    }

    pub(super) fn check_none_lost(&mut self, now: Now, clients: u64) {
        for client in 0..clients {
            let wrong = match self.answers.get(&client).and_then(|answers| answers.first()) {
                None => Some(format!("client {client} has no answer at {now:?}")),
                Some(Ok(())) => None,
                Some(Err(_)) if self.cancelled.contains(&client) => None,
                Some(Err(error)) => Some(format!("client {client} was told: {error}")),
            };
            if let Some(wrong) = wrong {
                self.broken(NAME, wrong);
            }
        }
    }
}

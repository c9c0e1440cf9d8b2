//! What must never happen, one file each, and the notes they are judged by.

pub(super) mod ends_once;
pub(super) mod go_on;
pub(super) mod no_stale_frame;
pub(super) mod none_lost;
pub(super) mod nothing_again;
pub(super) mod one_order;
pub(super) mod one_plan_per_epoch;
pub(super) mod waits_end;

use std::collections::BTreeMap;

use crate::membership::Now;

/// Violations of a simulation that are told.
const VIOLATIONS_MAX: usize = 8;

/// What was seen.
#[derive(Default)]
pub(super) struct Watch {
    pub(super) violations: Vec<String>,
    plans: BTreeMap<u64, String>,
    /// Run and unit, by epoch and number.
    begun: BTreeMap<(u64, u64), (u64, usize)>,
    /// Answers by client.
    answers: BTreeMap<u64, Vec<Result<(), String>>>,
    cancelled: Vec<u64>,
    /// Clients with deadlines of their own.
    may_expire: Vec<u64>,
    /// Clients whose requests were lost too often.
    lost: Vec<u64>,
    /// Which life of the coordinator gave a result, by the request's number.
    results: BTreeMap<u64, u64>,
}

impl Watch {
    fn broken(&mut self, invariant: &str, how: impl std::fmt::Display) {
        // What does not end would be told at every event.
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(format!("{invariant}: {how}"));
        }
    }

    /// Clients that have an answer.
    pub(super) fn answered(&self) -> u64 {
        self.answers.len() as u64
    }

    pub(super) fn is_answered(&self, client: u64) -> bool {
        self.answers.contains_key(&client)
    }

    /// What is judged when all is over.
    pub(super) fn check_end(&mut self, now: Now, clients: u64) {
        self.check_none_lost(now, clients);
    }
}

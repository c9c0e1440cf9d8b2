//! Runs that are over: what comes for them is late.
//!
//! Owns a bounded memory of run ids and causes; the oldest is forgotten first.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::ids::{IdMap, RunId};

/// How many ended or aborted runs a link remembers.
pub const ABORTED_RUNS_MAX: usize = 1024;

#[derive(Default)]
pub(super) struct EndedRuns {
    causes: IdMap<RunId, Arc<str>>,
    order: VecDeque<RunId>,
    /// The last run that was asked for and is not over: usually the next one that is asked for.
    going_on: Cell<Option<RunId>>,
}

impl EndedRuns {
    /// Remembers; false when the run was over before.
    pub(super) fn insert(&mut self, run: RunId, cause: &str) -> bool {
        if self.causes.contains_key(&run) {
            return false;
        }
        if self.order.len() >= ABORTED_RUNS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.causes.remove(&oldest);
        }
        self.going_on.set(None);
        self.causes.insert(run, Arc::from(cause));
        self.order.push_back(run);
        true
    }

    pub(super) fn cause(&self, run: RunId) -> Option<&str> {
        if self.going_on.get() == Some(run) {
            return None;
        }
        let cause = self.causes.get(&run).map(AsRef::as_ref);
        if cause.is_none() {
            self.going_on.set(Some(run));
        }
        cause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_run_is_forgotten_first_and_the_first_cause_stays() {
        let mut ended = EndedRuns::default();
        assert_eq!(ended.cause(RunId(0)), None);
        assert!(ended.insert(RunId(0), "first"));
        assert!(!ended.insert(RunId(0), "second"));
        assert_eq!(ended.cause(RunId(0)), Some("first"));
        for run in 1..=ABORTED_RUNS_MAX as u64 {
            ended.insert(RunId(run), "later");
        }
        assert_eq!(ended.cause(RunId(0)), None);
        assert_eq!(ended.cause(RunId(1)), Some("later"));
    }
}

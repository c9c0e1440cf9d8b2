//! Which life of a process: the number that tells a restarted member from the one before.
//!
//! Owns how the number is made. The high bits are the wall-clock millisecond at which the process
//! was started, the low bits count its sessions, so that a restarted process and a reconnecting
//! one both come back with a higher number, and an agent's report of a process that ended fits
//! all its sessions.

use serde::{Deserialize, Serialize};

const SESSION_BITS: u32 = 8;

/// Sessions one process may open before it has to be started anew.
pub const SESSIONS_MAX: u64 = (1 << SESSION_BITS) - 1;

/// The life of a process; a later one is higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// Of a process started at `unix_ms`.
    pub fn at(unix_ms: u64) -> Self {
        Self(unix_ms << SESSION_BITS)
    }

    /// Of the same process with its next session, `None` when it has used up [`SESSIONS_MAX`].
    pub fn next_session(self) -> Option<Self> {
        let next = Self(self.0 + 1);
        self.same_process(next).then_some(next)
    }

    /// Whether both are lives of the same process.
    pub fn same_process(self, other: Self) -> bool {
        self.0 >> SESSION_BITS == other.0 >> SESSION_BITS
    }
}

impl std::fmt::Display for Incarnation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_a_process_are_ordered_and_belong_together() {
        let started = Incarnation::at(1_700_000_000_000);
        let again = started.next_session().expect("many sessions are left");
        assert!(again > started && again.same_process(started));
        let restarted = Incarnation::at(1_700_000_000_001);
        assert!(restarted > again && !restarted.same_process(again));
    }

    #[test]
    fn sessions_run_out_before_they_look_like_a_restart() {
        let mut session = Incarnation::at(5);
        let mut count = 0;
        while let Some(next) = session.next_session() {
            session = next;
            count += 1;
        }
        assert_eq!(count, SESSIONS_MAX);
        assert!(session < Incarnation::at(6));
    }
}

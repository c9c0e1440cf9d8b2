//! An [`Agenda`] between two threads: the worker actor extends it, the compute thread works it off.
//!
//! Owns the lock, the waiting at a proposed run, and whether the thread has to be called. What
//! comes next is the agenda's.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::executor::agenda::{Agenda, AgendaError, Next, Retired};
use crate::plan::interleave::Entry;

/// What the thread does next.
pub(super) enum Turn<R> {
    /// A unit. The run itself comes with its first one.
    Unit(Entry, Option<R>),
    /// Nobody said where a proposed run comes in; it has ended here.
    Expired(u64, R),
    /// Nothing for now.
    Idle,
}

/// The agenda of one mesh on one rank.
pub(super) struct SharedAgenda<R> {
    state: Mutex<State<R>>,
    changed: Condvar,
}

struct State<R> {
    agenda: Agenda<R>,
    /// Whether the thread is at the agenda, or was called to it.
    awake: bool,
}

impl<R> Default for SharedAgenda<R> {
    fn default() -> Self {
        let state = State { agenda: Agenda::default(), awake: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl<R> SharedAgenda<R> {
    /// [`Agenda::append`]; whether the thread must be called.
    pub(super) fn append(
        &self,
        run: u64,
        payload: R,
        entries: Vec<Entry>,
    ) -> Result<bool, AgendaError> {
        let mut state = self.state();
        state.agenda.append(run, payload, entries)?;
        Ok(!std::mem::replace(&mut state.awake, true))
    }

    /// [`Agenda::propose`].
    pub(super) fn propose(
        &self,
        run: u64,
        payload: R,
        entries: Vec<Entry>,
    ) -> Result<u64, AgendaError> {
        self.state().agenda.propose(run, payload, entries)
    }

    /// [`Agenda::admit`]; whether the thread must be called.
    pub(super) fn admit(&self, run: u64, after: u64) -> Result<bool, AgendaError> {
        let mut state = self.state();
        let admitted = state.agenda.admit(run, after);
        self.changed.notify_all();
        admitted?;
        Ok(!std::mem::replace(&mut state.awake, true))
    }

    /// [`Agenda::retire`].
    pub(super) fn retire(&self, run: u64) -> Retired {
        let retired = self.state().agenda.retire(run);
        self.changed.notify_all();
        retired
    }

    /// The next thing to do; waits at most `limit` where a run is proposed.
    pub(super) fn next(&self, limit: Duration) -> Turn<R> {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        loop {
            match state.agenda.take_next() {
                Next::Unit { entry, begins, .. } => return Turn::Unit(entry, begins),
                Next::Idle => return Turn::Idle,
                Next::Held => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let expired = state.agenda.expire();
                return expired.map_or(Turn::Idle, |(run, payload)| Turn::Expired(run, payload));
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The thread could not be called.
    pub(super) fn not_called(&self) {
        self.state().awake = false;
    }

    /// The thread leaves the agenda; false when there is something on it.
    pub(super) fn rest(&self) -> bool {
        let mut state = self.state();
        state.awake = !state.agenda.is_empty();
        !state.awake
    }

    /// Whether the thread is at the agenda, or was called to it.
    pub(super) fn is_attended(&self) -> bool {
        self.state().awake
    }

    /// [`Agenda::turn_to`].
    pub(super) fn turn_to(&self, run: u64) -> bool {
        self.state().agenda.turn_to(run)
    }

    /// [`Agenda::finish`].
    pub(super) fn finish(&self, run: u64) -> bool {
        self.state().agenda.finish(run)
    }

    /// [`Agenda::knows`].
    pub(super) fn knows(&self, run: u64) -> bool {
        self.state().agenda.knows(run)
    }

    /// [`Agenda::is_live`].
    pub(super) fn is_live(&self, run: u64) -> bool {
        self.state().agenda.is_live(run)
    }

    fn state(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(run: u64, count: usize) -> Vec<Entry> {
        (0..count).map(|unit| Entry { run, unit, cost: 1 }).collect()
    }

    fn step(agenda: &SharedAgenda<()>, limit: Duration) -> Option<(u64, usize)> {
        match agenda.next(limit) {
            Turn::Unit(entry, _) => Some((entry.run, entry.unit)),
            _ => None,
        }
    }

    #[test]
    fn a_thread_that_waits_at_a_proposed_run_goes_on_once_it_is_told_where_it_comes_in() {
        let (agenda, long) = (SharedAgenda::default(), Duration::from_secs(10));
        assert_eq!(agenda.append(1, (), units(1, 3)), Ok(true), "it is called");
        assert_eq!(agenda.propose(2, (), units(2, 1)), Ok(2));
        assert_eq!((step(&agenda, long), step(&agenda, long)), (Some((1, 0)), Some((1, 1))));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| step(&agenda, long));
            assert_eq!(agenda.admit(2, 3), Ok(false), "it is there");
            assert_eq!(waiting.join().expect("a unit"), Some((1, 2)));
        });
        assert_eq!(step(&agenda, long), Some((2, 0)));
        assert!(step(&agenda, long).is_none() && agenda.rest());
        assert!(agenda.finish(1) && agenda.finish(2));
        assert_eq!(agenda.append(3, (), units(3, 1)), Ok(true), "it is called again");
        assert!(!agenda.rest());
    }

    #[test]
    fn a_wait_at_a_proposed_run_ends_with_that_run() {
        let (agenda, soon) = (SharedAgenda::default(), Duration::from_millis(20));
        agenda.append(1, (), units(1, 1)).expect("room");
        assert_eq!(step(&agenda, soon), Some((1, 0)));
        agenda.propose(2, (), units(2, 1)).expect("room");
        assert!(agenda.finish(1));
        agenda.append(3, (), units(3, 1)).expect("room");
        assert!(matches!(agenda.next(soon), Turn::Expired(2, ())));
        assert_eq!(step(&agenda, soon), Some((3, 0)));
    }
}

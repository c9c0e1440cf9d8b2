//! What a compute thread does next: the units of up to two runs in one order, which the worker
//! actor extends while the thread works it off.
//!
//! Owns the order, how far the thread is in it, and the points it may not pass. Does not know what
//! a unit is made of, nor what a run is (`R`).
//!
//! A run that comes while another is under way is *proposed*: the agenda stops before an entry that
//! its thread has not begun ([`Agenda::propose`]) and the coordinator hears where. All ranks then
//! take the run in after the latest of these points, which none of them has passed
//! ([`Agenda::admit`]); nobody is refused.
//!
//! Invariants: entries have the same number on every rank, counted from the forming of the mesh,
//! also those of runs that have ended, which are passed over; a run ends exactly once, by the
//! thread when that is in the middle of it and by the worker otherwise ([`Agenda::retire`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::plan::interleave::{Entry, interleave};

/// Runs on one mesh at a time. Each has its own caches and at most
/// [`POSTED_BYTES_MAX`](super::mailbag::POSTED_BYTES_MAX) posted.
pub const RUNS_PER_MESH_MAX: usize = 2;

/// How far ahead of its thread an agenda stops for a run that is proposed: while these are carried
/// out the coordinator's answer can come.
pub const ENTRY_SLACK_UNITS: usize = 2;

/// Why a run cannot come in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgendaError {
    /// No room.
    #[error("run {run} while {RUNS_PER_MESH_MAX} others are under way")]
    Full {
        /// The one too many.
        run: u64,
    },
    /// It is not known here, or has ended.
    #[error("run {run} is not waiting to come in")]
    Unknown {
        /// The run.
        run: u64,
    },
    /// The thread is beyond the point of entry.
    #[error("run {run} is to come in after unit {after}, and {begun} are begun here already")]
    Passed {
        /// The run.
        run: u64,
        /// Entries before it.
        after: u64,
        /// Entries begun.
        begun: u64,
    },
}

/// What the thread is to do.
#[derive(Debug)]
pub enum Next<R> {
    /// Carry out a unit. The run itself comes with its first one.
    Unit {
        /// Which unit of which run.
        entry: Entry,
        /// The run, when it begins.
        begins: Option<R>,
    },
    /// Nobody said where a proposed run comes in; the run has ended here.
    Expired {
        /// Its number.
        run: u64,
        /// The run.
        payload: R,
    },
    /// Nothing for now.
    Idle,
}

/// Whose turn it is to report a run that was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retired {
    /// The thread is at it and reports it when it notices.
    ByThread,
    /// The run has ended; whoever retired it reports it.
    Now,
    /// It has ended before.
    Before,
}

/// The agenda of one mesh on one rank.
#[derive(Debug)]
pub struct Agenda<R> {
    state: Mutex<State<R>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<R> {
    /// Entries begun so far.
    begun: u64,
    ahead: VecDeque<Entry>,
    live: BTreeMap<u64, Live<R>>,
    /// The run whose unit the thread carries out.
    at: Option<u64>,
    /// Whether the thread is at the agenda, or was called to it.
    awake: bool,
}

#[derive(Debug)]
struct Live<R> {
    /// Until its first unit is begun.
    payload: Option<R>,
    /// The entry before which the agenda stops for it.
    hold: Option<u64>,
}

impl<R> Default for Agenda<R> {
    fn default() -> Self {
        let (ahead, live) = (VecDeque::new(), BTreeMap::new());
        let state = State { begun: 0, ahead, live, at: None, awake: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl<R> Agenda<R> {
    /// Takes a run in behind everything that is there; whether the thread must be called.
    ///
    /// # Errors
    /// [`AgendaError::Full`].
    pub fn append(&self, run: u64, payload: R, entries: &[Entry]) -> Result<bool, AgendaError> {
        let mut state = self.state();
        state.add(run, payload, None)?;
        state.ahead.extend(entries);
        Ok(!std::mem::replace(&mut state.awake, true))
    }

    /// Stops the thread a little ahead of where it is until [`Self::admit`] says where `run` comes
    /// in; the number of the entry it stops before.
    ///
    /// # Errors
    /// [`AgendaError::Full`].
    pub fn propose(&self, run: u64, payload: R) -> Result<u64, AgendaError> {
        let mut state = self.state();
        let hold = state.begun + state.ahead.len().min(ENTRY_SLACK_UNITS) as u64;
        state.add(run, payload, Some(hold))?;
        Ok(hold)
    }

    /// Takes a proposed run in after the first `after` entries; whether the thread must be called.
    ///
    /// # Errors
    /// When it is not waiting, or the thread is beyond that.
    pub fn admit(&self, run: u64, after: u64, entries: &[Entry]) -> Result<bool, AgendaError> {
        let mut state = self.state();
        let begun = state.begun;
        let known = state.live.get_mut(&run).and_then(|live| live.hold.take());
        if known.is_none() {
            return Err(AgendaError::Unknown { run });
        }
        self.changed.notify_all();
        let position = after.checked_sub(begun).map(|position| position as usize);
        let Some(position) = position.filter(|&position| position <= state.ahead.len()) else {
            return Err(AgendaError::Passed { run, after, begun });
        };
        let rest: Vec<Entry> = state.ahead.drain(position..).collect();
        state.ahead.extend(interleave(&rest, entries));
        Ok(!std::mem::replace(&mut state.awake, true))
    }

    /// Stops a run. Its entries stay and are passed over; a hold for it is given up.
    pub fn retire(&self, run: u64) -> Retired {
        let mut state = self.state();
        if !state.live.contains_key(&run) {
            return Retired::Before;
        }
        if state.at == Some(run) {
            return Retired::ByThread;
        }
        state.live.remove(&run);
        self.changed.notify_all();
        Retired::Now
    }

    /// The next thing to do; waits at most `limit` where a run is proposed.
    pub fn next(&self, limit: Duration) -> Next<R> {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        state.at = None;
        loop {
            while state.ahead.front().is_some_and(|entry| !state.live.contains_key(&entry.run))
                && !state.is_held()
            {
                state.ahead.pop_front();
                state.begun += 1;
            }
            if state.ahead.is_empty() {
                return Next::Idle;
            }
            if !state.is_held() {
                return state.begin();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return state.expire();
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The thread could not be called.
    pub fn not_called(&self) {
        self.state().awake = false;
    }

    /// The thread leaves the agenda; false when there is something on it.
    pub fn rest(&self) -> bool {
        let mut state = self.state();
        state.awake = !state.ahead.is_empty();
        !state.awake
    }

    /// The thread turns to a run outside of its units (it lets its last frames go); false when the
    /// run has ended.
    pub fn turn_to(&self, run: u64) -> bool {
        let mut state = self.state();
        state.at = Some(run);
        state.live.contains_key(&run)
    }

    /// The thread is done with a run, however it ended; false when it was reported already.
    pub fn finish(&self, run: u64) -> bool {
        self.state().live.remove(&run).is_some()
    }

    /// Whether a run has not ended.
    pub fn is_live(&self, run: u64) -> bool {
        self.state().live.contains_key(&run)
    }

    fn state(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> State<R> {
    fn add(&mut self, run: u64, payload: R, hold: Option<u64>) -> Result<(), AgendaError> {
        if self.live.len() >= RUNS_PER_MESH_MAX {
            return Err(AgendaError::Full { run });
        }
        self.live.insert(run, Live { payload: Some(payload), hold });
        Ok(())
    }

    fn is_held(&self) -> bool {
        self.live.values().any(|live| live.hold.is_some_and(|hold| hold <= self.begun))
    }

    fn begin(&mut self) -> Next<R> {
        let Some(entry) = self.ahead.pop_front() else { return Next::Idle };
        self.begun += 1;
        self.at = Some(entry.run);
        let begins = self.live.get_mut(&entry.run).and_then(|live| live.payload.take());
        Next::Unit { entry, begins }
    }

    /// Gives up a run that holds the thread.
    fn expire(&mut self) -> Next<R> {
        let begun = self.begun;
        let held = |live: &Live<R>| live.hold.is_some_and(|hold| hold <= begun);
        let run = self.live.iter().find(|(_, live)| held(live)).map(|(&run, _)| run);
        let live = run.and_then(|run| Some((run, self.live.remove(&run)?.payload?)));
        live.map_or(Next::Idle, |(run, payload)| Next::Expired { run, payload })
    }
}

#[cfg(test)]
mod tests;

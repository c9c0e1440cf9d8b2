//! What a compute thread does next: the units of up to two runs in one order, which is extended
//! while the thread works it off.
//!
//! Owns the order, how far the thread is in it, and the points it may not pass. Does not know what
//! a unit is made of, nor what a run is (`R`), nor the thread: who waits, and how long, is its
//! worker's. Pure.
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
        /// How many entries were begun before it on this mesh.
        number: u64,
        /// Which unit of which run.
        entry: Entry,
        /// The run, when it begins.
        begins: Option<R>,
    },
    /// Wait until somebody says where a proposed run comes in, or give that up
    /// ([`Agenda::expire`]).
    Held,
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
    /// Entries begun so far.
    begun: u64,
    ahead: VecDeque<Entry>,
    live: BTreeMap<u64, Live<R>>,
    /// What proposed runs add once they come in. One that has expired here may come in elsewhere.
    proposed: BTreeMap<u64, Vec<Entry>>,
    /// The run whose unit the thread carries out.
    at: Option<u64>,
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
        let (ahead, live, proposed) = (VecDeque::new(), BTreeMap::new(), BTreeMap::new());
        Self { begun: 0, ahead, live, proposed, at: None }
    }
}

impl<R> Agenda<R> {
    /// Takes a run in behind everything that is there.
    ///
    /// # Errors
    /// [`AgendaError::Full`].
    pub fn append(&mut self, run: u64, payload: R, entries: Vec<Entry>) -> Result<(), AgendaError> {
        self.add(run, payload, None)?;
        self.ahead.extend(entries);
        Ok(())
    }

    /// Stops the thread a little ahead of where it is until [`Self::admit`] says where `run` comes
    /// in with its `entries`; the number of the entry it stops before.
    ///
    /// # Errors
    /// [`AgendaError::Full`].
    pub fn propose(
        &mut self,
        run: u64,
        payload: R,
        entries: Vec<Entry>,
    ) -> Result<u64, AgendaError> {
        let hold = self.begun + self.ahead.len().min(ENTRY_SLACK_UNITS) as u64;
        self.add(run, payload, Some(hold))?;
        self.proposed.insert(run, entries);
        Ok(hold)
    }

    /// Takes a proposed run in after the first `after` entries.
    ///
    /// # Errors
    /// When it is not waiting, or the thread is beyond that. The entries of one that has expired
    /// here count all the same: it may have come in on other ranks.
    pub fn admit(&mut self, run: u64, after: u64) -> Result<(), AgendaError> {
        let begun = self.begun;
        let known = self.live.get_mut(&run).and_then(|live| live.hold.take());
        let Some(entries) = self.proposed.remove(&run) else {
            return Err(AgendaError::Unknown { run });
        };
        let position = after.checked_sub(begun).map(|position| position as usize);
        let Some(position) = position.filter(|&position| position <= self.ahead.len()) else {
            return Err(AgendaError::Passed { run, after, begun });
        };
        let rest: Vec<Entry> = self.ahead.drain(position..).collect();
        self.ahead.extend(interleave(&rest, &entries));
        known.map(drop).ok_or(AgendaError::Unknown { run })
    }

    /// Stops a run. Its entries stay and are passed over; a hold for it is given up.
    pub fn retire(&mut self, run: u64) -> Retired {
        // Whoever stops it lets it come in nowhere from now on.
        self.proposed.remove(&run);
        if !self.live.contains_key(&run) {
            return Retired::Before;
        }
        if self.at == Some(run) {
            return Retired::ByThread;
        }
        self.live.remove(&run);
        Retired::Now
    }

    /// The next thing to do; the thread has left what it was at.
    pub fn take_next(&mut self) -> Next<R> {
        self.at = None;
        while !self.is_held()
            && let Some(entry) = self.ahead.pop_front()
        {
            let number = self.begun;
            self.begun += 1;
            if let Some(live) = self.live.get_mut(&entry.run) {
                self.at = Some(entry.run);
                return Next::Unit { number, entry, begins: live.payload.take() };
            }
        }
        if self.ahead.is_empty() { Next::Idle } else { Next::Held }
    }

    /// Gives up a run that holds the thread; it has ended here.
    pub fn expire(&mut self) -> Option<(u64, R)> {
        let begun = self.begun;
        let held = |live: &Live<R>| live.hold.is_some_and(|hold| hold <= begun);
        let run = self.live.iter().find(|(_, live)| held(live)).map(|(&run, _)| run)?;
        Some((run, self.live.remove(&run)?.payload?))
    }

    /// Whether there is nothing on it.
    pub fn is_empty(&self) -> bool {
        self.ahead.is_empty()
    }

    /// The thread turns to a run outside of its units (it lets its last frames go); false when the
    /// run has ended.
    pub fn turn_to(&mut self, run: u64) -> bool {
        self.at = Some(run);
        self.live.contains_key(&run)
    }

    /// The thread is done with a run, however it ended; false when it was reported already.
    pub fn finish(&mut self, run: u64) -> bool {
        self.live.remove(&run).is_some()
    }

    /// Whether a run may be told where it comes in, or to stop.
    pub fn knows(&self, run: u64) -> bool {
        self.is_live(run) || self.proposed.contains_key(&run)
    }

    /// Whether a run has not ended.
    pub fn is_live(&self, run: u64) -> bool {
        self.live.contains_key(&run)
    }

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
}

#[cfg(test)]
mod tests;

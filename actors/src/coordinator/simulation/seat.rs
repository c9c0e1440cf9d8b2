//! A rank in a mesh: the worker's own [`Agenda`], worked off in virtual time.
//!
//! Owns what a compute thread and its worker keep of a mesh, and who of the two ends a run. Time,
//! links and processes are the world's.

use std::collections::{BTreeMap, BTreeSet};

use super::frames::Frame;
use super::runs::{Form, Start};
use super::walker::{Inbox, Next, Untaken, Waited, Walker};
use crate::executor::agenda::{self, Agenda, AgendaError, Retired};
use crate::membership::Now;
use crate::plan::interleave::Entry;
use crate::plan::message::Message;
use crate::protocol::RankOutcome;
use crate::request::{Event, RankReport};

/// A mesh that a worker is in.
pub(super) struct Seat {
    pub(super) form: Form,
    agenda: Agenda<Walker>,
    /// Runs that have begun here and whose frames are not all taken yet.
    under_way: BTreeMap<u64, Walker>,
    /// The run whose unit the thread is at.
    at: Option<u64>,
    /// What the thread computes.
    pub(super) computing: Computing,
    /// Since when a proposed run holds the thread.
    held: Option<Now>,
    /// Runs that the thread is to stop when it can.
    stopped: BTreeSet<u64>,
    inbox: Inbox,
    /// What it sent and nobody has taken.
    untaken: Untaken,
    /// Each send is waited for, which no program is made for.
    sends_wait: bool,
    /// Ranks to whom the link is gone.
    broken: BTreeSet<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Computing {
    Nothing,
    Something,
    /// It does not end.
    ForEver,
}

/// What the thread has done.
pub(super) enum Turn {
    /// Begun an entry of the agenda, with its number.
    Begins(u64, Entry),
    Send(u64, usize, Message),
    /// Taken a frame of that run, of that member, with that tag.
    Took(u64, usize, u64),
    Compute,
    Tell(u64, Event),
    Ended(u64, RankOutcome),
    /// Nothing until something happens.
    Wait,
}

impl Seat {
    pub(super) fn new(form: Form, sends_wait: bool) -> Self {
        Self {
            form,
            agenda: Agenda::default(),
            under_way: BTreeMap::new(),
            at: None,
            computing: Computing::Nothing,
            held: None,
            stopped: BTreeSet::new(),
            inbox: Inbox::new(),
            untaken: Untaken::new(),
            sends_wait,
            broken: BTreeSet::new(),
        }
    }

    /// Takes a run; where it can come in, when it is only proposed.
    pub(super) fn start(&mut self, start: Start) -> Result<Option<u64>, AgendaError> {
        let Start { run, plan, propose, .. } = start;
        let entries = plan.entries(run);
        let walker = Walker::of_rank(plan, self.form.rank);
        match propose {
            true => self.agenda.propose(run, walker, entries).map(Some),
            false => self.agenda.append(run, walker, entries).map(|()| None),
        }
    }

    pub(super) fn enter(&mut self, run: u64, after: u64) -> Result<(), AgendaError> {
        self.agenda.admit(run, after)
    }

    pub(super) fn knows(&self, run: u64) -> bool {
        self.agenda.knows(run)
    }

    /// Stops a run; whether it has ended with that.
    pub(super) fn abort(&mut self, run: u64) -> bool {
        match self.agenda.retire(run) {
            Retired::ByThread => drop(self.stopped.insert(run)),
            Retired::Now => {
                self.forget(run);
                return true;
            }
            Retired::Before => {}
        }
        false
    }

    pub(super) fn take(&mut self, frame: &Frame) {
        self.inbox.insert((frame.run, frame.from, frame.message.tag().0));
    }

    /// Somebody has taken a frame; whether the thread waits for that.
    pub(super) fn taken(&mut self, run: u64, by: usize, tag: u64) -> bool {
        self.untaken.remove(&(run, by, tag));
        let walker = self.at.filter(|&at| at == run).and_then(|at| self.under_way.get(&at));
        walker.and_then(|walker| walker.waits).is_some_and(|(waited, _)| match waited {
            Waited::Frame(..) => false,
            Waited::Taken(whom) => whom == by,
            Waited::AllTaken => true,
        })
    }

    pub(super) fn lose_link(&mut self, peer: usize) {
        self.broken.insert(peer);
    }

    /// Since when the thread waits, and for what; `None` for the coordinator's word.
    pub(super) fn wait(&self) -> Option<(Now, Option<Waited>)> {
        let at = self.at.and_then(|run| self.under_way.get(&run));
        let waits = at.and_then(|walker| walker.waits);
        waits.map(|(waited, since)| (since, Some(waited))).or_else(|| Some((self.held?, None)))
    }

    /// The thread goes on.
    pub(super) fn turn(&mut self, now: Now) -> Turn {
        if self.computing != Computing::Nothing {
            return Turn::Wait;
        }
        let Some(run) = self.at else { return self.leave(now) };
        if self.stopped.remove(&run) {
            return self.end(run, RankOutcome::Aborted, now);
        }
        let Some(walker) = self.under_way.get_mut(&run) else { return self.leave(now) };
        let lets_go = walker.is_done();
        match walker.next(run, &mut self.inbox, &self.untaken, &self.broken, now) {
            Next::Wait => Turn::Wait,
            Next::Send(to, message) => {
                self.untaken.insert((run, to, message.tag().0));
                if self.sends_wait {
                    walker.waits = Some((Waited::Taken(to), now));
                }
                Turn::Send(run, to, message)
            }
            Next::Took(from, tag) => Turn::Took(run, from, tag),
            Next::Tell(event) => Turn::Tell(run, event),
            Next::Compute => {
                self.computing = Computing::Something;
                Turn::Compute
            }
            Next::NoLink(peer) => {
                let cause = format!("no link to rank {peer}");
                self.end(run, RankOutcome::Failed { cause, peer: Some(peer as u32) }, now)
            }
            Next::Done if lets_go => self.end_well(run, now),
            Next::Done => {
                walker.end_unit();
                self.leave(now)
            }
        }
    }

    /// Between units: a run ends that has no more of them and whose frames are all taken.
    fn leave(&mut self, now: Now) -> Turn {
        self.under_way.retain(|&run, _| self.agenda.is_live(run));
        self.at = None;
        let through = |run: u64| self.untaken.range((run, 0, 0)..(run + 1, 0, 0)).next().is_none();
        let mut runs = self.under_way.iter();
        match runs.find(|(run, walker)| walker.is_done() && through(**run)).map(|(&run, _)| run) {
            Some(run) => self.end_well(run, now),
            None => self.next_unit(now),
        }
    }

    fn end_well(&mut self, run: u64, now: Now) -> Turn {
        let report = RankReport { rank: self.form.rank as u32, ..RankReport::default() };
        self.end(run, RankOutcome::Done(Box::new(report)), now)
    }

    fn next_unit(&mut self, now: Now) -> Turn {
        match self.agenda.take_next() {
            agenda::Next::Unit { number, entry, begins } => {
                self.held = None;
                self.at = Some(entry.run);
                self.under_way.extend(begins.map(|walker| (entry.run, walker)));
                if let Some(walker) = self.under_way.get_mut(&entry.run) {
                    walker.begin(entry.unit);
                }
                Turn::Begins(number, entry)
            }
            agenda::Next::Held => {
                self.held.get_or_insert(now);
                Turn::Wait
            }
            agenda::Next::Idle => {
                self.held = None;
                // Only frames of runs without units are left: they are waited for.
                let Some((&run, walker)) = self.under_way.iter_mut().next() else {
                    return Turn::Wait;
                };
                walker.waits = Some((Waited::AllTaken, now));
                self.agenda.turn_to(run);
                self.at = Some(run);
                self.turn(now)
            }
        }
    }

    /// The thread is done with a run, which it tells unless the worker has.
    fn end(&mut self, run: u64, outcome: RankOutcome, now: Now) -> Turn {
        self.forget(run);
        match self.agenda.finish(run) {
            true => {
                self.at = None;
                Turn::Ended(run, outcome)
            }
            false => self.leave(now),
        }
    }

    fn forget(&mut self, run: u64) {
        self.under_way.remove(&run);
        self.inbox.retain(|(of, ..)| *of != run);
        self.untaken.retain(|(of, ..)| *of != run);
    }
}

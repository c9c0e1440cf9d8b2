//! The runs that a compute thread has under way: works off the agenda of a mesh, unit by unit.
//!
//! Owns one executor per run and the one report of how it ended. Which unit comes next is the
//! agenda's.
//!
//! Invariants: a run that fails or is stopped leaves the others as they are: nobody waits for its
//! frames, and its units are passed over; a run whose units are done lets its last frames go while
//! others are computed, and only an idle thread waits for that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ditmesh_transport::ids::{Epoch, PeerId};
use ditmesh_transport::link::Link;
use tokio::sync::mpsc;

use super::compute::{Run, guarded};
use super::shared_agenda::{SharedAgenda, Turn};
use crate::executor::abort::AbortFlag;
use crate::executor::error::ExecuteError;
use crate::executor::{Assignment, Executor};
use crate::plan::interleave::Entry;
use crate::protocol::{RankOutcome, ToCoordinator};
use crate::request::{Event, RankReport};

/// Longest time to hear where a proposed run comes in: a round trip between actors.
pub(super) const ENTRY_DEADLINE: Duration = Duration::from_secs(10);

/// Carries out what is on the agenda until nothing is.
pub(super) fn work_off(agenda: &SharedAgenda<Run>) {
    let mut runs = Runs { agenda, under_way: BTreeMap::new() };
    loop {
        runs.settle();
        match agenda.next(ENTRY_DEADLINE) {
            Turn::Unit(entry, begins) => runs.carry_out(entry, begins),
            Turn::Expired(run, payload) => {
                let seconds = ENTRY_DEADLINE.as_secs();
                let cause = format!("nobody said within {seconds} s where run {run} comes in");
                Ending::of(&payload).report(RankOutcome::Failed { cause, peer: None });
            }
            Turn::Idle => match runs.under_way.pop_first() {
                Some((run, under_way)) => runs.let_go(run, under_way),
                None if agenda.rest() => return,
                None => {}
            },
        }
    }
}

struct Runs<'a> {
    agenda: &'a SharedAgenda<Run>,
    under_way: BTreeMap<u64, UnderWay>,
}

/// A run that has begun.
struct UnderWay {
    executor: Executor,
    units_left: usize,
    /// Units of other runs since it began.
    foreign_units: u64,
    abort: Arc<AbortFlag>,
    ending: Ending,
}

/// How the end of a run is reported.
struct Ending {
    run: u64,
    rank: u32,
    device: String,
    epoch: Epoch,
    links: Vec<Arc<dyn Link>>,
    reports: mpsc::Sender<ToCoordinator>,
}

impl Ending {
    fn of(run: &Run) -> Self {
        let (device, reports) = (run.device.clone(), run.reports.clone());
        let peers = 0..run.plan.mesh.world_size() as u32;
        let links = peers.filter_map(|peer| run.transport.link(PeerId(peer)).ok()).collect();
        let (number, rank) = (run.run.0, run.rank as u32);
        Self { run: number, rank, device, epoch: run.epoch, links, reports }
    }

    fn report(self, outcome: RankOutcome) {
        let (run, rank, epoch) = (self.run, self.rank, self.epoch.0);
        let seen = self
            .links
            .iter()
            .filter_map(|link| Some((link.peer().0, link.stats().observed_bytes_per_s?)));
        let links: Vec<_> = seen.collect();
        if !links.is_empty() {
            // As below.
            let _ = self.reports.blocking_send(ToCoordinator::LinksObserved { epoch, links });
        }
        // A worker that has ended is reported by its end.
        let _ = self.reports.blocking_send(ToCoordinator::RunEnded { run, rank, outcome });
    }
}

impl Runs<'_> {
    fn carry_out(&mut self, entry: Entry, begins: Option<Run>) {
        if let Some(run) = begins {
            let (ending, abort) = (Ending::of(&run), Arc::clone(&run.abort));
            match guarded(move || begin(run)) {
                Ok(Ok((executor, units_left))) => {
                    let under_way =
                        UnderWay { executor, units_left, foreign_units: 0, abort, ending };
                    self.under_way.insert(entry.run, under_way);
                }
                failed => return self.end(ending, failed.map(|begun| begun.map(drop))),
            }
        }
        for (&run, under_way) in &mut self.under_way {
            under_way.foreign_units += u64::from(run != entry.run && under_way.units_left > 0);
        }
        let Some(under_way) = self.under_way.get_mut(&entry.run) else { return };
        match guarded(|| under_way.executor.run_unit(entry.unit)) {
            Ok(Ok(())) => under_way.units_left = under_way.units_left.saturating_sub(1),
            failed => {
                if let Some(under_way) = self.under_way.remove(&entry.run) {
                    self.end(under_way.ending, failed);
                }
            }
        }
    }

    /// Ends what was stopped, and what has no more units and no more frames under way.
    fn settle(&mut self) {
        let runs: Vec<u64> = self.under_way.keys().copied().collect();
        for run in runs {
            let Some(under_way) = self.under_way.get_mut(&run) else { continue };
            let stopped = under_way.abort.cause().is_some() || !self.agenda.is_live(run);
            // An error shows again when the run is finished.
            let through =
                under_way.units_left == 0 && !matches!(under_way.executor.is_through(), Ok(false));
            if (stopped || through)
                && let Some(under_way) = self.under_way.remove(&run)
            {
                self.let_go(run, under_way);
            }
        }
    }

    /// Waits until the last frames of a run are taken.
    fn let_go(&self, run: u64, under_way: UnderWay) {
        let UnderWay { executor, units_left, foreign_units, abort, mut ending } = under_way;
        if !self.agenda.turn_to(run) {
            return;
        }
        if let Some(cause) = abort.cause().filter(|_| units_left > 0) {
            return self.end(ending, Ok(Err(ExecuteError::Aborted(cause.to_owned()))));
        }
        match guarded(move || executor.finish()) {
            Ok(Ok(report)) => {
                let device = std::mem::take(&mut ending.device);
                let report = RankReport { device, foreign_units, ..report };
                if self.agenda.finish(run) {
                    ending.report(RankOutcome::Done(Box::new(report)));
                }
            }
            failed => self.end(ending, failed.map(|finished| finished.map(drop))),
        }
    }

    /// Reports a run that did not get to its end.
    fn end(&self, ending: Ending, how: Result<Result<(), ExecuteError>, String>) {
        if !self.agenda.finish(ending.run) {
            return;
        }
        ending.report(match how {
            Ok(Err(ExecuteError::Aborted(_)) | Ok(())) => RankOutcome::Aborted,
            Err(cause) => RankOutcome::Failed { cause, peer: None },
            Ok(Err(error)) => RankOutcome::Failed {
                cause: error.to_string(),
                peer: error.peer().map(|peer| peer as u32),
            },
        });
    }
}

/// Sets a run up, and counts its units.
fn begin(run: Run) -> Result<(Executor, usize), ExecuteError> {
    let (id, progress) = (run.run.0, run.reports);
    let report = move |event| {
        // Somebody asked for a timeline and gets all of it. Other progress is for people: when the
        // way to them is full, a line is dropped, not the run.
        let asked_for = matches!(event, Event::Timeline(_));
        let said = ToCoordinator::Progress { run: id, event };
        let _ = match asked_for {
            true => progress.blocking_send(said).ok(),
            false => progress.try_send(said).ok(),
        };
    };
    let executor = Executor::new(Assignment {
        plan: run.plan,
        rank: run.rank,
        run: run.run,
        epoch: run.epoch,
        transport: run.transport,
        parts: run.model,
        device: run.compute_on,
        abort: run.abort,
        wait_limit: run.wait_limit,
        traceparent: run.traceparent,
        progress: Box::new(report),
    })?;
    let units = executor.units();
    Ok((executor, units))
}

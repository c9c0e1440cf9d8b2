//! A timeline that reads the clock: what the executor holds.

use std::time::Instant;

use ditmesh_model::phase::Phase;

use super::{Activity, Key, Nanos, Timeline, activity};
use crate::plan::message::MessageKind;
use crate::plan::program::Op;
use crate::request::RunTime;

/// Measures one rank's run from the moment it is made.
#[derive(Debug)]
pub struct Stopwatch {
    started: Instant,
    timeline: Timeline,
}

impl Stopwatch {
    /// Starts measuring a run of `steps` steps.
    pub fn start(steps: usize) -> Self {
        Self { started: Instant::now(), timeline: Timeline::new(steps) }
    }

    fn now(&self) -> Nanos {
        // 584 years fit.
        self.started.elapsed().as_nanos() as Nanos
    }

    /// An operation of the program starts.
    pub fn begin(&mut self, op: &Op) {
        let now = self.now();
        let (key, activity) = activity::of_op(op);
        self.timeline.begin(now, key, activity);
        if starts_a_step(op) {
            self.timeline.first_step(now);
        }
    }

    /// It has ended.
    pub fn end(&mut self, op: &Op) {
        let now = self.now();
        self.timeline.end(now);
        if matches!(op, Op::StepDone { .. }) {
            self.timeline.step_done(now);
        }
    }

    /// A phase of a forward pass starts.
    pub fn phase(&mut self, phase: &Phase) {
        let (key, activity) = activity::of_phase(phase);
        self.timeline.begin(self.now(), key, activity);
    }

    /// Something that is no operation of the program starts, and counts as one.
    pub fn begin_extra(&mut self, op: &'static str) {
        self.timeline.begin(self.now(), Key { op, part: "" }, Activity::Overhead);
    }

    /// It has ended.
    pub fn end_extra(&mut self) {
        self.timeline.end(self.now());
    }

    /// What is done from now on, inside whatever is under way; returns what was done until now.
    pub fn turn(&mut self, activity: Activity) -> Activity {
        self.timeline.turn(self.now(), activity)
    }

    /// Where the time went so far.
    pub fn summary(&mut self) -> RunTime {
        self.timeline.summary(self.now())
    }
}

/// Whether `op` is of the denoising loop, and not of what comes before it.
fn starts_a_step(op: &Op) -> bool {
    match op {
        Op::Forward { .. } => true,
        Op::Recv { message, .. } => {
            matches!(message.kind, MessageKind::Activation | MessageKind::Sample)
        }
        _ => false,
    }
}

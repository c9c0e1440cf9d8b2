//! A timeline that reads the clock: what the executor holds.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ditmesh_model::phase::Phase;

use super::{Activity, Key, Nanos, Recorder, TIMELINE_SPANS_MAX, Timeline, Where, activity};
use crate::plan::Plan;
use crate::plan::message::{Message, MessageKind};
use crate::plan::program::Op;
use crate::request::{RunTime, SpanKind, TimelineChunk};

/// Measures one rank's run from the moment it is made.
#[derive(Debug)]
pub struct Stopwatch {
    started: Instant,
    started_unix_ns: u64,
    timeline: Timeline,
    recorder: Option<Recorder>,
}

/// What no message is done with.
const NO_MESSAGE: (u32, u64) = (0, 0);

impl Stopwatch {
    /// Starts measuring a run, and records its spans when the run asks for them.
    pub fn start(plan: &Plan) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            started: Instant::now(),
            started_unix_ns: unix.as_nanos() as u64,
            timeline: Timeline::new(plan.steps()),
            recorder: plan.run.timeline.then(|| Recorder::new(TIMELINE_SPANS_MAX)),
        }
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
        if let Some(recorder) = &mut self.recorder {
            let place = activity::place_of_op(op);
            recorder.open(now, SpanKind::Operation, key, place, NO_MESSAGE);
        }
    }

    /// It has ended.
    pub fn end(&mut self, op: &Op) {
        self.end_extra();
        if matches!(op, Op::StepDone { .. }) {
            self.timeline.step_done(self.now());
        }
    }

    /// A phase of a forward pass starts.
    pub fn phase(&mut self, phase: &Phase) {
        let now = self.now();
        let (key, activity) = activity::of_phase(phase);
        self.timeline.begin(now, key, activity);
        if let Some(recorder) = &mut self.recorder {
            let place = activity::place_of_phase(phase);
            recorder.open(now, SpanKind::Phase, key, place, NO_MESSAGE);
        }
    }

    /// Something that is no operation of the program starts, and counts as one.
    pub fn begin_extra(&mut self, op: &'static str) {
        let (now, key) = (self.now(), Key { op, part: "" });
        self.timeline.begin(now, key, Activity::Overhead);
        if let Some(recorder) = &mut self.recorder {
            recorder.open(now, SpanKind::Operation, key, Where::NOWHERE, NO_MESSAGE);
        }
    }

    /// It has ended.
    pub fn end_extra(&mut self) {
        let now = self.now();
        self.timeline.end(now);
        if let Some(recorder) = &mut self.recorder {
            recorder.close(now, SpanKind::Operation);
        }
    }

    /// What is done from now on, inside whatever is under way; returns what was done until now.
    pub fn turn(&mut self, activity: Activity) -> Activity {
        let now = self.now();
        if let Some(recorder) = &mut self.recorder {
            recorder.close(now, SpanKind::Wait);
        }
        self.timeline.turn(now, activity)
    }

    /// The same, for something that is done with a message from or to `peer`.
    pub fn turn_to(&mut self, activity: Activity, peer: usize, message: &Message) -> Activity {
        let now = self.now();
        if let (Some(recorder), Some((op, kind))) = (&mut self.recorder, activity.of_message()) {
            let key = Key { op, part: message.kind.name() };
            let message = (peer as u32, message.tag().0);
            recorder.open(now, kind, key, Where::NOWHERE, message);
        }
        self.timeline.turn(now, activity)
    }

    /// Where the time went so far.
    pub fn summary(&mut self) -> RunTime {
        self.timeline.summary(self.now())
    }

    /// What was recorded, for a run that asked for it.
    pub fn chunks(self, rank: usize) -> impl Iterator<Item = TimelineChunk> {
        let recorder = self.recorder.into_iter();
        recorder.flat_map(move |recorder| recorder.chunks(rank as u32, self.started_unix_ns))
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

//! What a simulation gives: seconds in all and by rank, bytes by link, spans for a chart.

use std::collections::BTreeMap;

/// What a rank spends time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SpanKind {
    /// Attention.
    Attend,
    /// The rest of a forward pass.
    Linear,
    /// Text encoding, guidance, noise scheduler, decoding.
    Other,
    /// Handing a message to the transport.
    Send,
    /// Waiting for a message.
    Wait,
}

/// One stretch of a rank's time, in seconds from the start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// The rank.
    pub rank: usize,
    /// Start.
    pub start: f64,
    /// End.
    pub end: f64,
    /// What it does.
    pub kind: SpanKind,
}

/// Where one rank's time goes, seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RankTimes {
    /// Computing.
    pub busy: f64,
    /// Handing messages over.
    pub send: f64,
    /// Waiting for messages.
    pub wait: f64,
}

impl RankTimes {
    pub(super) fn add(&mut self, kind: SpanKind, seconds: f64) {
        match kind {
            SpanKind::Send => self.send += seconds,
            SpanKind::Wait => self.wait += seconds,
            _ => self.busy += seconds,
        }
    }
}

/// A whole run in virtual time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Simulation {
    /// Seconds until everybody is done.
    pub seconds: f64,
    /// Where each rank's time goes.
    pub ranks: Vec<RankTimes>,
    /// When each step was complete on the last rank.
    pub step_ends: Vec<f64>,
    /// Payload bytes of the last step from rank to rank.
    pub step_bytes: BTreeMap<(usize, usize), u64>,
    /// Those of them that cross between nodes.
    pub crossing_step_bytes: u64,
    /// Actions carried out, a measure of the work of simulating.
    pub actions: u64,
    /// Stretches of time, when they were asked for.
    pub spans: Vec<Span>,
}

impl Simulation {
    pub(super) fn new(ranks: usize, steps: usize) -> Self {
        Self {
            ranks: vec![RankTimes::default(); ranks],
            step_ends: vec![0.0; steps],
            ..Self::default()
        }
    }

    pub(super) fn step_done(&mut self, step: usize, time: f64) {
        if let Some(end) = self.step_ends.get_mut(step) {
            *end = end.max(time);
        }
    }

    pub(super) fn count(&mut self, from: usize, to: usize, bytes: u64, crosses: bool) {
        if from < self.ranks.len() && to < self.ranks.len() {
            *self.step_bytes.entry((from, to)).or_default() += bytes;
            self.crossing_step_bytes += if crosses { bytes } else { 0 };
        }
    }

    /// Keeps a span, as the continuation of the rank's last one where it is.
    pub(super) fn draw(&mut self, span: Span, max: usize) {
        if let Some(last) = self.spans.last_mut()
            && last.rank == span.rank
            && last.kind == span.kind
            && last.end == span.start
        {
            last.end = span.end;
        } else if self.spans.len() < max {
            self.spans.push(span);
        }
    }

    /// Seconds of the last step: from the end of the one before to its own.
    pub fn last_step_seconds(&self) -> f64 {
        match self.step_ends.as_slice() {
            [.., before, last] => last - before,
            _ => self.seconds,
        }
    }

    /// Seconds of a run of `steps` steps of which this one, of fewer, is the beginning and end: the
    /// last two steps stand for those that are missing.
    pub fn extended_to(&self, steps: usize) -> f64 {
        let missing = steps.saturating_sub(self.step_ends.len()) as f64;
        let each = match self.step_ends.as_slice() {
            [.., before, _, last] => (last - before) / 2.0,
            _ => self.last_step_seconds(),
        };
        self.seconds + missing * each
    }
}

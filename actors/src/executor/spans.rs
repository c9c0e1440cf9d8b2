//! The spans of one rank in one run: the run, and in it encoding, each pass, decoding.
//!
//! Owns which operation belongs to which span. A pass is what belongs together of one step and one
//! patch: what is received for it, the forward pass, guidance and solver, what is sent on. Phases
//! inside a forward pass get no spans; the timeline has them. Numbers are signed, because
//! OpenTelemetry has no others.

use std::sync::Arc;

use tracing::Span;
use tracing::field::Empty;

use crate::plan::Plan;
use crate::plan::message::MessageKind;
use crate::plan::program::Op;
use crate::trace_context;

/// The open spans.
pub(super) struct Spans {
    run: Span,
    current: Option<(Stretch, Span)>,
    /// Context of the open span.
    traceparent: Option<Arc<str>>,
}

/// What a span covers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stretch {
    Encode,
    /// A pass before its forward pass, which says of what step it is.
    Opening,
    Pass,
    Decode,
}

impl Spans {
    /// Opens the span of rank `rank` in `run`, a child of the span that `traceparent` names.
    pub(super) fn new(plan: &Plan, rank: usize, run: u64, traceparent: Option<&str>) -> Self {
        let at = plan.mesh.coordinates(rank);
        let span = tracing::info_span!(
            "rank",
            rank = rank as i64,
            run = run.cast_signed(),
            cfg = at.cfg as i64,
            stage = at.stage as i64,
            sp = at.sp as i64,
        );
        trace_context::adopt(&span, traceparent);
        let traceparent = trace_context::of(&span).map(Into::into);
        Self { run: span, current: None, traceparent }
    }

    /// The span that `op`, which starts now, belongs to.
    pub(super) fn of(&mut self, op: &Op) -> Span {
        match op {
            Op::Encode => self.open(Stretch::Encode),
            Op::Recv { message, .. } => match message.kind {
                MessageKind::Activation | MessageKind::Sample => self.opening(),
                MessageKind::FinalRows => self.open(Stretch::Decode),
                _ => self.close(),
            },
            Op::Forward { step, patch, .. } => {
                self.opening();
                if let Some((stretch, span)) = &mut self.current {
                    *stretch = Stretch::Pass;
                    span.record("step", *step as i64);
                    if let Some(strip) = patch.strip() {
                        span.record("patch", strip as i64);
                    }
                }
            }
            Op::Condition | Op::Noise | Op::TakeLatents | Op::Restore => self.close(),
            Op::Gather | Op::Decode => self.open(Stretch::Decode),
            _ => {}
        }
        self.current.as_ref().map_or(&self.run, |(_, span)| span).clone()
    }

    /// The run failed.
    pub(super) fn fail(&self, cause: &str) {
        trace_context::fail(&self.run, cause);
    }

    /// W3C trace context of the span of the operation under way.
    pub(super) fn traceparent(&self) -> Option<Arc<str>> {
        self.traceparent.clone()
    }

    fn close(&mut self) {
        if self.current.take().is_some() {
            self.traceparent = trace_context::of(&self.run).map(Into::into);
        }
    }

    fn opening(&mut self) {
        self.open(Stretch::Opening);
    }

    fn open(&mut self, stretch: Stretch) {
        if self.current.as_ref().is_some_and(|(open, _)| *open == stretch) {
            return;
        }
        // The one before ends before this one starts.
        self.current = None;
        let span = match stretch {
            Stretch::Encode => tracing::info_span!(parent: &self.run, "encode"),
            Stretch::Opening | Stretch::Pass => {
                tracing::info_span!(parent: &self.run, "pass", step = Empty, patch = Empty)
            }
            Stretch::Decode => tracing::info_span!(parent: &self.run, "decode"),
        };
        self.traceparent = trace_context::of(&span).map(Into::into);
        self.current = Some((stretch, span));
    }
}

//! The spans of a run, for whoever wants to see them one by one.
//!
//! Owns a buffer that is allocated once. Pure: the time is an argument. Invariants: at most
//! [`TIMELINE_SPANS_MAX`] spans; when it is full what is done with messages is left out, then
//! phases, and only then what comes late; spans of one rank nest and never overlap by halves.

use super::{Key, Nanos};
use crate::request::{CHUNK_SPANS_MAX, NOWHERE, SpanKind, TimelineChunk, TimelineSpan};

/// Spans kept of one rank in one run; 48 bytes each.
pub const TIMELINE_SPANS_MAX: usize = 32_768;

/// Which step, patch and block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Where {
    /// Denoising step.
    pub step: u16,
    /// Patch.
    pub patch: u16,
    /// Block.
    pub block: u16,
}

impl Where {
    /// Outside the denoising loop.
    pub const NOWHERE: Self = Self { step: NOWHERE, patch: NOWHERE, block: NOWHERE };
}

/// Collects spans.
#[derive(Debug)]
pub struct Recorder {
    spans: Vec<TimelineSpan>,
    spans_max: usize,
    names: Vec<Key>,
    /// Operation, phase and message that are under way, outermost first.
    open: [Option<TimelineSpan>; 3],
    /// The finest kind that is still kept.
    finest: usize,
    left_out: u64,
}

/// Depth of a kind in [`Recorder::open`].
fn depth(kind: SpanKind) -> usize {
    match kind {
        SpanKind::Operation => 0,
        SpanKind::Phase => 1,
        SpanKind::Serialise | SpanKind::Send | SpanKind::Wait => 2,
    }
}

impl Recorder {
    /// A recorder of at most `spans_max` spans.
    pub fn new(spans_max: usize) -> Self {
        Self {
            spans: Vec::with_capacity(spans_max),
            spans_max,
            names: Vec::with_capacity(super::ACCOUNTS_MAX),
            open: [None; 3],
            finest: 2,
            left_out: 0,
        }
    }

    /// Something starts; what was under way at its depth or below has ended. What is done with a
    /// message names the message as `(peer, tag)`.
    pub fn open(
        &mut self,
        now: Nanos,
        kind: SpanKind,
        key: Key,
        place: Where,
        (peer, tag): (u32, u64),
    ) {
        self.close(now, kind);
        let name = self.name(key);
        let outer = self.open.iter().flatten().next();
        // What lies inside an operation is of the operation's step and patch.
        let (step, patch) = match outer {
            Some(operation) if kind != SpanKind::Operation => (operation.step, operation.patch),
            _ => (place.step, place.patch),
        };
        let (start_ns, end_ns, block) = (now, now, place.block);
        let span = TimelineSpan { start_ns, end_ns, tag, peer, name, step, patch, block, kind };
        if let Some(place) = self.open.get_mut(depth(kind)) {
            *place = Some(span);
        }
    }

    /// What is under way at the depth of `kind` or below has ended.
    pub fn close(&mut self, now: Nanos, kind: SpanKind) {
        for place in (depth(kind)..self.open.len()).rev() {
            if let Some(span) = self.open.get_mut(place).and_then(Option::take) {
                self.keep(TimelineSpan { end_ns: now.max(span.start_ns), ..span });
            }
        }
    }

    fn name(&mut self, key: Key) -> u16 {
        let known = self.names.iter().position(|name| *name == key);
        known.unwrap_or_else(|| {
            self.names.push(key);
            self.names.len() - 1
        }) as u16
    }

    fn keep(&mut self, span: TimelineSpan) {
        while self.spans.len() >= self.spans_max && self.finest > 0 {
            self.finest -= 1;
            let (finest, before) = (self.finest, self.spans.len());
            self.spans.retain(|span| depth(span.kind) <= finest);
            self.left_out += (before - self.spans.len()) as u64;
        }
        if depth(span.kind) > self.finest || self.spans.len() >= self.spans_max {
            self.left_out += 1;
        } else {
            self.spans.push(span);
        }
    }

    /// Everything in chunks that are small enough for one message each.
    pub fn chunks(self, rank: u32, started_unix_ns: u64) -> impl Iterator<Item = TimelineChunk> {
        let names: Vec<String> = self.names.iter().map(Key::to_string).collect();
        let (spans, left_out) = (self.spans, self.left_out);
        let count = spans.len().div_ceil(CHUNK_SPANS_MAX);
        (0..count).map(move |index| {
            let spans = spans.iter().skip(index * CHUNK_SPANS_MAX).take(CHUNK_SPANS_MAX);
            let (names, spans) = (names.clone(), spans.copied().collect());
            TimelineChunk { rank, started_unix_ns, names, spans, left_out }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASS: Key = Key { op: "forward", part: "" };
    const ATTEND: Key = Key { op: "forward", part: "attend" };
    const WAIT: Key = Key { op: "wait", part: "activation" };
    const NOBODY: (u32, u64) = (0, 0);

    /// `passes` operations, each of two phases with one wait in each: 5 spans.
    fn recorded(passes: u64, spans_max: usize) -> Vec<TimelineChunk> {
        let mut recorder = Recorder::new(spans_max);
        let mut now = 0;
        let mut tick = || {
            now += 10;
            now
        };
        for pass in 0..passes {
            let place = Where { step: pass as u16, patch: 1, block: NOWHERE };
            recorder.open(tick(), SpanKind::Operation, PASS, place, NOBODY);
            for block in 0..2 {
                let place = Where { block, ..Where::NOWHERE };
                recorder.open(tick(), SpanKind::Phase, ATTEND, place, NOBODY);
                recorder.open(tick(), SpanKind::Wait, WAIT, place, (3, 99));
                recorder.close(tick(), SpanKind::Wait);
            }
            recorder.close(tick(), SpanKind::Operation);
        }
        recorder.chunks(7, 1_000).collect()
    }

    #[test]
    fn what_lies_inside_is_of_the_step_and_patch_outside() {
        let chunks = recorded(2, 100);
        assert_eq!((chunks.len(), chunks[0].rank, chunks[0].spans.len()), (1, 7, 10));
        let wait = chunks[0].spans.iter().rev().find(|span| span.kind == SpanKind::Wait);
        let wait = wait.expect("it waited");
        assert_eq!((wait.step, wait.patch, wait.block), (1, 1, 1));
        assert_eq!((wait.peer, wait.tag, wait.end_ns - wait.start_ns), (3, 99, 10));
        assert_eq!(chunks[0].names[wait.name as usize], "wait.activation");
    }

    #[test]
    fn spans_of_one_rank_nest() {
        for chunk in recorded(20, 1000) {
            for a in &chunk.spans {
                for b in &chunk.spans {
                    let apart = a.end_ns <= b.start_ns || b.end_ns <= a.start_ns;
                    let inside = a.start_ns <= b.start_ns && b.end_ns <= a.end_ns;
                    let around = b.start_ns <= a.start_ns && a.end_ns <= b.end_ns;
                    assert!(apart || inside || around, "{a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn a_full_timeline_gets_coarser_and_says_so() {
        let kinds = |passes, max| {
            let chunks = recorded(passes, max);
            let spans: Vec<SpanKind> =
                chunks.iter().flat_map(|chunk| &chunk.spans).map(|span| span.kind).collect();
            let finest = spans.iter().copied().max().expect("some are kept");
            (spans.len() as u64, chunks[0].left_out, finest)
        };
        assert_eq!(kinds(10, 50), (50, 0, SpanKind::Wait));
        assert_eq!(kinds(10, 40), (30, 20, SpanKind::Phase));
        assert_eq!(kinds(10, 20), (10, 40, SpanKind::Operation));
        assert_eq!(kinds(10, 4), (4, 46, SpanKind::Operation));
    }

    #[test]
    fn nothing_is_allocated_after_the_start() {
        let mut recorder = Recorder::new(64);
        let (spans, names) = (recorder.spans.as_ptr(), recorder.names.as_ptr());
        for now in 0..10_000 {
            recorder.open(now, SpanKind::Operation, PASS, Where::NOWHERE, NOBODY);
        }
        assert_eq!((recorder.spans.as_ptr(), recorder.names.as_ptr()), (spans, names));
        assert_eq!((recorder.spans.len(), recorder.left_out), (64, 10_000 - 64 - 1));
    }

    #[test]
    fn many_spans_come_in_chunks() {
        let chunks = recorded(2000, TIMELINE_SPANS_MAX);
        let sizes: Vec<usize> = chunks.iter().map(|chunk| chunk.spans.len()).collect();
        assert_eq!(sizes, [4096, 4096, 10_000 - 2 * 4096]);
    }
}

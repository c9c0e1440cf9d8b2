//! A timeline of whole runs as a file for <https://ui.perfetto.dev>: the Chrome JSON trace format
//! ("Trace Event Format"), one process per node, one track per rank, arrows from send to receive.
//!
//! Owns the format and putting the ranks' clocks on one line. Does not own what was recorded.
//! Invariant: times are microseconds since the earliest start of a run.

mod clocks;

use std::collections::BTreeMap;

use ditmesh_actors::request::{NOWHERE, Report, SpanKind, TimelineChunk, TimelineSpan};
use serde::Serialize;

/// What one rank did in one run.
#[derive(Clone, Debug, Default)]
pub struct RankTimeline {
    /// `node/device`.
    pub device: String,
    /// Nanoseconds since the Unix epoch, by this rank's clock, at which its spans start to count.
    pub started_unix_ns: u64,
    /// What the spans' names are.
    pub names: Vec<String>,
    /// In the order in which they ended.
    pub spans: Vec<TimelineSpan>,
    /// Spans that were not kept.
    pub left_out: u64,
}

impl RankTimeline {
    /// The host it ran on: ranks of one node share a clock.
    fn node(&self) -> &str {
        self.device.split_once('/').map_or(&self.device, |(node, _)| node)
    }

    fn name(&self, span: &TimelineSpan) -> &str {
        self.names.get(usize::from(span.name)).map_or("", String::as_str)
    }
}

/// What all ranks did in one run.
#[derive(Clone, Debug, Default)]
pub struct RunTimeline {
    ranks: BTreeMap<u32, RankTimeline>,
}

impl RunTimeline {
    /// Takes a part of one rank's timeline.
    pub fn add(&mut self, chunk: TimelineChunk) {
        let rank = self.ranks.entry(chunk.rank).or_default();
        rank.started_unix_ns = chunk.started_unix_ns;
        rank.names = chunk.names;
        rank.left_out = chunk.left_out;
        rank.spans.extend(chunk.spans);
    }

    /// Learns from the run's report which rank ran where.
    pub fn place(&mut self, report: &Report) {
        for told in &report.ranks {
            if let Some(rank) = self.ranks.get_mut(&told.rank) {
                rank.device.clone_from(&told.device);
            }
        }
    }

    /// By rank.
    pub fn ranks(&self) -> &BTreeMap<u32, RankTimeline> {
        &self.ranks
    }

    /// Spans that were not kept, of all ranks.
    pub fn left_out(&self) -> u64 {
        self.ranks.values().map(|rank| rank.left_out).sum()
    }

    /// Moves the clocks of all nodes onto one line; see [`clocks`].
    fn align(&mut self) {
        let offsets = clocks::offsets(&self.ranks);
        for rank in self.ranks.values_mut() {
            let offset = offsets.get(rank.node()).copied().unwrap_or(0);
            rank.started_unix_ns = rank.started_unix_ns.saturating_add_signed(offset);
        }
    }
}

/// The file of `runs`, one after another on the same tracks.
///
/// # Errors
/// Never for values that serde can write.
pub fn encode(mut runs: Vec<RunTimeline>) -> Result<Vec<u8>, serde_json::Error> {
    runs.iter_mut().for_each(RunTimeline::align);
    let starts = runs.iter().flat_map(|run| run.ranks.values()).map(|rank| rank.started_unix_ns);
    let origin = starts.min().unwrap_or(0);
    let nodes = nodes(&runs);
    let mut events = names(&runs, &nodes);
    let mut flows = Flows::default();
    for run in &runs {
        for (&rank, timeline) in &run.ranks {
            let base = timeline.started_unix_ns.saturating_sub(origin);
            let pid = nodes.get(timeline.node()).copied().unwrap_or(0);
            let track = Track { pid, tid: rank, base };
            events.extend(timeline.spans.iter().map(|span| track.slice(timeline, span)));
        }
        events.extend(flows.of(run, &nodes, origin));
    }
    let unit = "ns";
    serde_json::to_vec(&File { display_time_unit: unit, trace_events: events })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File<'a> {
    display_time_unit: &'static str,
    trace_events: Vec<Event<'a>>,
}

/// One event of the format.
#[derive(Serialize)]
struct Event<'a> {
    ph: &'static str,
    name: &'a str,
    cat: &'static str,
    pid: usize,
    tid: u32,
    /// Microseconds.
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    /// `e`: the arrow ends in the slice around it.
    #[serde(skip_serializing_if = "Option::is_none")]
    bp: Option<&'static str>,
    #[serde(skip_serializing_if = "Details::is_empty")]
    args: Details,
}

#[derive(Default, Serialize)]
struct Details {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    block: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<u32>,
}

impl Details {
    fn is_empty(&self) -> bool {
        let Self { name, step, patch, block, peer } = self;
        name.is_none() && step.is_none() && patch.is_none() && block.is_none() && peer.is_none()
    }
}

/// Where a rank's slices go.
struct Track {
    pid: usize,
    tid: u32,
    /// Nanoseconds from the origin to the start of the rank's run.
    base: u64,
}

impl Track {
    fn slice<'a>(&self, timeline: &'a RankTimeline, span: &TimelineSpan) -> Event<'a> {
        let known = |number: u16| (number != NOWHERE).then_some(number);
        let cat = category(span.kind);
        let of_message = matches!(cat, "wait" | "send" | "serialise");
        let args = Details {
            name: None,
            step: known(span.step),
            patch: known(span.patch),
            block: known(span.block),
            peer: of_message.then_some(span.peer),
        };
        Event {
            dur: Some(micros(span.end_ns.saturating_sub(span.start_ns))),
            args,
            ..self.event("X", timeline.name(span), cat, span.start_ns)
        }
    }

    fn event<'a>(
        &self,
        ph: &'static str,
        name: &'a str,
        cat: &'static str,
        at_ns: u64,
    ) -> Event<'a> {
        let Self { pid, tid, base } = *self;
        let (dur, id, bp, args) = (None, None, None, Details::default());
        Event { ph, name, cat, pid, tid, ts: micros(base.saturating_add(at_ns)), dur, id, bp, args }
    }
}

fn category(kind: SpanKind) -> &'static str {
    match kind {
        SpanKind::Operation => "operation",
        SpanKind::Phase => "phase",
        SpanKind::Serialise => "serialise",
        SpanKind::Send => "send",
        SpanKind::Wait => "wait",
    }
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

/// Process numbers of the nodes, in the order of their names.
fn nodes(runs: &[RunTimeline]) -> BTreeMap<String, usize> {
    let ranks = runs.iter().flat_map(|run| run.ranks.values());
    let mut nodes: BTreeMap<String, usize> =
        ranks.map(|rank| (rank.node().to_owned(), 0)).collect();
    nodes.values_mut().zip(1..).for_each(|(node, number)| *node = number);
    nodes
}

/// Names of processes and tracks.
fn names(runs: &[RunTimeline], nodes: &BTreeMap<String, usize>) -> Vec<Event<'static>> {
    let mut tracks = BTreeMap::new();
    for (rank, timeline) in runs.iter().flat_map(|run| &run.ranks) {
        let pid = nodes.get(timeline.node()).copied().unwrap_or(0);
        tracks.insert((pid, *rank), format!("rank {rank} ({})", timeline.device));
    }
    let meta = |name: &'static str, pid: usize, tid: u32, text: String| Event {
        args: Details { name: Some(text), ..Details::default() },
        ..Track { pid, tid, base: 0 }.event("M", name, "__metadata", 0)
    };
    let processes =
        nodes.iter().map(|(node, pid)| meta("process_name", *pid, 0, format!("node {node}")));
    let threads =
        tracks.into_iter().map(|((pid, rank), text)| meta("thread_name", pid, rank, text));
    processes.chain(threads).collect()
}

/// Numbers arrows.
#[derive(Default)]
struct Flows {
    last: u64,
}

impl Flows {
    /// An arrow for every message of which both ends were recorded.
    fn of(
        &mut self,
        run: &RunTimeline,
        nodes: &BTreeMap<String, usize>,
        origin: u64,
    ) -> Vec<Event<'static>> {
        let track = |rank: u32, timeline: &RankTimeline| Track {
            pid: nodes.get(timeline.node()).copied().unwrap_or(0),
            tid: rank,
            base: timeline.started_unix_ns.saturating_sub(origin),
        };
        let mut events = Vec::new();
        for message in clocks::messages(&run.ranks) {
            self.last += 1;
            let (from, to) = (message.sender, message.receiver);
            let id = Some(self.last);
            let start = track(from.0, from.1).event("s", "frame", "frame", message.sent.start_ns);
            // Just inside the wait: an arrow belongs to the slice around its end.
            let inside = message.received.end_ns.saturating_sub(1).max(message.received.start_ns);
            let end = track(to.0, to.1).event("f", "frame", "frame", inside);
            events.push(Event { id, ..start });
            events.push(Event { id, bp: Some("e"), ..end });
        }
        events
    }
}

#[cfg(test)]
mod tests;

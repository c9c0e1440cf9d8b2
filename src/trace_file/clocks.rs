//! Clocks of several hosts on one line.
//!
//! Ranks of one node share a clock. Between nodes the offset is estimated from the run's own
//! frames, as NTP does from its packets (RFC 5905, section 8): the smallest difference between
//! sending and receiving in one direction is delay plus offset, in the other delay minus offset.
//! Where frames went one way only, a clock is moved just as far as nothing arrives before it left.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use ditmesh_actors::request::{SpanKind, TimelineSpan};

use super::RankTimeline;

type Ranks = BTreeMap<u32, RankTimeline>;

/// A message of which both ends were recorded.
pub(super) struct Message<'a> {
    pub(super) sender: (u32, &'a RankTimeline),
    pub(super) receiver: (u32, &'a RankTimeline),
    pub(super) sent: &'a TimelineSpan,
    pub(super) received: &'a TimelineSpan,
}

/// All of them.
pub(super) fn messages(ranks: &Ranks) -> Vec<Message<'_>> {
    let of_kind = |kind: SpanKind| {
        ranks.iter().flat_map(move |(rank, timeline)| {
            let spans = timeline.spans.iter().filter(move |span| span.kind == kind);
            spans.map(move |span| ((*rank, timeline), span))
        })
    };
    // A tag is unique for a run, a sender and a receiver.
    let waits: HashMap<(u32, u32, u64), _> = of_kind(SpanKind::Wait)
        .map(|(receiver, span)| ((span.peer, receiver.0, span.tag), (receiver, span)))
        .collect();
    of_kind(SpanKind::Send)
        .filter_map(|(sender, sent)| {
            let (receiver, received) = *waits.get(&(sender.0, sent.peer, sent.tag))?;
            Some(Message { sender, receiver, sent, received })
        })
        .collect()
}

/// Nanoseconds to add to the times of each node; the first node's clock is right.
pub(super) fn offsets(ranks: &Ranks) -> BTreeMap<String, i64> {
    let mut least: HashMap<(&str, &str), i64> = HashMap::new();
    for message in messages(ranks) {
        let (from, to) = (message.sender.1, message.receiver.1);
        if from.node() == to.node() {
            continue;
        }
        let left = from.started_unix_ns.saturating_add(message.sent.start_ns);
        let came = to.started_unix_ns.saturating_add(message.received.end_ns);
        let apart = came.wrapping_sub(left).cast_signed();
        let known = least.entry((from.node(), to.node())).or_insert(apart);
        *known = apart.min(*known);
    }
    let nodes: BTreeSet<&str> = ranks.values().map(RankTimeline::node).collect();
    let mut offsets: BTreeMap<String, i64> = BTreeMap::new();
    // From node to node, as far as frames went; a node that none reached keeps its own clock.
    for &root in &nodes {
        let mut next = VecDeque::from([(root, 0)]);
        while let Some((node, offset)) = next.pop_front() {
            if offsets.contains_key(node) {
                continue;
            }
            offsets.insert(node.to_owned(), offset);
            for &other in &nodes {
                let (to, back) = (least.get(&(node, other)), least.get(&(other, node)));
                if let Some(ahead) = ahead(to.copied(), back.copied()) {
                    next.push_back((other, offset.saturating_sub(ahead)));
                }
            }
        }
    }
    offsets
}

/// How far the other clock is ahead, given the least differences there and back.
fn ahead(there: Option<i64>, back: Option<i64>) -> Option<i64> {
    match (there, back) {
        (Some(there), Some(back)) => Some(there.saturating_sub(back) / 2),
        (Some(there), None) => Some(there.min(0)),
        (None, Some(back)) => Some(-back.min(0)),
        (None, None) => None,
    }
}

//! Files of made-up runs whose clocks disagree in a known way.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use serde_json::Value;

use super::*;

const MS: u64 = 1_000_000;
/// When every run starts, truly.
const START: u64 = 1_700_000_000_000 * MS;

/// Two ranks that send each other one message per step: 2 ms there, 1 ms back. The clock of the
/// second runs `ahead` ms before the first's.
fn run(nodes: [&str; 2], ahead: i64) -> RunTimeline {
    let names = ["forward", "send.activation", "wait.activation"];
    let mut run = RunTimeline::default();
    for rank in 0..2_u32 {
        let other = 1 - rank;
        let mut spans = Vec::new();
        for step in 0..3_u16 {
            let at = |ms: u64| (u64::from(step) * 10 + ms) * MS;
            let span = |name, kind, start: u64, end: u64, tag| TimelineSpan {
                start_ns: at(start),
                end_ns: at(end),
                tag,
                peer: other,
                name,
                step,
                patch: NOWHERE,
                block: NOWHERE,
                kind,
            };
            let (there, back) = (u64::from(step) * 2, u64::from(step) * 2 + 1);
            if rank == 0 {
                spans.push(span(1, SpanKind::Send, 1, 2, there));
                spans.push(span(2, SpanKind::Wait, 2, 6, back));
            } else {
                spans.push(span(2, SpanKind::Wait, 0, 3, there));
                spans.push(span(1, SpanKind::Send, 5, 6, back));
            }
            spans.push(span(0, SpanKind::Operation, 0, 8, 0));
        }
        let clock = if rank == 1 { ahead * MS as i64 } else { 0 };
        run.add(TimelineChunk {
            rank,
            started_unix_ns: START.checked_add_signed(clock).unwrap(),
            names: names.map(str::to_owned).to_vec(),
            spans,
            left_out: 0,
        });
        run.ranks.get_mut(&rank).unwrap().device = format!("{}/{rank}", nodes[rank as usize]);
    }
    run
}

fn events(runs: Vec<RunTimeline>) -> Vec<Value> {
    let file: Value = serde_json::from_slice(&encode(runs).unwrap()).unwrap();
    file["traceEvents"].as_array().unwrap().clone()
}

fn of<'e>(events: &'e [Value], ph: &'e str) -> impl Iterator<Item = &'e Value> {
    events.iter().filter(move |event| event["ph"] == ph)
}

#[test]
fn every_rank_has_a_track_on_its_node() {
    let events = events(vec![run(["a", "b"], 0)]);
    let named = |name: &str| -> Vec<(u64, u64, String)> {
        let named = of(&events, "M").filter(|event| event["name"] == name);
        let read = |event: &Value| {
            let text = event["args"]["name"].as_str().unwrap().to_owned();
            (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap(), text)
        };
        named.map(read).collect()
    };
    let processes = [(1, 0, "node a".to_owned()), (2, 0, "node b".to_owned())];
    assert_eq!(named("process_name"), processes);
    let tracks = [(1, 0, "rank 0 (a/0)".to_owned()), (2, 1, "rank 1 (b/1)".to_owned())];
    assert_eq!(named("thread_name"), tracks);
    assert_eq!(of(&events, "X").count(), 2 * 9);
    let forward = of(&events, "X").find(|event| event["name"] == "forward").unwrap();
    assert_eq!(forward["dur"], 8000.0);
    let starts = of(&events, "X").map(|event| event["ts"].as_f64().unwrap());
    assert_eq!(starts.fold(f64::INFINITY, f64::min), 0.0);
    assert_eq!(forward["args"], serde_json::json!({ "step": 0 }));
}

#[test]
fn an_arrow_leads_from_each_send_into_its_wait() {
    let events = events(vec![run(["a", "b"], 0), run(["a", "b"], 0)]);
    let starts: HashMap<u64, &Value> =
        of(&events, "s").map(|event| (event["id"].as_u64().unwrap(), event)).collect();
    assert_eq!(starts.len(), 2 * 6);
    assert_eq!(of(&events, "f").count(), 2 * 6);
    for end in of(&events, "f") {
        let start = starts[&end["id"].as_u64().unwrap()];
        assert_ne!(start["tid"], end["tid"]);
        assert!(start["ts"].as_f64() < end["ts"].as_f64(), "{start} {end}");
        assert_eq!(end["bp"], "e");
        let around = of(&events, "X").find(|slice| {
            let (ts, at) = (slice["ts"].as_f64().unwrap(), end["ts"].as_f64().unwrap());
            let inside = ts <= at && at < ts + slice["dur"].as_f64().unwrap();
            inside && slice["cat"] == "wait" && slice["tid"] == end["tid"]
        });
        assert!(around.is_some(), "{end} ends outside every wait");
    }
}

/// Clocks that are hours apart give the file that equal clocks give, but for half the difference
/// between the delays there and back, which nobody can tell from an offset.
#[test]
fn clocks_of_nodes_are_put_on_one_line() {
    for ahead in [0, 5, -5, 7_200_000, -7_200_000] {
        let mut told = run(["a", "b"], ahead);
        told.align();
        let starts = [0, 1].map(|rank| told.ranks[&rank].started_unix_ns);
        assert_eq!(starts[0], START, "{ahead}");
        let off = starts[1].abs_diff(START);
        assert!(off <= MS / 2, "{ahead} ms: {off} ns");
    }
}

#[test]
fn one_node_has_one_clock() {
    let mut told = run(["a", "a"], 5);
    told.align();
    assert_eq!(told.ranks[&1].started_unix_ns, START + 5 * MS);
}

#[test]
fn with_frames_one_way_nothing_arrives_before_it_left() {
    for (ahead, expected) in [(-5, -2), (5, 5)] {
        let mut told = run(["a", "b"], ahead);
        told.ranks.get_mut(&1).unwrap().spans.retain(|span| span.kind != SpanKind::Send);
        told.align();
        let start = START.checked_add_signed(expected * MS as i64).unwrap();
        assert_eq!(told.ranks[&1].started_unix_ns, start, "{ahead}");
    }
}

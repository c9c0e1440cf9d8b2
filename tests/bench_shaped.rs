//! Two processes in network namespaces of their own, over a link with a rate and a queue.
//!
//! Needs root, `ip` and `tc`; skips itself where they are missing, except where
//! `DITMESH_TEST_NAMESPACES=required`.

use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::cli_process::ditmesh;

/// Round trips over the control channel, one every 20 ms.
const BEATS: u32 = 50;
/// Five minutes of them.
const BEATS_FULL: u32 = 15_000;
/// What is allowed at full scale, on a machine with nothing else to do.
const P99_MS_MAX: f64 = 25.0;
/// Silence after which a member is suspected, by default.
const SUSPECT_MS: f64 = 800.0;

/// Whether namespaces and queues can be made here.
fn is_possible() -> bool {
    // Once: two tests that try at one time take each other's namespace away, and both skip.
    static POSSIBLE: OnceLock<bool> = OnceLock::new();
    *POSSIBLE.get_or_init(try_namespaces)
}

fn try_namespaces() -> bool {
    let name = format!("ditmesh-probe-{}", std::process::id());
    let run = |line: &str| {
        let mut words = line.split_whitespace();
        let program = words.next().unwrap();
        Command::new(program).args(words).output().is_ok_and(|output| output.status.success())
    };
    let possible = run(&format!("ip netns add {name}"))
        && run(&format!(
            "ip netns exec {name} tc qdisc add dev lo root tbf rate 1mbit burst 1600 latency 10ms"
        ));
    run(&format!("ip netns del {name}"));
    let required = std::env::var("DITMESH_TEST_NAMESPACES").is_ok_and(|how| how == "required");
    assert!(possible || !required, "no network namespaces here");
    possible
}

#[test]
fn heartbeats_come_through_while_bulk_fills_the_link() {
    if !is_possible() {
        return;
    }
    let full = std::env::var("DITMESH_TEST_SCALE").is_ok_and(|scale| scale == "full");
    let beats = if full { BEATS_FULL } else { BEATS }.to_string();
    let line = ["bench", "transport", "--shaped", "200", "--only", "quic", "--rounds", "1"];
    let folder = tempfile::tempdir().unwrap();
    let ended = ditmesh(folder.path(), &[&line[..], &["--heartbeats", &beats, "--json"]].concat());
    let report: Value = serde_json::from_str(ended.done()).unwrap();
    let beats = &report["heartbeats"];
    let (p99, longest) = (beats["p99_ms"].as_f64().unwrap(), beats["max_ms"].as_f64().unwrap());
    assert!(longest < SUSPECT_MS, "a member would be suspected: {beats}");
    assert!(!full || p99 <= P99_MS_MAX, "{beats}");
    // Else nothing was in the way of the heartbeats.
    assert!(beats["bulk_gb_per_s"].as_f64().unwrap() > 0.5 * 0.025, "{beats}");
}

/// Loss and delay are as asked for, and both controllers get something over such a link.
#[test]
fn a_link_that_loses_and_holds_packets_does_what_was_asked() {
    if !is_possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let line = "bench transport --shaped 200 --loss-ppm 1000 --delay-ms 8 --rounds 1 \
                --heartbeats 20 --only quic,quic-bbr --json";
    let ended = ditmesh(folder.path(), &line.split_whitespace().collect::<Vec<_>>());
    let report: Value = serde_json::from_str(ended.done()).unwrap();
    // A round trip of a heartbeat is held once.
    assert!(report["heartbeats"]["p50_ms"].as_f64().unwrap() >= 8.0, "{report:#}");
    let lost = report["lost"]["lost"].as_f64().unwrap() / report["lost"]["of"].as_f64().unwrap();
    assert!((0.0002..0.005).contains(&lost), "{report:#}");
    for way in report["ways"].as_array().unwrap() {
        assert!(way["gb_per_s"]["median"].as_f64().unwrap() > 0.002, "{report:#}");
    }
}

#[test]
fn the_price_of_a_slow_link_is_told_method_by_method() {
    if !is_possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let small = "bench shaped --mbits 100 --hidden 48 --heads 4 --blocks 2 --latent 8 --steps 1 \
                 --rounds 1 --only ulysses2 --json";
    let ended = ditmesh(folder.path(), &small.split_whitespace().collect::<Vec<_>>());
    let report: Value = serde_json::from_str(ended.done()).unwrap();
    let lines = report["lines"].as_array().unwrap();
    let ways: Vec<_> = lines.iter().map(|line| line["way"].as_str().unwrap()).collect();
    assert_eq!(ways, ["ulysses2", "ulysses2-int8"]);
    let bytes = |line: usize| lines[line]["megabytes_per_step"].as_f64().unwrap();
    assert!(bytes(1) < 0.5 * bytes(0), "{report:#}");
    assert!(report["given_back"]["ulysses2"]["median"].is_number(), "{report:#}");
}

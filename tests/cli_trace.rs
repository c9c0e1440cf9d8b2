//! `generate --trace`: a timeline that Perfetto reads.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::cli_generate::fixtures;
use crate::cli_process::ditmesh;

fn number(event: &Value, key: &str) -> f64 {
    event[key].as_f64().unwrap_or_else(|| panic!("no {key} in {event}"))
}

/// Slices of one track nest: none begins in another and ends after it.
fn check_nesting(slices: &[&Value]) {
    let mut open: Vec<f64> = Vec::new();
    let mut ordered: Vec<(f64, f64)> =
        slices.iter().map(|slice| (number(slice, "ts"), number(slice, "dur"))).collect();
    ordered.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    for (start, length) in ordered {
        // Microseconds of a second-long run in f64: far finer than a nanosecond.
        while open.last().is_some_and(|end| *end <= start + 1e-4) {
            open.pop();
        }
        let end = start + length;
        assert!(open.last().is_none_or(|outer| end <= outer + 1e-4), "{start} to {end}: {open:?}");
        open.push(end);
    }
}

#[test]
fn a_timeline_has_a_track_per_rank_and_arrows_between_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let model = fixtures().join("pipelines/sigma_8x8");
    let model = model.to_str().unwrap();
    let mesh = ["--pipefusion-degree", "2", "--ulysses-degree", "2", "--threads", "1"];
    let what = ["generate", "--model", model, "-p", "x", "--steps", "3", "-n", "2"];
    let files = ["-o", "x.png", "--trace", "x.json", "--report", "report.json"];
    // Checkpoints go to the controller, which has no track.
    let none = ["--checkpoint-every", "0"];
    ditmesh(folder, &[&what[..], &mesh, &files, &none].concat()).done();

    let file: Value =
        serde_json::from_slice(&std::fs::read(folder.join("x.json")).unwrap()).unwrap();
    let events = file["traceEvents"].as_array().unwrap();
    let of = |ph: &str| -> Vec<&Value> { events.iter().filter(|e| e["ph"] == ph).collect() };
    let tracks: BTreeSet<String> = of("M")
        .iter()
        .filter(|event| event["name"] == "thread_name")
        .map(|event| event["args"]["name"].as_str().unwrap().to_owned())
        .collect();
    let expected = (0..4).map(|rank| format!("rank {rank} (local/{rank})"));
    assert_eq!(tracks, expected.collect());
    for rank in 0..4_u64 {
        let slices: Vec<&Value> = of("X").into_iter().filter(|e| e["tid"] == rank).collect();
        let named = |name: &str| slices.iter().filter(|slice| slice["name"] == name).count();
        // Two pictures, each with one synchronous step and two of two patches.
        assert_eq!(named("forward"), 2 * 5, "rank {rank}");
        assert!(named("forward.attend") > 0 && named("wait.ulysses_qkv") > 0);
        check_nesting(&slices);
    }
    let starts: BTreeMap<u64, &Value> =
        of("s").into_iter().map(|event| (event["id"].as_u64().unwrap(), event)).collect();
    assert_eq!(starts.len(), of("f").len());
    for end in of("f") {
        let start = starts[&end["id"].as_u64().unwrap()];
        assert!(start["tid"] != end["tid"] && number(start, "ts") <= number(end, "ts"));
    }

    // As many arrows as frames went from rank to rank.
    let report: Value =
        serde_json::from_slice(&std::fs::read(folder.join("report.json")).unwrap()).unwrap();
    let pictures = report["pictures"].as_array().unwrap();
    let ranks = pictures.iter().flat_map(|p| p["report"]["ranks"].as_array().unwrap());
    let frames: u64 = ranks.map(|rank| rank["frames_sent"].as_u64().unwrap()).sum();
    // One of each picture went to the controller, which has no track.
    assert_eq!(starts.len() as u64, frames - 2);
    let wall = |time: &Value| number(time, "wall_s");
    assert!(pictures.iter().all(|p| wall(&p["report"]["ranks"][0]["time"]) > 0.0));
}

#[test]
fn more_pictures_than_a_timeline_holds_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["generate", "-p", "x", "-n", "33", "--trace", "x.json"];
    ditmesh(folder.path(), &args).refused(2, &["--trace", "32", "33"]);
}

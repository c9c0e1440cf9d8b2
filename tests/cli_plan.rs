//! `ditmesh plan`: from a configuration to a mesh, before anything runs.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli_process::ditmesh;

fn spec(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("actors/tests/paper").join(name)
}

const MANIFEST: &str = r#"
schema = 1
[cluster]
name = "two"
[[node]]
name = "a"
[[node.device]]
threads = 1
[[node.device]]
threads = 4
[[node]]
name = "b"
[[node.device]]
threads = 4
[[node.device]]
threads = 4
[[group]]
model = "built-in"
quality = "exact"
[[link]]
class = "same-node"
bytes_per_s = 1e9
[[link]]
nodes = ["a", "b"]
bytes_per_s = 1_000_000
latency_s = 0.01
"#;

#[test]
fn a_model_is_planned_from_its_configuration_alone() {
    let folder = tempfile::tempdir().unwrap();
    let flux = spec("flux.json").display().to_string();
    let line = ["plan", "--devices", "8", "--dtype", "f16", "--json", "--gantt", "chart.svg"];
    let ended = ditmesh(folder.path(), &[&line[..], &["--spec", &flux]].concat());
    let plan: Value = serde_json::from_str(ended.done()).unwrap();
    assert_eq!((plan["model"].as_str(), plan["runs"].as_bool()), (Some("FLUX.1"), Some(false)));
    let ranks = plan["ranks"].as_array().unwrap();
    let blocks = |stage: u64| {
        let of_stage = ranks.iter().find(|rank| rank["stage"] == stage).unwrap();
        of_stage["blocks"][1].as_u64().unwrap() - of_stage["blocks"][0].as_u64().unwrap()
    };
    let stages = plan["mesh"]["degrees"]["pipefusion_degree"].as_u64().unwrap();
    assert_eq!((0..stages).map(blocks).sum::<u64>(), 57);
    let weights: u64 = ranks.iter().map(|rank| rank["bytes"]["weights"].as_u64().unwrap()).sum();
    assert!(weights > 22_000_000_000, "{weights} bytes for 11.9 billion parameters in 16 bits");
    assert!(plan["seconds"].as_f64().unwrap() > 0.0);
    assert!(std::fs::read_to_string(folder.path().join("chart.svg")).unwrap().starts_with("<svg"));
}

#[test]
fn a_plan_says_why_the_others_lost_and_what_it_rests_on() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cluster.toml"), MANIFEST).unwrap();
    let ended = ditmesh(folder.path(), &["plan", "--explain", "--cluster", "cluster.toml"]);
    let text = ended.done();
    for part in [
        "predicted:",
        "a/0",
        "why the others lost:",
        "only exact methods",
        "links as measured, or as the manifest says",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn what_cannot_be_planned_is_a_usage_error() {
    let folder = tempfile::tempdir().unwrap();
    let refuse = |args: &[&str], part: &str| {
        ditmesh(folder.path(), &[&["plan"], args].concat()).refused(2, &[part]);
    };
    refuse(&["--spec", "/nowhere/config.json"], "/nowhere/config.json");
    refuse(&["--height", "100"], "height 100");
    refuse(&["--spec", &spec("l40.toml").display().to_string()], "l40.toml");
}

//! How fast devices are: measured before their workers start where nobody has measured them, and
//! what follows from it for who holds how much.

use std::path::Path;

use ditmesh::ClusterStatus;
use ditmesh_actors::cost::calibration::{Calibration, cluster_folder, of_device};
use ditmesh_actors::cost::device::{DeviceProfile, Rates};
use ditmesh_actors::status::DeviceStatus;
use serde_json::Value;

use crate::cluster_harness::{Cluster, Settings, short_request, wait_until};
use crate::cluster_joiner::Joiner;

fn device<'s>(status: &'s ClusterStatus, node: &str) -> &'s DeviceStatus {
    &status.nodes.iter().find(|known| known.name == node).unwrap().devices[0]
}

/// What `ditmesh plan` knows of each device of the manifest.
fn planned(cluster: &Cluster) -> Vec<(String, Option<f64>)> {
    let ended = cluster.run(&["plan", "--json", "--cluster", "cluster.toml"]);
    let plan: Value = serde_json::from_str(ended.done()).unwrap();
    let of =
        |rank: &Value| (rank["device"].as_str().unwrap().to_owned(), rank["flops_per_s"].as_f64());
    plan["ranks"].as_array().unwrap().iter().map(of).collect()
}

/// Nobody has measured anything on these machines: the nodes of the manifest are measured when the
/// cluster comes up, one that joins by token when it joins; everybody is told, and knows it at the
/// next start.
#[test]
fn devices_that_nobody_measured_are_measured_before_they_work() {
    let settings = Settings { elastic: true, measured: true, ..Settings::default() };
    let cluster = Cluster::new(settings);
    let nobody = planned(&cluster);
    assert!(nobody.iter().all(|(_, rate)| rate.is_none()), "{nobody:?}");
    cluster.start();
    let joiner = Joiner::join(&cluster, "c");
    wait_until("a mesh of 3", || cluster.status().mesh.is_some_and(|mesh| mesh.ranks.len() == 3));
    let status = cluster.status();
    for node in ["a", "b", "c"] {
        let rate = device(&status, node).flops_per_s;
        eprintln!("{node}: {rate:?} FLOP/s");
        assert!(rate.is_some_and(|rate| rate > 1_000_000), "{node} is not measured: {status:?}");
    }
    let text = cluster.run(&["status", "--cluster", "cluster.toml"]);
    assert!(!text.done().contains("not measured"), "{}", text.stdout);
    let said = |node: &str| device(&status, node).flops_per_s.unwrap();
    for (name, rate) in planned(&cluster) {
        let node = name.split('/').next().unwrap();
        assert_eq!(rate.map(|rate| rate as u64), Some(said(node)), "{name}");
    }
    cluster.client().generate(short_request()).blocking_finish().unwrap();
    // Kept where `bench device` keeps it, but for what others on the same cores spoilt.
    let kept_by = |cache: &Path, nodes: &[&str]| {
        let kept = Calibration::load(&cache.join("ditmesh")).unwrap().unwrap_or_default();
        let rate = kept.devices.get("cpu-1").map(|profile| profile.gemm_flops_per_s.f32 as u64);
        eprintln!("{nodes:?} kept {rate:?}");
        assert!(rate.is_none_or(|rate| nodes.iter().any(|node| said(node) == rate)), "{kept:?}");
    };
    kept_by(&cluster.user_cache(), &["a", "b"]);
    kept_by(joiner.folder.path(), &["c"]);
}

/// By what was measured of two nodes one is a third as fast: it holds fewer blocks.
#[test]
fn a_slower_device_holds_fewer_blocks() {
    let cluster = Cluster::new(Settings::default());
    let profile = |gigaflops: f64| DeviceProfile {
        gemm_flops_per_s: Rates::all(gigaflops * 1e9),
        attention_flops_per_s: Rates::all(gigaflops * 1e9),
        ..DeviceProfile::unmeasured_cpu(1)
    };
    let folder = cluster_folder(&cluster.manifest.cluster.state_dir);
    let mut kept = Calibration::default();
    for (node, gigaflops) in [("a", 20.0), ("b", 60.0)] {
        kept.devices.insert(of_device(node, 0, "cpu-1"), profile(gigaflops));
    }
    kept.save(&folder).unwrap();
    cluster.start();
    cluster.client().generate(short_request()).blocking_finish().unwrap();
    let status = cluster.status();
    let rates = ["a", "b"].map(|node| device(&status, node).flops_per_s);
    assert_eq!(rates, [Some(20_000_000_000), Some(60_000_000_000)]);
    let mesh = status.mesh.unwrap();
    let held = |name: &str| {
        let rank = mesh.ranks.iter().find(|rank| rank.device == name).unwrap();
        rank.blocks.1 - rank.blocks.0
    };
    assert_eq!((held("a/0"), held("b/0")), (2, 6), "{mesh:?}");
}

//! The simulator and the planner over it: time that adds up, choices that follow from what devices,
//! links and memory are, and a thousand devices in little work.

use std::time::{Duration, Instant};

use ditmesh_actors::cost::cluster::Cluster;
use ditmesh_actors::cost::device::{DeviceProfile, Rates};
use ditmesh_actors::cost::link::{LinkProfile, Links};
use ditmesh_actors::plan::check;
use ditmesh_actors::planner::{
    Candidate, SIMULATED_ACTIONS_MAX, Wish, choose, choose_order, plan_of, predict,
};
use ditmesh_actors::request::{Degrees, Dtype};
use ditmesh_actors::simulate::{Setting, SpanKind, simulate, svg};
use ditmesh_model::spec::description::{Description, describe_any};
use proptest::prelude::*;

use crate::harness::degrees;

fn model(name: &str) -> Description {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/paper").join(name);
    describe_any(&path, candle_core::DType::F16).unwrap()
}

fn gpu() -> DeviceProfile {
    DeviceProfile {
        gemm_flops_per_s: Rates::all(100e12),
        attention_flops_per_s: Rates::all(80e12),
        memory_bytes_per_s: 800e9,
        phase_s: 10e-6,
        memory_bytes: 0,
        processor: String::new(),
    }
}

fn link(gb_s: f64) -> LinkProfile {
    LinkProfile { bytes_per_s: gb_s * 1e9, latency_s: 20e-6, message_s: 5e-6 }
}

fn cluster(nodes: usize, per_node: usize, uplink_gb_s: f64) -> Cluster {
    let links = Links { same_node: link(20.0), other_node: link(uplink_gb_s), pairs: Vec::new() };
    Cluster::uniform(nodes, per_node, &gpu(), links)
}

fn wish(model: &Description) -> Wish {
    let wire = "f16".parse().unwrap();
    Wish { transformer_only: true, wire, ..Wish::new(model, Dtype::F16) }
}

fn candidate(degrees: Degrees, num_pipeline_patch: u32) -> Candidate {
    Candidate { degrees, num_pipeline_patch }
}

#[test]
fn one_rank_takes_what_its_phases_take_and_two_branches_halve_it() {
    let (model, cluster) = (model("pixart.json"), cluster(1, 2, 1.0));
    let wish = wish(&model);
    let one = candidate(degrees(1, 1, 1), 1);
    let (alone, ..) = predict(&model, &cluster, &wish, &one).unwrap();
    let (apart, ..) = predict(&model, &cluster, &wish, &candidate(degrees(2, 1, 1), 1)).unwrap();
    assert!((apart / alone - 0.5).abs() < 0.02, "{apart} of {alone}");
    let plan = plan_of(&model, &cluster, &wish, &one, 20).unwrap();
    let whole = simulate(&Setting::new(&plan, &model, &cluster, Dtype::F16));
    assert!((whole.seconds / alone - 1.0).abs() < 1e-6, "a run of few steps stands for all");
    assert!(whole.ranks[0].wait < 1e-3 * whole.seconds);
}

#[test]
fn a_slow_uplink_is_felt_by_ulysses_and_hardly_by_pipefusion() {
    let model = model("flux.json");
    let wish = wish(&model);
    let seconds = |degrees, patches, uplink| {
        let cluster = cluster(2, 2, uplink);
        predict(&model, &cluster, &wish, &candidate(degrees, patches)).unwrap().0
    };
    let ulysses = seconds(degrees(1, 1, 4), 1, 0.5) / seconds(degrees(1, 1, 4), 1, 20.0);
    let pipeline = seconds(degrees(1, 4, 1), 8, 0.5) / seconds(degrees(1, 4, 1), 8, 20.0);
    assert!(ulysses > 1.5 && pipeline < 1.1, "ulysses x{ulysses}, pipefusion x{pipeline}");
}

#[test]
fn exact_leaves_stale_patches_out_and_little_memory_leaves_whole_models_out() {
    let model = model("flux.json");
    let mut cluster = cluster(2, 2, 0.5);
    let fast = choose(&model, &cluster, &wish(&model)).unwrap();
    let best = fast.best().unwrap();
    assert!(best.candidate.degrees.pipefusion_degree > 1 && best.candidate.num_pipeline_patch > 1);
    assert!(!best.why_it_lost(best).is_empty());
    let exact = Wish { exact: true, ..wish(&model) };
    let exact = choose(&model, &cluster, &exact).unwrap();
    assert!(exact.trials.iter().all(|trial| trial.candidate.num_pipeline_patch == 1));
    assert!(exact.best().unwrap().seconds >= best.seconds);
    for device in &mut cluster.devices {
        device.profile.memory_bytes = 12 << 30;
    }
    let small = choose(&model, &cluster, &wish(&model)).unwrap();
    assert!(small.trials.iter().all(|trial| trial.candidate.degrees.pipefusion_degree >= 3));
    assert!(small.rejected.iter().all(|rejected| rejected.why.contains("bytes")));
    for device in &mut cluster.devices {
        device.profile.memory_bytes = 1 << 30;
    }
    let error = choose(&model, &cluster, &wish(&model)).unwrap_err().to_string();
    assert!(error.contains("no mesh of these devices fits"), "{error}");
}

#[test]
fn devices_that_are_clearly_faster_come_first_and_others_stay_where_they_are() {
    let model = model("pixart.json");
    let chosen = |rates: [f64; 3], measured: bool| {
        let mut cluster = cluster(3, 1, 1.0);
        for (device, rate) in cluster.devices.iter_mut().zip(rates) {
            device.profile.gemm_flops_per_s = Rates::all(rate);
            device.profile.attention_flops_per_s = Rates::all(0.8 * rate);
            device.profile_name = measured.then(|| "measured".to_owned());
        }
        let wish = wish(&model);
        let given = choose(&model, &cluster, &wish).unwrap().best().unwrap().seconds;
        let (cluster, decision) = choose_order(&model, &cluster, &wish).unwrap();
        let names: Vec<_> = cluster.devices.iter().map(|device| device.name.clone()).collect();
        (names.join(" "), decision.best().unwrap().seconds / given)
    };
    let (order, gain) = chosen([10e12, 100e12, 100e12], true);
    assert_eq!(order, "1/0 2/0 0/0", "the slow one last");
    assert!(gain < 0.95, "{gain}");
    assert_eq!(chosen([95e12, 100e12, 105e12], true).0, "0/0 1/0 2/0", "one device's own noise");
    assert_eq!(chosen([10e12, 100e12, 100e12], false).0, "0/0 1/0 2/0", "nobody has measured");
}

#[test]
fn a_slow_device_holds_fewer_blocks_and_the_run_is_faster_for_it() {
    let model = model("pixart.json");
    let mut cluster = cluster(1, 4, 1.0);
    cluster.devices[1].profile.gemm_flops_per_s = Rates::all(25e12);
    cluster.devices[1].profile.attention_flops_per_s = Rates::all(20e12);
    let pipeline = candidate(degrees(1, 4, 1), 8);
    let plan = plan_of(&model, &cluster, &wish(&model), &pipeline, 6).unwrap();
    check::check(&plan).unwrap();
    let held: Vec<usize> = (0..4).map(|stage| plan.blocks(stage).len()).collect();
    assert!(held[1] <= 3 && held.iter().sum::<usize>() == 28, "{held:?}");
    let mut even = plan.clone();
    even.layout = ditmesh_actors::plan::layout::Layout::even(28, 4);
    let seconds = |plan| simulate(&Setting::new(plan, &model, &cluster, Dtype::F16)).seconds;
    assert_ne!(plan.digest(), even.digest(), "ranks that deal blocks otherwise must not agree");
    assert!(seconds(&plan) < 0.7 * seconds(&even));
}

#[test]
fn a_chart_has_every_rank_and_every_kind_of_time() {
    let (model, cluster) = (model("pixart.json"), cluster(2, 2, 0.2));
    let pipeline = candidate(degrees(2, 2, 1), 4);
    let plan = plan_of(&model, &cluster, &wish(&model), &pipeline, 4).unwrap();
    let setting = Setting { record: true, ..Setting::new(&plan, &model, &cluster, Dtype::F16) };
    let run = simulate(&setting);
    for kind in [SpanKind::Attend, SpanKind::Linear, SpanKind::Send, SpanKind::Wait] {
        assert!(run.spans.iter().any(|span| span.kind == kind), "{kind:?}");
    }
    let names: Vec<String> = cluster.devices.iter().map(|device| device.name.clone()).collect();
    let chart = svg(&run, &names);
    assert!(chart.starts_with("<svg") && chart.trim_end().ends_with("</svg>"));
    assert!(names.iter().all(|name| chart.contains(name.as_str())));
}

/// Where nobody fixes degrees, one device up to eight, on nodes of their own, are all used, but
/// where every mesh of all of them is slower than the one that leaves a device out.
#[test]
fn every_number_of_devices_is_used_as_far_as_it_pays() {
    // Two branches of guidance do not share 5 or 7 devices, and one more is no gain for stages
    // alone; 7 stages deal 57 blocks and 64 rows so unevenly that 6 are as fast.
    for (name, used) in
        [("pixart.json", [1, 2, 3, 4, 4, 6, 6, 8]), ("flux.json", [1, 2, 3, 4, 5, 6, 6, 8])]
    {
        let model = model(name);
        for (devices, used) in (1..).zip(used) {
            let (cluster, wish) = (cluster(devices, 1, 1.0), wish(&model));
            let decision = choose(&model, &cluster, &wish).unwrap();
            let best = decision.best().unwrap();
            let said = format!("{name} on {devices}: {}", best.candidate);
            assert_eq!(best.candidate.degrees.world_size(), used, "{said}");
            for whole in whole_meshes(devices as u32) {
                // What does not fit the model takes no time.
                let Ok((seconds, ..)) = predict(&model, &cluster, &wish, &whole) else { continue };
                assert!(seconds >= best.seconds * (1.0 - 1e-9), "{said}, {whole} is faster");
            }
        }
    }
}

/// Meshes without rings that use so many devices, with few strips and with many.
fn whole_meshes(devices: u32) -> Vec<Candidate> {
    let splits = (1..=2).flat_map(|cfg| (1..=devices).map(move |stages| (cfg, stages)));
    let fits = splits.filter(|(cfg, stages)| devices.is_multiple_of(cfg * stages));
    fits.flat_map(|(cfg, stages)| {
        let degrees = degrees(cfg, stages, devices / cfg / stages);
        let patches = [stages, stages + 1, 2 * stages, 4 * stages];
        let looked_at = if stages == 1 { 1 } else { patches.len() };
        patches.into_iter().take(looked_at).map(move |patches| candidate(degrees, patches))
    })
    .collect()
}

/// The bound on the work is what keeps planning short; the seconds are printed for people.
#[test]
fn a_thousand_devices_are_planned_in_bounded_work() {
    let model = model("flux.json");
    let cluster = cluster(128, 8, 2.0);
    let started = Instant::now();
    let decision = choose(&model, &cluster, &wish(&model)).unwrap();
    let best = decision.best().unwrap();
    println!(
        "1024 devices: {} meshes, {} simulated, {} actions, {:.2} s; best {} in {:.3} s",
        decision.considered,
        decision.trials.len(),
        decision.actions,
        started.elapsed().as_secs_f64(),
        best.candidate,
        best.seconds
    );
    assert!(decision.considered > 400);
    // Long enough for any machine; what it takes is printed.
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    // One mesh may overshoot the limit; it has at most some actions for each rank, block and patch.
    assert!(decision.actions < 2 * SIMULATED_ACTIONS_MAX, "{} actions", decision.actions);
    assert!(best.candidate.degrees.world_size() <= 1024);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Nothing beats the bound, and every rank's time adds up to no more than the run's.
    #[test]
    fn no_simulation_is_faster_than_its_bound(
        nodes in 1usize..=3,
        per_node in 1usize..=3,
        uplink in 0.05f64..20.0,
        edge in 1u32..=4,
        exact in any::<bool>(),
    ) {
        let model = model("pixart.json");
        let cluster = cluster(nodes, per_node, uplink);
        let edge = 256 * edge;
        let wish = Wish { height: edge, width: edge, exact, ..wish(&model) };
        let decision = choose(&model, &cluster, &wish).unwrap();
        for trial in &decision.trials {
            prop_assert!(
                trial.seconds >= trial.bound * (1.0 - 1e-9),
                "{}: {} s, bound {} s", trial.candidate, trial.seconds, trial.bound
            );
            for rank in &trial.ranks {
                let sum = rank.busy + rank.send + rank.wait;
                prop_assert!(sum <= trial.simulated_seconds * (1.0 + 1e-9));
            }
        }
        prop_assert!(decision.trials.windows(2).all(|pair| pair[0].seconds <= pair[1].seconds));
    }
}

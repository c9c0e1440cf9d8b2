//! The staleness in the report: what the oracle measures, on every mesh.

use std::time::Instant;

use ditmesh_actors::request::{GenerateRequest, OutputKind};
use ditmesh_actors::staleness::mean_kv_change;
use ditmesh_model::change::Change;
use ditmesh_model::pipeline::describe;

use crate::harness::{Golden, degrees, run};
use crate::oracle;

#[test]
fn the_report_has_the_change_of_keys_and_values_of_each_step() {
    let golden = Golden::load("sigma_8x8", "tall");
    let request =
        GenerateRequest { num_pipeline_patch: Some(4), sync_every: 3, ..golden.request(2) };
    let expected = oracle::watched(&golden, &request).kv_change;
    assert!(expected[0].is_none() && expected[1..].iter().all(Option::is_some));
    // Guidance branches and heads on ranks of their own are means of means: close, not equal.
    for (mesh, bar) in [((1, 1, 1), 1e-5), ((1, 4, 1), 1e-5), ((2, 2, 2), 0.1)] {
        let (cfg, stages, ulysses) = mesh;
        let outcome = run(&golden.dir, degrees(cfg, stages, ulysses), &request);
        let found = mean_kv_change(&outcome.ranks);
        assert_eq!(found.len(), 8);
        for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let (Some(found), Some(expected)) = (found, expected) else {
                assert_eq!(found, expected, "{mesh:?} step {step}");
                continue;
            };
            let error = (found - expected).abs() / expected;
            assert!(error <= bar, "{mesh:?} step {step}: {found} and {expected}");
        }
    }
}

#[test]
fn a_run_without_patches_keeps_nothing_to_measure() {
    let golden = Golden::load("sigma_8x8", "square");
    let request = GenerateRequest { num_pipeline_patch: Some(1), ..golden.request(2) };
    let outcome = run(&golden.dir, degrees(1, 2, 1), &request);
    assert!(outcome.ranks.iter().all(|rank| rank.kv_change.is_empty()));
}

/// What measuring adds to a step of the model that ships, from parts timed in turns.
#[test]
fn measuring_costs_little_of_a_step() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/builtin");
    let spec = describe(&folder, candle_core::DType::F32).unwrap();
    let request = GenerateRequest {
        num_inference_steps: 4,
        num_pipeline_patch: Some(4),
        output: OutputKind::Latent,
        ..GenerateRequest::new("a red apple")
    };
    let tokens = (spec.sample_size / spec.patch_size).pow(2);
    let values = vec![0.5f32; 2 * 2 * tokens * spec.heads * spec.head_dim];
    let mut shares = Vec::new();
    for _ in 0..3 {
        let outcome = run(&folder, degrees(1, 1, 1), &request);
        let step = outcome.ranks[0].compute_seconds / 4.0;
        let started = Instant::now();
        for _ in 0..spec.blocks {
            std::hint::black_box(Change::of_squares(&values, std::hint::black_box(&values)));
        }
        shares.push(started.elapsed().as_secs_f64() / step);
    }
    shares.sort_by(f64::total_cmp);
    println!("share of a step: {shares:?}");
    assert!(shares[0] < 0.01, "{shares:?}");
}

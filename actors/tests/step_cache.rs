//! The step cache over meshes: exact meshes do as one device does, PipeFusion as the oracle, with
//! the decisions of an earlier run and with their own.

use ditmesh_actors::plan::message::MessageKind;
use ditmesh_actors::plan::{Plan, bytes, resolve};
use ditmesh_actors::request::{Degrees, GenerateRequest, StepCache, StepDecision};
use ditmesh_model::pipeline::describe;

use crate::harness::{Golden, Outcome, degrees, relative, ring, run, run_quic};
use crate::oracle;

/// The fixtures' random blocks change much: here some passes are reused and others computed.
const THRESHOLD: f32 = 0.4;

fn request(golden: &Golden, factor: usize, patches: u32, cache: StepCache) -> GenerateRequest {
    GenerateRequest {
        num_pipeline_patch: Some(patches),
        step_cache: Some(cache),
        ..golden.request(factor)
    }
}

fn own(threshold: f32) -> StepCache {
    StepCache { threshold, ..StepCache::default() }
}

fn decisions(outcome: &Outcome) -> Vec<StepDecision> {
    outcome.ranks.iter().flat_map(|rank| rank.decisions.clone()).collect()
}

fn reused(decisions: &[StepDecision]) -> Vec<(u32, u32)> {
    decisions.iter().filter(|d| d.reuse).map(|d| (d.step, d.patch)).collect()
}

fn replay(decisions: &[StepDecision]) -> StepCache {
    StepCache { replay: Some(decisions.to_vec()), ..StepCache::default() }
}

#[test]
fn one_device_equals_the_oracle_and_some_steps_are_reused() {
    let golden = Golden::load("sigma_8x8", "square");
    let request = request(&golden, 2, 1, own(THRESHOLD));
    let expected = oracle::watched(&golden, &request);
    let outcome = run(&golden.dir, degrees(1, 1, 1), &request);
    let decided = decisions(&outcome);
    println!("{decided:?}");
    assert_eq!(decided.len(), 7, "every step but the first");
    assert_eq!(reused(&decided), expected.reused);
    assert!((1..7).contains(&expected.reused.len()), "{:?}", expected.reused);
    let error = relative(outcome.latents(), &expected.latents);
    assert!(error <= 1e-5, "{error:e}");
    let serial = relative(outcome.latents(), &golden.floats("out.latents"));
    assert!(serial > golden.bar(), "a cache that changes nothing reuses nothing: {serial:e}");
}

#[test]
fn exact_meshes_decide_as_one_device_and_equal_it_when_they_replay() {
    let golden = Golden::load("sigma_8x8", "tall");
    let serial = run(&golden.dir, degrees(1, 1, 1), &request(&golden, 2, 1, own(THRESHOLD)));
    let decided = decisions(&serial);
    assert!(!reused(&decided).is_empty(), "{decided:?}");
    let whole = [degrees(2, 1, 1), degrees(1, 1, 3), degrees(1, 4, 1), degrees(2, 2, 2)];
    for mesh in whole.into_iter().chain([ring(1, 1, 1, 3), ring(1, 2, 2, 2)]) {
        let again = run(&golden.dir, mesh, &request(&golden, 2, 1, replay(&decided)));
        let error = relative(again.latents(), serial.latents());
        println!("{mesh}: {error:.2e}");
        assert!(error <= golden.bar(), "{mesh}: {error:e}");
        let alone = run(&golden.dir, mesh, &request(&golden, 2, 1, own(THRESHOLD)));
        assert_eq!(reused(&decisions(&alone)), reused(&decided), "{mesh}");
        let deciding = alone.ranks.iter().filter(|rank| !rank.decisions.is_empty());
        assert_eq!(deciding.map(|rank| rank.rank).collect::<Vec<_>>(), [0], "{mesh}");
    }
}

#[test]
fn pipefusion_with_a_step_cache_equals_the_oracle() {
    for (case, mesh, patches, sync_every) in [
        ("square", degrees(1, 1, 1), 4, 0),
        ("square", degrees(1, 2, 1), 4, 3),
        ("tall", degrees(1, 4, 1), 3, 0),
        ("wide", degrees(2, 2, 2), 4, 4),
        ("tall", degrees(1, 2, 4), 8, 0),
        ("square", ring(1, 1, 1, 2), 4, 0),
        ("wide", ring(2, 2, 2, 2), 4, 3),
    ] {
        let golden = Golden::load("sigma_8x8", case);
        let request =
            GenerateRequest { sync_every, ..request(&golden, 2, patches, own(THRESHOLD)) };
        let expected = oracle::watched(&golden, &request);
        let outcome = run(&golden.dir, mesh, &request);
        let decided = decisions(&outcome);
        assert_eq!(reused(&decided), expected.reused, "{case} {mesh}");
        let computed = decided.len() - expected.reused.len();
        assert!(computed > 0 && !expected.reused.is_empty(), "{case} {mesh}: {decided:?}");
        let error = relative(outcome.latents(), &expected.latents);
        println!("{case} {mesh} M {patches}: {} reused, {error:.2e}", expected.reused.len());
        assert!(error <= 1e-5, "{case} {mesh}: {error:e}");
        let replayed = GenerateRequest { step_cache: Some(replay(&decided)), ..request };
        let again = run(&golden.dir, mesh, &replayed);
        assert!(again.latents().data == outcome.latents().data, "{case} {mesh}: replayed");
        assert_eq!(reused(&decisions(&again)), expected.reused, "{case} {mesh}: replayed");
    }
}

/// Residuals of other stages add up in another order, so stages agree as exact methods do.
#[test]
fn transports_do_not_change_a_bit_and_stages_hardly_one() {
    let golden = Golden::load("sigma_8x8", "square");
    let request = request(&golden, 2, 4, own(THRESHOLD));
    let two = run(&golden.dir, degrees(1, 2, 2), &request);
    let four = run(&golden.dir, degrees(1, 4, 2), &request);
    let quic = run_quic(&golden.dir, degrees(1, 2, 2), &request);
    let error = relative(four.latents(), two.latents());
    assert!(error <= 1e-6, "{error:e}");
    assert!(two.latents().data == quic.latents().data);
    assert!(!reused(&decisions(&two)).is_empty());
    assert_eq!(decisions(&two), decisions(&quic));
}

#[test]
fn never_more_reuses_in_a_row_than_asked_for() {
    let golden = Golden::load("sigma_8x8", "square");
    for (reuses_max, expected) in [(1, vec![1, 3, 5, 7]), (3, vec![1, 2, 3, 5, 6, 7])] {
        let cache = StepCache { threshold: 1e6, reuses_max, replay: None };
        let outcome = run(&golden.dir, degrees(1, 1, 1), &request(&golden, 2, 1, cache));
        let steps: Vec<u32> = reused(&decisions(&outcome)).iter().map(|pass| pass.0).collect();
        assert_eq!(steps, expected);
    }
}

/// Frames are there whatever is decided; what is not computed does not travel.
#[test]
fn a_reused_pass_sends_its_frames_and_no_payload() {
    let golden = Golden::load("sigma_8x8", "square");
    let mesh = degrees(1, 1, 2);
    let with = |threshold| run(&golden.dir, mesh, &request(&golden, 2, 1, own(threshold)));
    let (never, sometimes) = (with(1e-9), with(THRESHOLD));
    let passes = reused(&decisions(&sometimes)).len() as u64;
    assert!(reused(&decisions(&never)).is_empty() && passes > 0);
    let spec = describe(&golden.dir, candle_core::DType::F32).unwrap();
    let given = request(&golden, 2, 1, own(THRESHOLD));
    let plan = Plan::new(mesh, &spec, &resolve::resolve(&given, &spec, mesh).unwrap()).unwrap();
    for (rank, (never, sometimes)) in never.ranks.iter().zip(&sometimes.ranks).enumerate() {
        assert_eq!(never.frames_sent, sometimes.frames_sent);
        let sent = bytes::sent_by_kind(&plan, rank);
        let ulysses = sent[&MessageKind::UlyssesQkv] + sent[&MessageKind::UlyssesOut];
        // All blocks but the first, in each reused step of eight.
        let saved = ulysses * passes / 8 * (spec.blocks as u64 - 1) / spec.blocks as u64;
        assert_eq!(never.bytes_sent - sometimes.bytes_sent, saved, "rank {rank}");
    }
}

#[test]
fn what_cannot_be_reused_is_refused() {
    let golden = Golden::load("sigma_8x8", "square");
    let spec = describe(&golden.dir, candle_core::DType::F32).unwrap();
    let refuse = |patches, cache: StepCache, part: &str| {
        let request = request(&golden, 2, patches, cache);
        let error = resolve::resolve(&request, &spec, Degrees::default()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refuse(1, own(0.0), "threshold 0");
    refuse(1, own(f32::NAN), "threshold NaN");
    let step = |step, patch| {
        replay(&[StepDecision { step, patch, reuse: true, ..StepDecision::default() }])
    };
    refuse(1, step(0, 0), "patch 0 in step 0");
    refuse(1, step(8, 0), "step 8");
    refuse(4, step(2, 4), "patch 4 in step 2");
    let long = GenerateRequest {
        num_inference_steps: 1000,
        height: Some(2048),
        ..request(&golden, 2, 512, own(0.1))
    };
    let error = resolve::resolve(&long, &spec, Degrees::default()).unwrap_err().to_string();
    assert!(error.contains("at most 16384 times"), "{error}");
}

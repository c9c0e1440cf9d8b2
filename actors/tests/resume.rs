//! Runs that go on from a checkpoint: exact methods give the picture of the undisturbed run on any
//! other mesh, PipeFusion makes one more synchronous step, and every such plan is sound.

use std::sync::Arc;

use ditmesh_actors::checkpoint::Checkpoint;
use ditmesh_actors::plan::program::Op;
use ditmesh_actors::plan::{Plan, check, resolve};
use ditmesh_actors::protocol::RunSpec;
use ditmesh_actors::request::{
    Degrees, GenerateRequest, Output, OutputKind, StepCache, Wire, WireDtype,
};

use crate::harness::{Golden, Outcome, degrees, pipeline, relative, ring, run, run_from};
use crate::plans::model;

/// Eight steps, kept after the fifth.
fn kept(request: GenerateRequest, patches: u32) -> GenerateRequest {
    GenerateRequest { checkpoint_every: Some(5), num_pipeline_patch: Some(patches), ..request }
}

fn checkpoint(outcome: &Outcome, step: usize) -> Arc<Checkpoint> {
    let checkpoint = outcome.checkpoint.clone().unwrap();
    assert_eq!(checkpoint.step, step);
    checkpoint
}

/// The fixtures' solver is of second order: without its history the rest of the run would differ.
#[test]
fn exact_meshes_go_on_from_any_other_mesh() {
    let golden = Golden::load("sigma_8x8", "tall");
    let request = kept(golden.request(2), 1);
    let undisturbed = run(&golden.dir, degrees(1, 1, 1), &request);
    let meshes =
        [degrees(1, 1, 1), degrees(2, 1, 1), degrees(1, 3, 1), degrees(2, 2, 2), ring(1, 1, 1, 3)];
    for (index, &from) in meshes.iter().enumerate() {
        let to = meshes[(index + 2) % meshes.len()];
        let before = run(&golden.dir, from, &request);
        let after = run_from(&checkpoint(&before, 4), &golden.dir, to, &request);
        let error = relative(after.latents(), undisturbed.latents());
        println!("{from}, then {to}: {error:.2e}");
        assert!(error <= 1e-5, "{from}, then {to}: {error:e}");
    }
}

#[test]
fn a_checkpoint_without_its_history_gives_another_picture() {
    let golden = Golden::load("sigma_8x8", "tall");
    let request = kept(golden.request(2), 1);
    let before = run(&golden.dir, degrees(1, 1, 1), &request);
    let mut forgetful = Checkpoint::clone(&checkpoint(&before, 4));
    assert_eq!(forgetful.state.shape[0], 3, "latents and two outputs");
    let latents = forgetful.latents().data.len();
    forgetful.state.data[latents..].fill(0.0);
    let after = run_from(&Arc::new(forgetful), &golden.dir, degrees(1, 1, 1), &request);
    assert!(relative(after.latents(), before.latents()) > 1e-3);
}

/// The step after the checkpoint is synchronous; with one asynchronous step less the picture is
/// another one, but near.
#[test]
fn pipefusion_goes_on_with_a_synchronous_step() {
    let golden = Golden::load("sigma_8x8", "tall");
    let serial = run(&golden.dir, degrees(1, 1, 1), &kept(golden.request(2), 1));
    let request = kept(golden.request(2), 4);
    let exact = |outcome: &Outcome| relative(outcome.latents(), serial.latents());
    let undisturbed = run(&golden.dir, degrees(1, 2, 1), &request);
    let from = checkpoint(&undisturbed, 4);
    for to in [degrees(1, 2, 1), degrees(1, 3, 1), degrees(2, 2, 2), ring(1, 2, 1, 2)] {
        let after = run_from(&from, &golden.dir, to, &request);
        println!("{to}: {:.2e}, undisturbed {:.2e}", exact(&after), exact(&undisturbed));
        assert!(exact(&after) <= 1.2 * exact(&undisturbed), "{to}");
        let steps: Vec<bool> = after.ranks[0].kv_change.iter().map(Option::is_some).collect();
        assert_eq!(steps, [false, false, false, false, false, false, true, true], "{to}");
    }
    // What says which strip goes where is the same on any number of strips.
    let other = GenerateRequest { num_pipeline_patch: Some(3), ..request };
    let after = run_from(&from, &golden.dir, degrees(1, 3, 1), &other);
    assert!(exact(&after) <= 1.2 * exact(&undisturbed));
}

#[test]
fn step_cache_and_changes_on_the_wire_begin_anew() {
    let golden = Golden::load("sigma_8x8", "tall");
    let plain = kept(golden.request(2), 4);
    let wire = Wire { pipefusion: WireDtype::Bf16, residual: true, ..Wire::default() };
    let cache = StepCache { threshold: 0.4, ..StepCache::default() };
    let lossy = GenerateRequest { wire: Some(wire), step_cache: Some(cache), ..plain.clone() };
    let undisturbed = run(&golden.dir, degrees(1, 2, 1), &plain);
    let before = run(&golden.dir, degrees(1, 2, 1), &lossy);
    let after = run_from(&checkpoint(&before, 4), &golden.dir, degrees(1, 2, 2), &lossy);
    let error = |outcome: &Outcome| relative(outcome.latents(), undisturbed.latents());
    println!("undisturbed {:.2e}, gone on {:.2e}", error(&before), error(&after));
    assert!(error(&after) <= 2.0 * error(&before));
    let decided = after.ranks[0].decisions.iter().map(|decision| decision.step).min();
    assert_eq!(decided, Some(6), "the first step is computed");
}

/// Once denoised, a picture is only decoded again.
#[test]
fn the_last_checkpoint_needs_decoding_only() {
    let golden = Golden::load("sigma_8x8", "tall");
    let request = GenerateRequest { output: OutputKind::Image, ..kept(golden.request(2), 4) };
    let image = |outcome: &Outcome| match &outcome.output {
        Output::Image(image) => image.clone(),
        Output::Latents(_) => panic!("latents where a picture was asked for"),
    };
    let before = run(&golden.dir, degrees(1, 2, 2), &request);
    let last = checkpoint(&before, 7);
    assert_eq!(last.state.shape[0], 1, "nobody asks the solver again");
    for vae_parallel in [false, true] {
        let request = GenerateRequest { vae_parallel: Some(vae_parallel), ..request.clone() };
        let after = run_from(&last, &golden.dir, degrees(1, 2, 1), &request);
        let (a, b) = (image(&after), image(&before));
        let far = a.data.iter().zip(&b.data).map(|(&a, &b)| a.abs_diff(b)).max();
        assert!(far <= Some(1), "{far:?} of 255 apart");
    }
}

/// A batch of pictures comes apart and together again.
#[test]
fn pictures_of_a_batch_go_on_alone() {
    let request = |seed| GenerateRequest {
        seed,
        num_inference_steps: 6,
        checkpoint_every: Some(4),
        output: OutputKind::Latent,
        ..GenerateRequest::new(["a red apple", "a blue bird"][seed as usize])
    };
    let dir = pipeline("sigma_8x8");
    let alone = [0, 1].map(|seed| run(&dir, degrees(1, 1, 1), &request(seed)));
    let parts = [0, 1].map(|seed: usize| checkpoint(&alone[seed], 3));
    let batch = Checkpoint::join(&parts).unwrap();
    assert_eq!((batch.images, batch.state.shape[0]), (2, 6));
    for (seed, part) in parts.iter().enumerate() {
        assert_eq!(batch.of_image(seed).as_ref(), Some(part.as_ref()));
        let after = run_from(part, &dir, degrees(2, 1, 1), &request(seed as u64));
        assert!(relative(after.latents(), alone[seed].latents()) <= 1e-5);
    }
    assert_eq!(batch.of_image(2), None);
    let later = Arc::new(Checkpoint { step: 4, ..Checkpoint::clone(&parts[0]) });
    assert_eq!(Checkpoint::join(&[parts[1].clone(), later]), None, "of two steps");
}

/// Wherever a run goes on, its plan is sound, keeps what it did before, and says what it does more.
#[test]
fn plans_that_go_on_are_sound() {
    let model = model(6, 4);
    let meshes: [Degrees; 5] =
        [degrees(1, 1, 1), degrees(2, 2, 1), degrees(1, 3, 2), ring(1, 2, 1, 2), degrees(2, 1, 2)];
    for (mesh, sync_every) in meshes.into_iter().flat_map(|mesh| [(mesh, 0), (mesh, 3)]) {
        let request = GenerateRequest {
            num_inference_steps: 7,
            num_pipeline_patch: Some(3),
            sync_every,
            checkpoint_every: Some(2),
            step_cache: Some(StepCache::default()),
            ..GenerateRequest::new("a red apple")
        };
        let run = resolve::resolve(&request, &model, mesh).unwrap();
        let whole = Plan::new(mesh, &model, &run).unwrap();
        for first_step in 0..=7 {
            let run = RunSpec { first_step, ..run.clone() };
            let plan = Plan::new(mesh, &model, &run).unwrap();
            check::check(&plan).unwrap_or_else(|error| panic!("{mesh} from {first_step}: {error}"));
            let denoised = |plan: &Plan, rank: usize| -> Vec<usize> {
                let ops = plan.program(rank).ops.into_iter();
                let mut steps: Vec<usize> = ops
                    .filter_map(
                        |op| if let Op::Denoise { step, .. } = op { Some(step) } else { None },
                    )
                    .collect();
                steps.dedup();
                steps
            };
            for rank in 0..plan.controller() {
                let expected = denoised(&whole, rank).into_iter();
                let expected: Vec<usize> =
                    expected.filter(|&step| step >= first_step as usize).collect();
                assert_eq!(denoised(&plan, rank), expected);
            }
            let first = first_step as usize;
            let more = first > 0 && first < 7 && whole.is_async(first);
            assert_eq!(plan.extra_sync_steps(), u32::from(more), "{mesh} from {first_step}");
            assert!(
                !plan.is_async(first)
                    && (first + 1..7).all(|s| plan.is_async(s) == whole.is_async(s))
            );
        }
        let beyond = RunSpec { first_step: 8, ..run };
        assert!(Plan::new(mesh, &model, &beyond).is_err());
    }
}

//! Synchronous steps in the middle of a run: the oracle with the same steps, exact when all are
//! synchronous.

use ditmesh_actors::plan::{Plan, resolve};
use ditmesh_actors::request::GenerateRequest;
use ditmesh_model::pipeline::describe;

use crate::harness::{Golden, degrees, relative, run};
use crate::oracle;

fn request(golden: &Golden, patches: u32, sync_steps: u32, sync_every: u32) -> GenerateRequest {
    GenerateRequest {
        num_pipeline_patch: Some(patches),
        sync_steps,
        sync_every,
        ..golden.request(2)
    }
}

#[test]
fn the_rule_counts_from_the_first_asynchronous_step() {
    let golden = Golden::load("sigma_8x8", "square");
    let spec = describe(&golden.dir, candle_core::DType::F32).unwrap();
    let synchronous = |patches, sync_steps, sync_every| -> Vec<usize> {
        let request = GenerateRequest {
            num_inference_steps: 10,
            ..request(&golden, patches, sync_steps, sync_every)
        };
        let one = degrees(1, 1, 1);
        let resolved = resolve::resolve(&request, &spec, one).unwrap();
        let plan = Plan::new(one, &spec, &resolved).unwrap();
        (0..10).filter(|&step| !plan.is_async(step)).collect()
    };
    assert_eq!(synchronous(4, 1, 0), [0]);
    assert_eq!(synchronous(4, 1, 4), [0, 4, 8]);
    assert_eq!(synchronous(4, 2, 3), [0, 1, 4, 7]);
    assert_eq!(synchronous(4, 2, 2), [0, 1, 3, 5, 7, 9]);
    assert_eq!(synchronous(4, 1, 1), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(synchronous(1, 1, 0), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn meshes_with_a_sync_step_now_and_then_equal_the_oracle() {
    for (case, mesh, patches, sync_steps, every) in [
        ("square", (1, 2, 1), 4, 1, 3),
        ("tall", (1, 4, 1), 3, 2, 2),
        ("wide", (2, 2, 2), 4, 1, 2),
        ("square", (1, 1, 1), 8, 1, 4),
        ("tall", (1, 2, 4), 8, 1, 5),
    ] {
        let golden = Golden::load("sigma_8x8", case);
        let request = request(&golden, patches, sync_steps, every);
        let expected = oracle::expected(&golden, &request);
        let (cfg, stages, ulysses) = mesh;
        let outcome = run(&golden.dir, degrees(cfg, stages, ulysses), &request);
        let error = relative(outcome.latents(), &expected);
        println!("{case} {mesh:?} M {patches} w {sync_steps} every {every}: {error:.2e}");
        assert!(
            error <= 1e-5,
            "{case} {mesh:?} M {patches} w {sync_steps} every {every}: {error:e}"
        );
    }
}

#[test]
fn synchronous_in_every_step_is_exact_and_now_and_then_is_not() {
    let golden = Golden::load("sigma_8x8", "square");
    let serial = golden.floats("out.latents");
    let latents = |every| {
        let outcome = run(&golden.dir, degrees(1, 2, 1), &request(&golden, 4, 1, every));
        outcome.latents().clone()
    };
    let (never, sometimes, always) = (latents(0), latents(2), latents(1));
    let error = relative(&always, &serial);
    assert!(error <= golden.bar(), "{error:e}");
    assert!(relative(&sometimes, &serial) > golden.bar());
    assert!(relative(&sometimes, &never) > golden.bar());
}

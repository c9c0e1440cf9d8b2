//! The exact methods: serial equals diffusers, every other mesh equals serial.

use crate::harness::{Golden, Outcome, degrees, relative, run, run_quic};

#[test]
fn serial_latents_equal_diffusers() {
    for (pipeline, factor) in [("sigma_8x8", 2), ("sigma_4x5", 4), ("alpha_6x4", 2)] {
        for case in ["square", "tall", "wide"] {
            let golden = Golden::load(pipeline, case);
            let outcome = run(&golden.dir, degrees(1, 1, 1), &golden.request(factor));
            let error = relative(outcome.latents(), &golden.floats("out.latents"));
            println!("{pipeline} {case}: {error:.2e}, f32 noise {:.2e}", golden.noise);
            assert!(error <= golden.bar(), "{pipeline} {case}: {error:e}");
        }
    }
}

#[test]
fn exact_meshes_equal_diffusers_and_serial() {
    let golden = Golden::load("sigma_8x8", "tall");
    let request = golden.request(2);
    let serial = run(&golden.dir, degrees(1, 1, 1), &request);
    for (cfg, ulysses) in [(2, 1), (1, 2), (1, 4), (2, 2), (2, 4), (1, 3), (1, 8)] {
        let outcome = run(&golden.dir, degrees(cfg, 1, ulysses), &request);
        check(&outcome, &serial, &golden, &format!("cfg {cfg} x ulysses {ulysses}"));
    }
}

/// Stages without patches change nothing: the whole map goes through one after another.
#[test]
fn stages_with_one_patch_are_exact() {
    let golden = Golden::load("sigma_4x5", "wide");
    let mut request = golden.request(4);
    request.num_pipeline_patch = Some(1);
    let serial = run(&golden.dir, degrees(1, 1, 1), &request);
    for (cfg, stages, ulysses) in [(1, 2, 1), (1, 5, 1), (2, 3, 1), (1, 2, 2), (2, 2, 2)] {
        let outcome = run(&golden.dir, degrees(cfg, stages, ulysses), &request);
        check(&outcome, &serial, &golden, &format!("cfg {cfg}, {stages} stages, u {ulysses}"));
    }
}

/// The newest complete checkpoint holds what diffusers had after that step.
#[test]
fn checkpoints_hold_the_latents_of_their_step() {
    let golden = Golden::load("sigma_8x8", "square");
    let mut request = golden.request(2);
    request.checkpoint_every = 3;
    request.num_pipeline_patch = Some(1);
    for (cfg, stages, ulysses) in [(1, 1, 1), (2, 2, 2), (1, 1, 3)] {
        let outcome = run(&golden.dir, degrees(cfg, stages, ulysses), &request);
        let checkpoint = outcome.checkpoint.unwrap();
        assert_eq!(checkpoint.step, 5);
        let mut expected = golden.floats("out.step5");
        expected.shape.insert(2, 1);
        let error = relative(&checkpoint.latents, &expected);
        assert!(error <= golden.bar(), "{error:e}");
    }
}

/// The same programs over real QUIC give the same bits as over memory.
#[test]
fn quic_meshes_equal_in_process_meshes_to_the_bit() {
    let golden = Golden::load("sigma_8x8", "tall");
    for (mesh, patches) in [((2, 1, 2), 1), ((1, 2, 2), 4), ((2, 2, 2), 4)] {
        let mut request = golden.request(2);
        request.num_pipeline_patch = Some(patches);
        let (cfg, stages, ulysses) = mesh;
        let mesh = degrees(cfg, stages, ulysses);
        let memory = run(&golden.dir, mesh, &request);
        let quic = run_quic(&golden.dir, mesh, &request);
        assert_eq!(quic.latents().data, memory.latents().data, "{mesh}");
        let sent = |outcome: &Outcome| -> Vec<u64> {
            outcome.ranks.iter().map(|rank| rank.bytes_sent).collect()
        };
        assert_eq!(sent(&quic), sent(&memory), "{mesh}");
    }
}

fn check(outcome: &Outcome, serial: &Outcome, golden: &Golden, mesh: &str) {
    let error = relative(outcome.latents(), serial.latents());
    let reference = relative(outcome.latents(), &golden.floats("out.latents"));
    println!("{mesh}: {error:.2e} of serial, {reference:.2e} of diffusers");
    assert!(error <= golden.bar(), "{mesh}: {error:e}");
    assert!(reference <= golden.bar(), "{mesh}: {reference:e} of diffusers");
}

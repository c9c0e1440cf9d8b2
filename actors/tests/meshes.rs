//! The exact methods: serial equals diffusers, every other mesh equals serial.

use ditmesh_actors::request::GenerateRequest;

use crate::harness::{Golden, Outcome, degrees, full, relative, ring, run, run_quic};

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

/// Ring attention, and Ulysses inside of rings (USP), with both guidance branches apart too.
#[test]
fn rings_equal_diffusers_and_serial() {
    let golden = Golden::load("sigma_8x8", "tall");
    let request = golden.request(2);
    let serial = run(&golden.dir, degrees(1, 1, 1), &request);
    let few = [(1, 1, 2), (1, 1, 3), (1, 2, 2), (2, 1, 4), (1, 2, 4), (1, 4, 2), (2, 3, 2)];
    let more = [(1, 1, 4), (1, 1, 8), (2, 1, 2), (2, 2, 2), (2, 2, 4), (2, 4, 2), (1, 8, 2)];
    let more = more.into_iter().filter(|_| full());
    for (cfg, ulysses, rings) in few.into_iter().chain(more) {
        let outcome = run(&golden.dir, ring(cfg, 1, ulysses, rings), &request);
        check(&outcome, &serial, &golden, &format!("cfg {cfg} x u {ulysses} x r {rings}"));
    }
}

/// Six heads over four or eight ranks, twelve ranks for six rows, eight rows over five times two.
#[test]
fn shares_that_do_not_divide_are_exact() {
    let meshes = [
        ("tall", ring(1, 1, 4, 1)),
        ("tall", ring(1, 1, 8, 1)),
        ("wide", ring(1, 1, 6, 2)),
        ("tall", ring(1, 1, 3, 3)),
        ("square", ring(1, 1, 5, 2)),
        ("wide", ring(2, 3, 2, 1)),
    ];
    for (case, mesh) in meshes {
        let golden = Golden::load("alpha_6x4", case);
        let request = GenerateRequest { num_pipeline_patch: Some(1), ..golden.request(2) };
        let outcome = run(&golden.dir, mesh, &request);
        let error = relative(outcome.latents(), &golden.floats("out.latents"));
        println!("{case} {mesh}: {error:.2e} of diffusers");
        assert!(error <= golden.bar(), "{case} {mesh}: {error:e}");
    }
}

/// Stages without patches change nothing: the whole map goes through one after another.
#[test]
fn stages_with_one_patch_are_exact() {
    let golden = Golden::load("sigma_4x5", "wide");
    let mut request = golden.request(4);
    request.num_pipeline_patch = Some(1);
    let serial = run(&golden.dir, degrees(1, 1, 1), &request);
    let meshes =
        [(1, 2, 1, 1), (1, 5, 1, 1), (2, 3, 1, 1), (1, 2, 2, 1), (2, 2, 2, 1), (1, 2, 1, 2)];
    for (cfg, stages, ulysses, rings) in meshes {
        let mesh = ring(cfg, stages, ulysses, rings);
        check(&run(&golden.dir, mesh, &request), &serial, &golden, &mesh.to_string());
    }
}

/// The newest complete checkpoint holds what diffusers had after that step.
#[test]
fn checkpoints_hold_the_latents_of_their_step() {
    let golden = Golden::load("sigma_8x8", "square");
    let mut request = golden.request(2);
    request.checkpoint_every = Some(3);
    request.num_pipeline_patch = Some(1);
    for (cfg, stages, ulysses) in [(1, 1, 1), (2, 2, 2), (1, 1, 3)] {
        let outcome = run(&golden.dir, degrees(cfg, stages, ulysses), &request);
        let checkpoint = outcome.checkpoint.unwrap();
        assert_eq!(checkpoint.step, 5);
        let mut expected = golden.floats("out.step5");
        expected.shape.insert(2, 1);
        let error = relative(&checkpoint.latents(), &expected);
        assert!(error <= golden.bar(), "{error:e}");
    }
}

/// The same programs over real QUIC give the same bits as over memory.
#[test]
fn quic_meshes_equal_in_process_meshes_to_the_bit() {
    let golden = Golden::load("sigma_8x8", "tall");
    let meshes = [
        (ring(2, 1, 2, 1), 1),
        (ring(1, 2, 2, 1), 4),
        (ring(2, 2, 2, 1), 4),
        (ring(1, 1, 1, 3), 1),
        (ring(1, 1, 2, 2), 2),
    ];
    for (mesh, patches) in meshes {
        let mut request = golden.request(2);
        request.num_pipeline_patch = Some(patches);
        let memory = run(&golden.dir, mesh, &request);
        let quic = run_quic(&golden.dir, mesh, &request);
        assert_eq!(quic.latents().data, memory.latents().data, "{mesh}");
        assert!(quic.carriers.iter().all(|name| name.starts_with("quic:")), "{:?}", quic.carriers);
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

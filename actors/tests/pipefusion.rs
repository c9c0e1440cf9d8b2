//! PipeFusion against its one-process oracle: any number of stages, patches and sync steps, with
//! guidance branches and Ulysses on top; the result depends on patches and sync steps only.

use ditmesh_actors::request::{Degrees, FloatTensor, GenerateRequest};

use crate::harness::{Golden, degrees, full, relative, ring, run};
use crate::oracle;

/// The oracle's latents for a golden case.
fn expected(golden: &Golden, patches: usize, sync_steps: usize) -> FloatTensor {
    oracle::expected(golden, &request(golden, 2, patches, sync_steps))
}

fn request(golden: &Golden, factor: usize, patches: usize, sync_steps: usize) -> GenerateRequest {
    GenerateRequest {
        num_pipeline_patch: Some(patches as u32),
        sync_steps: sync_steps as u32,
        ..golden.request(factor)
    }
}

#[test]
fn oracle_without_patches_equals_diffusers() {
    let golden = Golden::load("sigma_8x8", "square");
    let error = relative(&expected(&golden, 1, 1), &golden.floats("out.latents"));
    assert!(error <= golden.bar(), "{error:e}");
}

#[test]
fn staleness_shows_so_a_wrong_rule_cannot_hide() {
    let golden = Golden::load("sigma_8x8", "square");
    let error = relative(&expected(&golden, 4, 1), &golden.floats("out.latents"));
    println!("4 patches, 1 sync step against serial: {error:.2e}");
    assert!(error > 1e-3, "{error:e}");
}

#[test]
fn every_number_of_stages_equals_the_oracle_to_the_bit_of_each_other() {
    for (case, patches, sync_steps) in covering() {
        let golden = Golden::load("sigma_8x8", case);
        let request = request(&golden, 2, patches, sync_steps);
        let oracle = expected(&golden, patches, sync_steps);
        let two = run(&golden.dir, degrees(1, 2, 1), &request);
        let four = run(&golden.dir, degrees(1, 4, 1), &request);
        let again = run(&golden.dir, degrees(1, 4, 1), &request);
        let error = relative(two.latents(), &oracle);
        println!("{case} M {patches} w {sync_steps}: {error:.2e}");
        assert!(error <= 1e-5, "{case} M {patches} w {sync_steps}: {error:e}");
        assert_eq!(two.latents().data, four.latents().data, "{case} M {patches} w {sync_steps}");
        assert_eq!(four.latents().data, again.latents().data, "run to run");
    }
}

#[test]
fn products_with_cfg_ulysses_and_ring_equal_the_oracle() {
    for (case, mesh, patches, sync_steps) in products() {
        let golden = Golden::load("sigma_8x8", case);
        let oracle = expected(&golden, patches, sync_steps);
        let request = request(&golden, 2, patches, sync_steps);
        let outcome = run(&golden.dir, mesh, &request);
        let error = relative(outcome.latents(), &oracle);
        println!("{case} {mesh} M {patches} w {sync_steps}: {error:.2e}");
        assert!(error <= 1e-5, "{case} {mesh} M {patches} w {sync_steps}: {error:e}");
    }
}

/// One stage with patches is the same rule with nothing between stages.
#[test]
fn one_stage_with_patches_equals_the_oracle() {
    let golden = Golden::load("sigma_4x5", "tall");
    let outcome = run(&golden.dir, degrees(1, 1, 1), &request(&golden, 4, 4, 2));
    let error = relative(outcome.latents(), &expected(&golden, 4, 2));
    assert!(error <= 1e-5, "{error:e}");
}

/// Cases, patches, sync steps: all of {2,3,4,8} x {1,2} under `DITMESH_TEST_SCALE=full`.
fn covering() -> Vec<(&'static str, usize, usize)> {
    let cases = ["square", "tall", "wide"];
    let all = cases
        .into_iter()
        .flat_map(|case| [2, 3, 4, 8].into_iter().flat_map(move |m| [1, 2].map(|w| (case, m, w))));
    let few = [("square", 2, 1), ("tall", 3, 2), ("wide", 4, 1), ("square", 8, 2)];
    if full() { all.collect() } else { few.to_vec() }
}

type Product = (&'static str, Degrees, usize, usize);

fn products() -> Vec<Product> {
    let meshes = [(2, 2, 1), (1, 2, 2), (2, 2, 2), (2, 4, 1), (1, 4, 2), (1, 2, 4)];
    let meshes = meshes.map(|(cfg, stages, ulysses)| degrees(cfg, stages, ulysses));
    let rings =
        [(1, 2, 1, 2), (1, 2, 2, 2), (2, 2, 1, 2), (1, 1, 1, 3), (2, 2, 2, 2), (1, 4, 2, 2)];
    let rings = rings.map(|(cfg, stages, ulysses, rings)| ring(cfg, stages, ulysses, rings));
    // Each group of a ring needs a row of some patch: 4 patches of 8 rows are not for a ring of 3.
    let token_rows = |case: &str| match case {
        "wide" => 6usize,
        "tall" => 10,
        _ => 8,
    };
    let (few, low) =
        ([("tall", 4, 1), ("square", 8, 1), ("wide", 3, 2)], [("tall", 2, 1), ("square", 3, 2)]);
    if full() {
        let every = |mesh| covering().into_iter().map(move |(case, m, w)| (case, mesh, m, w));
        let fits = |&(case, mesh, m, _): &Product| {
            token_rows(case).div_ceil(m) >= mesh.ring_degree as usize
        };
        return meshes.into_iter().chain(rings).flat_map(every).filter(fits).collect();
    }
    let pick = |(mesh, &(case, m, w)): (Degrees, &(&'static str, usize, usize))| (case, mesh, m, w);
    let with_rings = rings.into_iter().zip(low.iter().cycle()).map(pick);
    meshes.into_iter().zip(few.iter().cycle()).map(pick).chain(with_rings).collect()
}

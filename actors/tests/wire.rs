//! Activations in fewer bytes: how near the pictures stay, how many bytes travel, and that both
//! ends of an edge hold the same.

use ditmesh_actors::plan::mesh::Coordinates;
use ditmesh_actors::plan::{Plan, bytes, memory, resolve};
use ditmesh_actors::request::wire::Axis;
use ditmesh_actors::request::{Degrees, GenerateRequest, StepCache, Wire, WireDtype};
use ditmesh_model::pipeline::describe;

use crate::harness::{Golden, Outcome, degrees, relative, ring, run, run_quic};
use crate::oracle;
use crate::plans::model;

const LOSSY: [WireDtype; 3] = [WireDtype::Bf16, WireDtype::F16, WireDtype::Int8];

fn all(dtype: WireDtype) -> Wire {
    let mut wire = Wire::default();
    Axis::CHOOSABLE.into_iter().for_each(|axis| wire.set(axis, dtype));
    wire
}

fn residual(pipefusion: WireDtype, refresh_every: u32) -> Wire {
    Wire { pipefusion, residual: true, refresh_every, ..Wire::default() }
}

fn request(golden: &Golden, patches: u32, wire: Wire) -> GenerateRequest {
    GenerateRequest { num_pipeline_patch: Some(patches), wire: Some(wire), ..golden.request(2) }
}

fn plan(golden: &Golden, mesh: Degrees, request: &GenerateRequest) -> Plan {
    let spec = describe(&golden.dir, candle_core::DType::F32).unwrap();
    let run = resolve::resolve(request, &spec, mesh).unwrap();
    Plan::new(mesh, &spec, &run).unwrap()
}

/// Every rank sent what the plan says, and the account by axis adds up to it.
fn check_bytes(golden: &Golden, mesh: Degrees, request: &GenerateRequest, outcome: &Outcome) {
    let exact = GenerateRequest { wire: None, ..request.clone() };
    let (planned, exact) = (plan(golden, mesh, request), plan(golden, mesh, &exact));
    for (rank, report) in outcome.ranks.iter().enumerate() {
        let sum = |plan: &Plan| bytes::sent_by_kind(plan, rank).values().sum::<u64>();
        assert_eq!(report.bytes_sent, sum(&planned), "{mesh} rank {rank}");
        assert_eq!(report.traffic, bytes::sent_by_axis(&planned, rank), "{mesh} rank {rank}");
        let saved: u64 = report.traffic.iter().map(|axis| axis.bytes_saved).sum();
        assert_eq!(report.bytes_sent + saved, sum(&exact), "{mesh} rank {rank}");
    }
}

/// Of the whole picture, at most: some tens of roundings' worth of each type.
fn bar(dtype: WireDtype) -> f64 {
    match dtype {
        WireDtype::F32 => 1e-5,
        WireDtype::F16 => 3e-3,
        WireDtype::Bf16 => 3e-2,
        WireDtype::Int8 => 6e-2,
    }
}

#[test]
fn exact_meshes_stay_within_the_precision_of_what_travels() {
    let golden = Golden::load("sigma_8x8", "tall");
    let serial = run(&golden.dir, degrees(1, 1, 1), &request(&golden, 1, Wire::default()));
    let meshes =
        [degrees(2, 1, 1), degrees(1, 1, 3), ring(1, 1, 1, 3), ring(2, 1, 2, 2), degrees(1, 4, 1)];
    for (index, mesh) in meshes.into_iter().enumerate() {
        for (other, dtype) in LOSSY.into_iter().enumerate() {
            // Each mesh with two of the types, each type with most of the meshes.
            if (index + other) % 3 == 0 {
                continue;
            }
            let request = request(&golden, 1, all(dtype));
            let outcome = run(&golden.dir, mesh, &request);
            let error = relative(outcome.latents(), serial.latents());
            println!("{mesh} {}: {error:.2e}", dtype.name());
            assert!(error <= bar(dtype) && error > 1e-6, "{mesh} {dtype:?}: {error:e}");
            check_bytes(&golden, mesh, &request, &outcome);
        }
    }
}

/// Both branches go on with what travelled, or their latents would part.
#[test]
fn guidance_branches_apart_equal_one_process_that_rounds_both_predictions() {
    let golden = Golden::load("sigma_8x8", "square");
    for (dtype, mesh) in [(WireDtype::Int8, degrees(2, 1, 1)), (WireDtype::Bf16, degrees(2, 2, 2))]
    {
        let wire = Wire { cfg: dtype, ..Wire::default() };
        let request = request(&golden, 1, wire);
        let expected = oracle::on_wire(&golden, &request, usize::MAX);
        let error = relative(run(&golden.dir, mesh, &request).latents(), &expected);
        println!("{mesh} {}: {error:.2e}", dtype.name());
        // A number at the border of two codes may fall on either side.
        assert!(error <= 3e-4, "{mesh} {dtype:?}: {error:e}");
    }
}

/// Unequal patches, steps in between that are synchronous, refreshes: stages as one process that
/// keeps what the receiver holds.
#[test]
fn changes_between_stages_equal_one_process_that_keeps_what_the_receiver_holds() {
    for (case, patches, sync_every, wire) in [
        ("square", 4, 0, residual(WireDtype::Int8, 3)),
        ("tall", 5, 3, residual(WireDtype::Int8, 0)),
        ("wide", 4, 2, residual(WireDtype::Bf16, 4)),
        ("square", 4, 0, Wire { pipefusion: WireDtype::Int8, ..Wire::default() }),
    ] {
        let golden = Golden::load("sigma_8x8", case);
        let request = GenerateRequest { sync_every, ..request(&golden, patches, wire) };
        let spec = describe(&golden.dir, candle_core::DType::F32).unwrap();
        let expected = oracle::on_wire(&golden, &request, spec.blocks / 2);
        let mesh = degrees(1, 2, 1);
        let outcome = run(&golden.dir, mesh, &request);
        let error = relative(outcome.latents(), &expected);
        println!("{case} M {patches} {wire}: {error:.2e}");
        assert!(error <= 3e-4, "{case} {wire}: {error:e}");
        check_bytes(&golden, mesh, &request, &outcome);
    }
}

#[test]
fn changes_are_nearer_than_what_changes_in_every_product() {
    let golden = Golden::load("sigma_8x8", "tall");
    let cached = Some(StepCache { threshold: 0.2, ..StepCache::default() });
    for (mesh, patches, sync_every, step_cache) in [
        (degrees(1, 4, 1), 4, 0, None),
        (degrees(2, 2, 2), 3, 3, None),
        (ring(1, 2, 1, 2), 2, 0, None),
        (degrees(1, 3, 1), 4, 2, cached),
    ] {
        let draw = |wire| {
            let step_cache = step_cache.clone();
            let request =
                GenerateRequest { sync_every, step_cache, ..request(&golden, patches, wire) };
            run(&golden.dir, mesh, &request)
        };
        let exact = draw(Wire::default());
        let error = |wire| relative(draw(wire).latents(), exact.latents());
        let whole = error(Wire { pipefusion: WireDtype::Int8, ..Wire::default() });
        let change = error(residual(WireDtype::Int8, 4));
        let fine = error(residual(WireDtype::F16, 0));
        println!("{mesh}: int8 {whole:.2e}, as changes {change:.2e}, f16 changes {fine:.2e}");
        assert!(change <= bar(WireDtype::Int8) && fine <= bar(WireDtype::F16), "{mesh}");
        assert!(fine < change && change < whole, "{mesh}: {fine:e} {change:e} {whole:e}");
    }
}

#[test]
fn transports_do_not_change_a_bit_of_what_travels_in_fewer_bytes() {
    let golden = Golden::load("sigma_8x8", "square");
    let wire = Wire { residual: true, ..all(WireDtype::Int8) };
    let request = request(&golden, 4, wire);
    let memory = run(&golden.dir, degrees(2, 2, 2), &request);
    let quic = run_quic(&golden.dir, degrees(2, 2, 2), &request);
    assert!(memory.latents().data == quic.latents().data);
    check_bytes(&golden, degrees(2, 2, 2), &request, &quic);
}

#[test]
fn nothing_is_saved_unless_asked() {
    let golden = Golden::load("sigma_8x8", "square");
    let outcome = run(&golden.dir, degrees(1, 2, 2), &request(&golden, 2, Wire::default()));
    let saved = outcome.ranks.iter().flat_map(|rank| &rank.traffic).map(|axis| axis.bytes_saved);
    assert_eq!(saved.sum::<u64>(), 0);
}

#[test]
fn what_both_ends_hold_is_part_of_the_memory_of_a_run() {
    let golden = Golden::load("sigma_8x8", "square");
    let mesh = degrees(1, 3, 1);
    let of = |wire| plan(&golden, mesh, &request(&golden, 4, wire));
    let (with, without) = (of(residual(WireDtype::Int8, 4)), of(Wire::default()));
    let map = bytes::activation_bytes(&with);
    let held = |stage| memory::held_bytes(&with, Coordinates { data: 0, cfg: 0, stage, sp: 0 });
    assert_eq!([held(0), held(1), held(2)], [map, 2 * map, map]);
    assert_eq!(memory::held_bytes(&without, Coordinates { data: 0, cfg: 0, stage: 1, sp: 0 }), 0);
}

#[test]
fn formulas_count_what_travels() {
    let model = model(4, 8);
    for dtype in [WireDtype::F32, WireDtype::Bf16, WireDtype::Int8] {
        for mesh in [degrees(1, 1, 4), ring(1, 1, 1, 4), ring(1, 1, 2, 2)] {
            let request = GenerateRequest {
                num_inference_steps: 3,
                wire: Some(all(dtype)),
                ..GenerateRequest::default()
            };
            let run = resolve::resolve(&request, &model, mesh).unwrap();
            let plan = Plan::new(mesh, &model, &run).unwrap();
            let axes = bytes::sent_by_axis(&plan, 0);
            let sent = |axis| axes.iter().find(|a| a.axis == axis).map_or(0, |a| a.bytes_sent);
            assert_eq!(
                sent(Axis::Ulysses),
                3 * bytes::ulysses_step_bytes(&plan),
                "{mesh} {dtype:?}"
            );
            assert_eq!(sent(Axis::Ring), 3 * bytes::ring_step_bytes(&plan), "{mesh} {dtype:?}");
        }
    }
}

#[test]
fn changes_of_what_travels_whole_are_refused() {
    let golden = Golden::load("sigma_8x8", "square");
    let spec = describe(&golden.dir, candle_core::DType::F32).unwrap();
    let wire = Wire { residual: true, ulysses: WireDtype::Int8, ..Wire::default() };
    let error = resolve::resolve(&request(&golden, 2, wire), &spec, degrees(1, 2, 1)).unwrap_err();
    assert!(error.to_string().contains("give pipefusion bf16, f16 or int8"), "{error}");
}

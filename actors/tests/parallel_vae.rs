//! Parallel VAE decode: every mesh gives one device's picture, its plans are sound, and it moves
//! the bytes that bands have to.

use ditmesh_actors::parallel::vae::DECODE_RANKS_MAX;
use ditmesh_actors::plan::message::MessageKind;
use ditmesh_actors::plan::{Plan, bytes, check, resolve};
use ditmesh_actors::request::{Degrees, GenerateRequest, Output, OutputKind, RgbImage};
use ditmesh_model::pipeline::describe;
use ditmesh_model::vae::VaeSpec;
use proptest::prelude::*;

use crate::harness::{Golden, Outcome, degrees, pipeline, run, run_quic};
use crate::plans::model;

fn picture(golden: &Golden, factor: usize, vae_parallel: bool) -> GenerateRequest {
    GenerateRequest {
        num_inference_steps: 2,
        output: OutputKind::Image,
        vae_parallel: Some(vae_parallel),
        ..golden.request(factor)
    }
}

fn image(outcome: &Outcome) -> &RgbImage {
    match &outcome.output {
        Output::Image(image) => image,
        Output::Latents(_) => panic!("latents where a picture was asked for"),
    }
}

/// At most one level apart, and hardly anywhere: a value between two levels falls to either side.
fn assert_same_picture(what: &str, found: &RgbImage, expected: &RgbImage) {
    assert_eq!((found.width, found.height), (expected.width, expected.height), "{what}");
    let pairs = || found.data.iter().zip(&expected.data);
    let off = pairs().filter(|(a, b)| a != b).count();
    println!("{what}: {off} of {} bytes differ", found.data.len());
    assert!(pairs().all(|(a, b)| a.abs_diff(*b) <= 1), "{what}");
    assert!(off * 200 <= found.data.len(), "{what}: {off} of {} bytes", found.data.len());
}

#[test]
fn meshes_decode_as_one_device_does() {
    let cases = [
        ("sigma_8x8", "square", degrees(1, 1, 2)),
        ("sigma_8x8", "tall", degrees(2, 1, 2)),
        ("sigma_4x5", "wide", degrees(1, 3, 1)),
        ("sigma_4x5", "tall", degrees(2, 2, 2)),
    ];
    for (name, case, mesh) in cases {
        let golden = Golden::load(name, case);
        let factor = describe(&pipeline(name), candle_core::DType::F32).unwrap().vae_scale_factor;
        // The same mesh, so that only the decoding differs.
        let alone = run(&golden.dir, mesh, &picture(&golden, factor, false));
        let bands = run(&golden.dir, mesh, &picture(&golden, factor, true));
        assert_same_picture(&format!("{name} {case} {mesh}"), image(&bands), image(&alone));
        let read = |outcome: &Outcome| -> Vec<u64> {
            outcome.ranks.iter().map(|rank| rank.weight_bytes_read).collect()
        };
        let pairs = read(&bands).into_iter().zip(read(&alone));
        let more = pairs.filter(|(bands, alone)| bands > alone).count();
        assert_eq!(more, mesh.world_size() - 1, "only ranks that decode read the VAE");
    }
}

#[test]
fn over_quic_the_picture_is_the_same() {
    let golden = Golden::load("sigma_8x8", "wide");
    let factor = describe(&golden.dir, candle_core::DType::F32).unwrap().vae_scale_factor;
    let request = picture(&golden, factor, true);
    let memory = run(&golden.dir, degrees(1, 2, 2), &request);
    let quic = run_quic(&golden.dir, degrees(1, 2, 2), &request);
    assert_eq!(image(&quic), image(&memory));
}

fn plan(mesh: Degrees, (rows, columns): (u32, u32), vae_parallel: Option<bool>) -> Plan {
    let model = model(5, 6);
    let request = GenerateRequest {
        height: Some(rows * 16),
        width: Some(columns * 16),
        num_inference_steps: 1,
        num_pipeline_patch: Some(1),
        vae_parallel,
        ..GenerateRequest::default()
    };
    let run = resolve::resolve(&request, &model, mesh).unwrap();
    Plan::new(mesh, &model, &run).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_is_sound_and_linked(
        cfg in 1u32..=2,
        stages in 1u32..=4,
        ulysses in 1u32..=4,
        (rows, columns) in (4u32..=9, 1u32..=3),
    ) {
        let mesh = degrees(cfg, stages, ulysses);
        let plan = plan(mesh, (rows, columns), Some(true));
        check::check(&plan).unwrap();
        let widest = Plan::widest(mesh, &plan.model).unwrap();
        check::check(&widest).unwrap();
        for member in 0..=plan.controller() {
            let links = widest.peers(member);
            prop_assert!(plan.peers(member).iter().all(|peer| links.contains(peer)));
        }
        // All latent rows, each once.
        let ranks = plan.decode_ranks(0);
        prop_assert!(ranks.len() <= DECODE_RANKS_MAX && ranks.contains(&plan.output_rank(0)));
        let shapes = ranks.iter().filter_map(|&r| plan.decode_shape(plan.mesh.coordinates(r)));
        let rows_of: Vec<usize> = shapes.flat_map(|shape| shape.band()).collect();
        prop_assert_eq!(rows_of, (0..plan.grid.height).collect::<Vec<_>>());
    }
}

/// Per neighbour: an edge row of every 3x3 convolution but the first, which is dealt with the
/// latents. To every other rank: two f64 per group and norm, and the map before the attention.
#[test]
fn bands_send_their_edges_and_sums_only() {
    let plan = plan(degrees(1, 1, 4), (8, 4), Some(true));
    let (width, groups) = (4 * 2, VaeSpec::default().groups as u64);
    // Elements of an edge row: 4 halves at 512, then 6 halves and an upsampling for each level.
    let rows = [4 * 512 + 6 * 512 + 512, 2 * (6 * 512 + 512), 4 * (512 + 5 * 256 + 256)];
    let last = 8 * (256 + 5 * 128 + 128);
    let edge = 4 * width * (rows.iter().sum::<u64>() + last);
    let norms = 2 * 14 + 1;
    for rank in 0..4 {
        let sent = bytes::sent_by_kind(&plan, rank);
        let neighbours = if rank == 0 || rank == 3 { 1 } else { 2 };
        assert_eq!(sent[&MessageKind::BandHalo], neighbours * edge, "rank {rank}");
        assert_eq!(sent[&MessageKind::BandMoments], 3 * norms * 2 * groups * 8, "rank {rank}");
        assert_eq!(sent[&MessageKind::BandMap], 3 * 4 * width * 512 * 4, "rank {rank}");
        let pixels = if rank == 0 { None } else { Some(&(8 * 4 * 64 * 3)) };
        assert_eq!(sent.get(&MessageKind::PixelRows), pixels, "rank {rank}");
    }
}

#[test]
fn bands_are_the_default_where_they_are_faster() {
    assert!(plan(degrees(1, 1, 4), (32, 32), None).run.vae_parallel);
    assert!(!plan(degrees(1, 1, 1), (32, 32), Some(true)).run.vae_parallel);
    assert!(!plan(degrees(1, 1, 4), (32, 32), Some(false)).run.vae_parallel);
    let dir = pipeline("sigma_8x8");
    let tiny = describe(&dir, candle_core::DType::F32).unwrap();
    let request = GenerateRequest::default();
    let run = resolve::resolve(&request, &tiny, degrees(1, 1, 2)).unwrap();
    assert!(!run.vae_parallel, "a toy's picture costs less than its messages");
}

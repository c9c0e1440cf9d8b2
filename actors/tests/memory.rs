//! Memory of a rank: its share of the blocks and no second copy of it, and what a plan predicted.

use std::path::Path;

use candle_core::DType;
use ditmesh_actors::plan::memory::run_bytes;
use ditmesh_actors::plan::{Plan, footprint, resolve};
use ditmesh_actors::protocol::RunSpec;
use ditmesh_actors::request::{
    Degrees, Dtype, FloatTensor, GenerateRequest, OutputKind, PromptEmbeds, StepCache, Wire,
};
use ditmesh_model::pipeline::describe;
use ditmesh_model::random_pipeline::{CAPTION_CHANNELS, RandomPixArt};
use ditmesh_model::spec::ModelSpec;
use ditmesh_model::spec::description::{Description, describe_any};

use crate::harness::{Outcome, degrees, full, run};

/// 264 MB of transformer, nearly all of it in its blocks.
const SIZES: RandomPixArt = RandomPixArt { hidden: 960, heads: 16, blocks: 4, latent: 8 };
/// Of the built-in text encoder and VAE, and of the tokenizer's tables.
const OTHER_BYTES_MAX: u64 = 8 << 20;
const TOKENS: usize = 8;

fn request() -> GenerateRequest {
    let embeds = || FloatTensor {
        shape: vec![1, TOKENS, CAPTION_CHANNELS],
        data: (0..TOKENS * CAPTION_CHANNELS).map(|i| (i as f32).sin()).collect(),
    };
    let mask = || FloatTensor { shape: vec![1, TOKENS], data: vec![1.0; TOKENS] };
    GenerateRequest {
        num_inference_steps: 2,
        num_pipeline_patch: Some(2),
        output: OutputKind::Latent,
        prompt_embeds: Some(PromptEmbeds {
            prompt_embeds: embeds(),
            prompt_attention_mask: mask(),
            negative_prompt_embeds: Some(embeds()),
            negative_prompt_attention_mask: Some(mask()),
        }),
        ..GenerateRequest::default()
    }
}

fn check(dir: &Path, spec: &ModelSpec, stages: u32) {
    let Outcome { ranks, held, .. } = run(dir, degrees(1, stages, 1), &request());
    let share = spec.block_bytes * spec.blocks as u64 / u64::from(stages);
    for (report, held) in ranks.iter().zip(held) {
        let rank = report.rank;
        // Bytes read: the share of the blocks, and what is outside of blocks at most.
        let read = report.weight_bytes_read;
        let outside = read - share;
        let outside_max = spec.other_bytes + OTHER_BYTES_MAX;
        assert!(outside <= outside_max, "rank {rank} of {stages} read {read}, its blocks {share}");
        // Bytes held: those, once.
        assert!(held.loaded.now >= share, "rank {rank} of {stages}: {held:?}");
        let gap = held.loaded.now.abs_diff(read);
        assert!(gap <= OTHER_BYTES_MAX, "rank {rank} of {stages} holds {held:?} of {read} read");
        // At most, over loading and running: within a tenth of the weights.
        let (most, limit) = (held.end.most, read + read / 10);
        assert!(most <= limit, "rank {rank} of {stages}: {held:?}, {read} read");
        assert!(report.peak_memory_bytes > held.end.most, "{report:?}");
        println!(
            "rank {rank} of {stages}: blocks {share}, read {read}, held {}, most {}",
            held.loaded.now, held.end.most
        );
    }
}

/// What `plan` said against what the rank's thread held at most.
fn check_prediction(dir: &Path, model: &Description, degrees: Degrees, request: &GenerateRequest) {
    let Outcome { ranks, held, .. } = run(dir, degrees, request);
    let run = resolve::resolve(request, &model.spec, degrees).unwrap();
    let run = RunSpec { embeds_tokens: Some(TOKENS as u32), ..run };
    let plan = Plan::new(degrees, &model.spec, &run).unwrap();
    for (report, held) in ranks.iter().zip(held) {
        let predicted = footprint::of_rank(&plan, report.rank as usize, model, Dtype::F32);
        let ratio = held.end.most as f64 / predicted.total() as f64;
        let rank = report.rank;
        println!("{degrees:?} rank {rank}: held {}, predicted {predicted:?}", held.end.most);
        assert!((ratio - 1.0).abs() < 0.1, "{degrees:?} rank {rank}: {ratio:.3} of {predicted:?}");
    }
}

#[test]
fn the_peak_of_every_rank_is_within_a_tenth_of_the_plan() {
    let dir = tempfile::tempdir().unwrap();
    RandomPixArt { latent: 32, ..SIZES }.write(dir.path()).unwrap();
    let model = describe_any(dir.path(), DType::F32).unwrap();
    let base = GenerateRequest { num_inference_steps: 3, ..request() };
    let (latent, image) = (OutputKind::Latent, OutputKind::Image);
    let ring = Degrees { ring_degree: 2, ..degrees(1, 1, 1) };
    let mut cases = vec![
        (degrees(1, 2, 1), 4, image),
        (degrees(1, 1, 2), 1, latent),
        (degrees(1, 2, 2), 2, image),
    ];
    if full() {
        cases.extend([
            (degrees(1, 1, 1), 1, latent),
            (degrees(1, 1, 1), 1, image),
            (degrees(2, 1, 1), 1, image),
            (degrees(1, 4, 1), 4, latent),
            (degrees(1, 4, 1), 8, image),
            (ring, 1, latent),
            (Degrees { ulysses_degree: 2, ..ring }, 1, latent),
            (Degrees { pipefusion_degree: 2, ..ring }, 4, latent),
        ]);
    }
    for (degrees, patches, output) in cases {
        let request = GenerateRequest { num_pipeline_patch: Some(patches), output, ..base.clone() };
        check_prediction(dir.path(), &model, degrees, &request);
    }
}

/// What decides whether a second run has room: about what a run really takes beside what a forward
/// pass needs.
#[test]
fn a_run_takes_the_bytes_that_its_admission_reckons_with() {
    let dir = tempfile::tempdir().unwrap();
    RandomPixArt { hidden: 240, latent: 64, ..SIZES }.write(dir.path()).unwrap();
    let model = describe_any(dir.path(), DType::F32).unwrap();
    let plain = GenerateRequest { num_inference_steps: 3, ..request() };
    let cache = Some(StepCache { threshold: 0.1, ..StepCache::default() });
    let wire = Some(Wire { residual: true, .."f16".parse().unwrap() });
    for (degrees, request) in [
        (degrees(1, 2, 1), GenerateRequest { num_pipeline_patch: Some(8), ..plain.clone() }),
        (degrees(1, 2, 1), GenerateRequest { num_pipeline_patch: Some(8), wire, ..plain.clone() }),
        (
            degrees(1, 2, 2),
            GenerateRequest { num_pipeline_patch: Some(4), step_cache: cache, ..plain },
        ),
    ] {
        let Outcome { held, .. } = run(dir.path(), degrees, &request);
        let run = resolve::resolve(&request, &model.spec, degrees).unwrap();
        let run = RunSpec { embeds_tokens: Some(TOKENS as u32), ..run };
        let plan = Plan::new(degrees, &model.spec, &run).unwrap();
        let reckoned = run_bytes(&plan);
        for (rank, held) in held.iter().enumerate() {
            let grown = held.end.most - held.loaded.now;
            let forward = footprint::of_rank(&plan, rank, &model, Dtype::F32).activations;
            println!("{degrees} rank {rank}: {grown} more, reckoned {reckoned}, forward {forward}");
            // A fifth for what is on its way: copies in another element type, frames not yet taken.
            assert!(grown <= (reckoned + forward) * 6 / 5, "{degrees} rank {rank}: too little");
            assert!(grown * 2 >= reckoned, "{degrees} rank {rank}: too much");
        }
    }
}

#[test]
fn a_stage_of_n_holds_an_nth_of_the_blocks_once() {
    let dir = tempfile::tempdir().unwrap();
    SIZES.write(dir.path()).unwrap();
    let spec = describe(dir.path(), DType::F32).unwrap();
    assert!(spec.block_bytes * spec.blocks as u64 + spec.other_bytes >= 200_000_000);
    for stages in [2, 4] {
        check(dir.path(), &spec, stages);
    }
}

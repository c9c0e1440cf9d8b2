//! Memory of a PipeFusion rank: its share of the blocks, and no second copy of it.

use std::path::Path;

use candle_core::DType;
use ditmesh_actors::request::{FloatTensor, GenerateRequest, OutputKind, PromptEmbeds};
use ditmesh_model::pipeline::describe;
use ditmesh_model::random_pipeline::{CAPTION_CHANNELS, RandomPixArt};
use ditmesh_model::spec::ModelSpec;

use crate::harness::{Outcome, degrees, run};

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

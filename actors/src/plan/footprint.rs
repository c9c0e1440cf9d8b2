//! How many bytes a rank of a plan holds while it runs: weights, patch KV cache, activations.
//!
//! Counted from the plan and the model's description. Weights are those of the rank's blocks in the
//! stored precision; text encoder and VAE decoder count on the ranks that hold them; activations
//! are f32. Pure.

use ditmesh_model::spec::description::Description;
use ditmesh_model::vae::COLUMN_BYTES_MAX;

use super::Plan;
use super::memory::{cache_bytes, held_bytes, posted_bytes, residual_bytes};
use super::program::Patch;
use crate::request::Dtype;

/// Bytes one rank holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RankMemory {
    /// Transformer weights.
    pub weights: u64,
    /// Text encoder weights.
    pub text_encoder: u64,
    /// VAE decoder weights.
    pub vae: u64,
    /// Patch KV cache.
    pub kv_cache: u64,
    /// Hidden states kept from step to step: by a step cache, and by both ends of a pipeline edge
    /// over which they travel as changes.
    pub kept: u64,
    /// Cross-attention keys and values of the text.
    pub text_kv: u64,
    /// Room for frames on their way.
    pub frames: u64,
    /// Most activations alive at once, of a forward pass or of decoding.
    pub activations: u64,
}

impl RankMemory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights
            + self.text_encoder
            + self.vae
            + self.kv_cache
            + self.kept
            + self.text_kv
            + self.frames
            + self.activations
    }
}

/// Bytes of an element of a weight.
fn stored(dtype: Dtype) -> u64 {
    match dtype {
        Dtype::F32 => 4,
        Dtype::F16 | Dtype::Bf16 => 2,
    }
}

/// What `rank` of `plan` holds, with weights in `dtype`.
pub fn of_rank(plan: &Plan, rank: usize, model: &Description, dtype: Dtype) -> RankMemory {
    let at = plan.mesh.coordinates(rank);
    let blocks = plan.blocks(at.stage);
    let held = model.work.blocks.get(blocks.clone()).unwrap_or_default();
    let of_blocks: u64 = held.iter().map(|block| block.parameters).sum();
    let exact = plan.model.block_bytes * blocks.len() as u64;
    let uniform = model.work.blocks.windows(2).all(|pair| pair[0] == pair[1]);
    let weights = if uniform { exact } else { of_blocks * stored(dtype) };
    let batch = plan.batch() as u64;
    let hidden = plan.model.hidden() as u64;
    let text = plan.text_tokens() as u64;
    let cross = held.iter().filter(|block| block.cross_attention).count() as u64;
    RankMemory {
        weights: weights + plan.model.other_bytes,
        text_encoder: if rank == 0 && plan.run.embeds_tokens.is_none() {
            model.text_encoder.parameters * stored(dtype)
        } else {
            0
        },
        // The decoder is held in f32 throughout.
        vae: if decode(plan, rank, model) > 0 { 4 * model.decoder.parameters } else { 0 },
        kv_cache: cache_bytes(plan, at),
        kept: residual_bytes(plan, at) + held_bytes(plan, at),
        text_kv: 2 * 4 * cross * batch * text * hidden,
        frames: posted_bytes(plan, rank),
        activations: activations(plan, rank, model),
    }
}

/// Of a forward pass, the maps of this rank's tokens that are alive at its widest place, or of
/// decoding, whichever is more.
fn activations(plan: &Plan, rank: usize, model: &Description) -> u64 {
    let at = plan.mesh.coordinates(rank);
    let tokens = (plan.rows(at.sp, Patch::All).len() * plan.grid.tokens_per_row()) as u64;
    let map = 4 * plan.batch() as u64 * tokens * plan.model.hidden() as u64;
    // The feed-forward: hidden states, their normed copy and the widened ones; then the result
    // in the copy's place. In attention: hidden states, their normed copy, q, k, v and the output;
    // keys and values of an Ulysses group once more together, on a ring those of the next group and
    // two more partial outputs.
    let degrees = plan.mesh.degrees();
    let (ulysses, ring) = (degrees.ulysses_degree > 1, degrees.ring_degree > 1);
    let maps = if ring {
        10
    } else if ulysses && !plan.needs_cache() {
        8
    } else {
        6
    };
    (maps * map).max(decode(plan, rank, model))
}

/// Of decoding this rank's band: what the decoder holds at full resolution, and what a convolution
/// unfolds; nothing where nothing is decoded.
fn decode(plan: &Plan, rank: usize, model: &Description) -> u64 {
    let shape = plan.decode_shape(plan.mesh.coordinates(rank));
    let Some(shape) = shape.filter(|_| !plan.run.latent_output) else { return 0 };
    let pixels = u64::from(plan.run.height) * u64::from(plan.run.width);
    let pixels = pixels * shape.band().len() as u64 / shape.height().max(1) as u64;
    let unfolded = (4 * pixels * model.decoder.unfolded_per_pixel).min(COLUMN_BYTES_MAX as u64);
    4 * pixels * model.decoder.elements_per_pixel + unfolded
}

//! What a run holds in the memory of a device as long as it lasts.
//!
//! Owns the sum that decides whether a second run may share a mesh. What a forward pass needs while
//! it runs is not in it: a device computes one unit at a time. Pure.

use super::Plan;
use super::mesh::Coordinates;
use super::program::Patch;
use crate::executor::mailbag::{POST_AHEAD_FRAMES, POSTED_BYTES_MAX};

/// Receives of a program that are looked at for how much is posted at once.
const RECEIVES_LOOKED_AT: usize = 8 * POST_AHEAD_FRAMES;

/// Bytes on the rank where they are most: patch K,V cache, residuals of a step cache, what both
/// ends of a pipeline edge hold, text and its keys and values in every block, latents with two
/// steps of solver history, and places for frames.
pub fn run_bytes(plan: &Plan) -> u64 {
    (0..plan.mesh.world_size()).map(|rank| rank_bytes(plan, rank)).max().unwrap_or(0)
}

fn rank_bytes(plan: &Plan, rank: usize) -> u64 {
    let at = plan.mesh.coordinates(rank);
    let float = size_of::<f32>() as u64;
    let text: u64 = plan.text_messages().iter().map(|message| message.bytes() as u64).sum();
    let text_kv = plan.batch() * plan.text_tokens() * plan.model.hidden();
    let text_kv = (2 * plan.blocks(at.stage).len() * text_kv) as u64;
    let latents = 4 * super::bytes::latent_bytes(plan);
    cache_bytes(plan, at)
        + residual_bytes(plan, at)
        + held_bytes(plan, at)
        + text
        + text_kv * float
        + latents
        + posted_bytes(plan, rank)
}

/// Bytes of the frames that a rank makes room for ahead of their arrival, as the executor does it:
/// the most that follow each other in its program, in the beginning of it that is looked at.
pub fn posted_bytes(plan: &Plan, rank: usize) -> u64 {
    let sizes = plan.receives(rank).map(|(_, message)| message.bytes() as u64);
    let sizes: Vec<u64> = sizes.take(RECEIVES_LOOKED_AT).collect();
    let most = sizes.windows(POST_AHEAD_FRAMES.min(sizes.len()).max(1)).map(|run| run.iter().sum());
    most.max().unwrap_or(0).min(POSTED_BYTES_MAX as u64)
}

/// Bytes of the patch K,V cache of the rank at `at`.
pub fn cache_bytes(plan: &Plan, at: Coordinates) -> u64 {
    if !plan.needs_cache() {
        return 0;
    }
    let per_token = plan.batch() * plan.heads(at) * plan.model.head_dim * size_of::<f32>();
    (2 * plan.blocks(at.stage).len() * plan.grid.tokens() * per_token) as u64
}

/// Bytes of the residuals that a step cache keeps on the rank at `at`: of its blocks, and of the
/// first block on the first stage.
pub fn residual_bytes(plan: &Plan, at: Coordinates) -> u64 {
    let residuals = match (&plan.run.step_cache, at.stage) {
        (None, _) => 0,
        (Some(_), 0) => 2,
        (Some(_), _) => 1,
    };
    let tokens = plan.rows(at.sp, Patch::All).len() * plan.grid.tokens_per_row();
    (residuals * plan.batch() * tokens * plan.model.hidden() * size_of::<f32>()) as u64
}

/// Bytes of what the rank at `at` holds of the hidden states that came over its pipeline edges and
/// left over them, where those travel as changes.
pub fn held_bytes(plan: &Plan, at: Coordinates) -> u64 {
    if !plan.run.wire.residual {
        return 0;
    }
    let edges = usize::from(at.stage > 0) + usize::from(at.stage + 1 < plan.mesh.stages());
    let tokens = plan.rows(at.sp, Patch::All).len() * plan.grid.tokens_per_row();
    (edges * plan.batch() * tokens * plan.model.hidden() * size_of::<f32>()) as u64
}

//! How many payload bytes a plan moves, and what the methods' papers say it should.
//!
//! Counted from the same programs the ranks execute. Pure.

use std::collections::BTreeMap;

use super::message::MessageKind;
use super::{Action, Plan};

/// Payload bytes that leave `rank` in a whole run, by kind of message.
pub fn sent_by_kind(plan: &Plan, rank: usize) -> BTreeMap<MessageKind, u64> {
    let mut bytes = BTreeMap::new();
    for action in plan.actions(rank) {
        if let Action::Send(_, message) = action {
            *bytes.entry(message.kind).or_default() += message.bytes() as u64;
        }
    }
    bytes
}

/// Bytes of one activation map: all tokens, f32, times the batch rows of a rank.
pub fn activation_bytes(plan: &Plan) -> u64 {
    (plan.batch() * plan.grid.tokens() * plan.model.hidden() * size_of::<f32>()) as u64
}

/// Bytes of one latent, f32.
pub fn latent_bytes(plan: &Plan) -> u64 {
    let grid = &plan.grid;
    (grid.channels * grid.frames * grid.height * grid.width * size_of::<f32>()) as u64
}

/// What Ulysses sends per rank and step where heads and rows divide: `4 (U-1)/U^2 * A` per layer.
pub fn ulysses_step_bytes(plan: &Plan) -> u64 {
    let u = plan.mesh.degrees().ulysses_degree as u64;
    let layers = (plan.model.blocks / plan.mesh.stages()) as u64;
    4 * (u - 1) * activation_bytes(plan) * layers / (u * u)
}

//! How many payload bytes a plan moves, and what the methods' papers say it should.
//!
//! Counted from the same programs the ranks execute. Pure.

use std::collections::BTreeMap;

use super::message::MessageKind;
use super::{Action, Plan};
use crate::request::AxisTraffic;
use crate::request::wire::{Axis, traffic_of};

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

/// The same axis by axis, with what a choice of element types saves.
pub fn sent_by_axis(plan: &Plan, rank: usize) -> Vec<AxisTraffic> {
    let sent = plan.actions(rank).filter_map(|action| match action {
        Action::Send(_, message) => Some([AxisTraffic {
            axis: message.kind.axis(),
            bytes_sent: message.bytes() as u64,
            bytes_saved: message.bytes_saved() as u64,
        }]),
        _ => None,
    });
    let sent: Vec<[AxisTraffic; 1]> = sent.collect();
    traffic_of(sent.iter().map(<[AxisTraffic; 1]>::as_slice))
}

/// Bytes of one activation map: all tokens, f32, times the batch rows of a rank.
pub fn activation_bytes(plan: &Plan) -> u64 {
    (plan.batch() * plan.grid.tokens() * plan.model.hidden() * size_of::<f32>()) as u64
}

/// Bytes of the latents of all pictures, f32.
pub fn latent_bytes(plan: &Plan) -> u64 {
    let grid = &plan.grid;
    let one = grid.channels * grid.frames * grid.height * grid.width;
    (plan.images() * one * size_of::<f32>()) as u64
}

/// What Ulysses sends per rank and step where heads, rows and blocks divide: per layer
/// `4 (U-1)/(U S) * A`, which is `4 (U-1)/U^2 * A` without a ring; `A` as it travels.
pub fn ulysses_step_bytes(plan: &Plan) -> u64 {
    let (ulysses, sequence) = (plan.mesh.degrees().ulysses_degree, plan.mesh.sequence());
    let layer = layer_bytes(plan, Axis::Ulysses);
    4 * u64::from(ulysses - 1) * layer / (u64::from(ulysses) * sequence as u64)
}

/// What the ring sends per rank and step where all divides: per layer `2 (R-1)/S * A`, which is
/// `2 (R-1)/R * A` without Ulysses; with and without PipeFusion, whose passes send fresh rows only.
pub fn ring_step_bytes(plan: &Plan) -> u64 {
    let ring = u64::from(plan.mesh.degrees().ring_degree);
    2 * (ring - 1) * layer_bytes(plan, Axis::Ring) / plan.mesh.sequence() as u64
}

/// One activation map for each layer of a stage, head by head as it travels on `axis`.
fn layer_bytes(plan: &Plan, axis: Axis) -> u64 {
    let layers = (plan.model.blocks / plan.mesh.stages()) as u64;
    let head = plan.model.head_dim;
    let heads = activation_bytes(plan) / (head * size_of::<f32>()) as u64;
    heads * plan.run.wire.dtype(axis).payload().row_bytes(head) as u64 * layers
}

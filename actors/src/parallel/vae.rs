//! Parallel VAE decode: the ranks of one replica decode bands of latent rows of one picture.
//!
//! Owns who decodes, what the output rank deals out before and takes back after. What crosses
//! between the decoders inside a decoding is [`ditmesh_model::vae::phase`]'s. All ranks of a
//! replica take part, in rank order (neighbouring bands on neighbouring ranks), up to
//! [`DECODE_RANKS_MAX`]; when there are fewer latent rows than ranks, some own nothing and take no
//! part.

pub mod worth;

use ditmesh_model::vae::phase::{DecodePhase, DecodeShape, decode_phases};
use ditmesh_transport::frame::Dtype;

use crate::plan::mesh::Coordinates;
use crate::plan::message::{Message, MessageKind};
use crate::plan::program::Op;
use crate::plan::{Action, Plan};

/// Ranks that decode one picture; sums of group norms go from each to each, so more would mostly
/// wait.
pub const DECODE_RANKS_MAX: usize = 16;

impl Plan {
    /// The rank that gathers, decodes or deals out, and talks to the controller, of a replica.
    pub fn output_rank(&self, data: usize) -> usize {
        let stage = self.mesh.stages() - 1;
        self.mesh.rank(Coordinates { data, cfg: 0, stage, sp: 0 })
    }

    /// The ranks that decode in replica `data`, in member order.
    pub fn decode_ranks(&self, data: usize) -> Vec<usize> {
        let output = self.output_rank(data);
        if !self.run.vae_parallel {
            return vec![output];
        }
        let first = self.mesh.rank(Coordinates { data, cfg: 0, stage: 0, sp: 0 });
        let end = first + self.mesh.world_size() / self.mesh.degrees().data_degree as usize;
        let start = first.max((output + 1).saturating_sub(DECODE_RANKS_MAX));
        (start..end.min(start + DECODE_RANKS_MAX)).collect()
    }

    /// The bands, as the rank at `at` sees them; `None` where it does not decode.
    pub fn decode_shape(&self, at: Coordinates) -> Option<DecodeShape> {
        let ranks = self.decode_ranks(at.data);
        let rank = self.mesh.rank(at);
        let member = ranks.iter().position(|&other| other == rank)?;
        let (height, width) = (self.grid.height, self.grid.width);
        let shape = DecodeShape::new(1, height, width, ranks.len(), member);
        (!shape.band().is_empty()).then_some(shape)
    }
}

/// Everything between the whole latent on the output rank and the whole picture there, unless
/// latents are wanted.
pub(crate) fn decode(plan: &Plan, at: Coordinates, ops: &mut Vec<Op>) {
    if plan.run.latent_output {
        return;
    }
    let Some(shape) = plan.decode_shape(at) else {
        // Fewer rows than ranks: the output rank still deals out and puts together.
        if plan.is_output(at) {
            deal(plan, at, ops);
            put_together(plan, at, ops);
        }
        return;
    };
    let output = plan.output_rank(at.data);
    if plan.is_output(at) {
        deal(plan, at, ops);
        ops.push(Op::Decode);
        return put_together(plan, at, ops);
    }
    ops.push(Op::Recv { peer: output, message: latents(plan, &shape, shape.member) });
    ops.push(Op::Decode);
    ops.push(Op::Send { peer: output, message: pixels(plan, &shape, shape.member) });
}

/// The other decoders, with the bands as seen by no one in particular.
fn others(plan: &Plan, at: Coordinates) -> (DecodeShape, Vec<(usize, usize)>) {
    let ranks = plan.decode_ranks(at.data);
    let shape = DecodeShape::new(1, plan.grid.height, plan.grid.width, ranks.len(), 0);
    let own = plan.mesh.rank(at);
    let pairs = ranks.into_iter().enumerate();
    let owns = |member: usize| shape.bands.get(member).is_some_and(|band| !band.is_empty());
    let pairs = pairs.filter(|&(member, rank)| rank != own && owns(member)).collect();
    (shape, pairs)
}

fn deal(plan: &Plan, at: Coordinates, ops: &mut Vec<Op>) {
    let (shape, others) = others(plan, at);
    let send = |(member, peer)| Op::Send { peer, message: latents(plan, &shape, member) };
    ops.extend(others.into_iter().map(send));
}

fn put_together(plan: &Plan, at: Coordinates, ops: &mut Vec<Op>) {
    let (shape, others) = others(plan, at);
    if others.is_empty() {
        return;
    }
    let receive = |(member, peer)| Op::Recv { peer, message: pixels(plan, &shape, member) };
    ops.extend(others.into_iter().map(receive));
    ops.push(Op::Assemble);
}

/// Latent rows for one decoder: its band, and a row of each neighbour's.
fn latents(plan: &Plan, shape: &DecodeShape, member: usize) -> Message {
    let grid = &plan.grid;
    let rows = shape.latent_rows(member).len();
    let dims = vec![shape.batch, grid.channels, grid.frames, rows, grid.width];
    Message::once(MessageKind::BandLatents, dims)
}

/// Decoded rows, 8-bit RGB `[rows, width, 3]`.
fn pixels(plan: &Plan, shape: &DecodeShape, member: usize) -> Message {
    let band = shape.bands.get(member).map_or(0, ExactSizeIterator::len);
    let rows = band * plan.model.vae_scale_factor;
    let dims = vec![rows, plan.run.width as usize, 3];
    Message { dtype: Dtype::U8, ..Message::once(MessageKind::PixelRows, dims) }
}

/// A decoding as actions, in the order in which the walker does them.
pub(crate) fn expand(plan: &Plan, at: Coordinates) -> Vec<Action> {
    let Some(shape) = plan.decode_shape(at) else { return Vec::new() };
    let ranks = plan.decode_ranks(at.data);
    let mut actions = Vec::new();
    for phase in decode_phases(&shape, &plan.model.vae) {
        match phase {
            DecodePhase::Compute { layer, flops } => actions.push(Action::Layer { layer, flops }),
            DecodePhase::Send(exchange) => {
                let pairs = ranks.iter().zip(&exchange.send);
                let message = |(&peer, shape): (&usize, &Option<Vec<usize>>)| {
                    Some(Action::Send(peer, Message::of_band(exchange.id, shape.clone()?)))
                };
                actions.extend(pairs.filter_map(message));
            }
            DecodePhase::Receive(exchange) => {
                let pairs = ranks.iter().zip(&exchange.receive);
                let message = |(&peer, shape): (&usize, &Option<Vec<usize>>)| {
                    Some(Action::Recv(peer, Message::of_band(exchange.id, shape.clone()?)))
                };
                actions.extend(pairs.filter_map(message));
            }
        }
    }
    actions
}

//! The order of work inside one forward pass, as data.
//!
//! [`phases`] is the only place that knows what a block does between its input and its output and
//! which exchanges sit in it. The walker ([`crate::forward`]), the plan checker, the byte formulas
//! and every simulation read this list; none of them knows the order by itself. Pure: no tensors.

use std::ops::Range;

use crate::exchange::{ExchangeId, ExchangeKind};
use crate::rows::{RowSet, share};
use crate::spec::ModelSpec;

/// One forward pass of one sequence rank over some rows and some blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardShape {
    /// Batch rows (guidance branches held by this rank).
    pub batch: usize,
    /// Blocks to run; starts with the patch embedding when it holds block 0 and ends with the
    /// final projection when it holds the last.
    pub blocks: Range<usize>,
    /// Rows of each member of the sequence group, in member order.
    pub rows: Vec<RowSet>,
    /// Which member this rank is.
    pub member: usize,
    /// Tokens in one token row.
    pub tokens_per_row: usize,
}

impl ForwardShape {
    /// Tokens of member `index`.
    pub fn tokens_of(&self, index: usize) -> usize {
        self.rows.get(index).map_or(0, RowSet::len) * self.tokens_per_row
    }

    /// Tokens of this rank.
    pub fn own_tokens(&self) -> usize {
        self.tokens_of(self.member)
    }

    /// Number of sequence ranks.
    pub fn members(&self) -> usize {
        self.rows.len()
    }

    /// Heads that member `index` attends with.
    pub fn heads_of(&self, index: usize, heads: usize) -> Range<usize> {
        share(heads, index, self.members())
    }
}

/// One piece of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Patch embedding of this rank's rows.
    Embed,
    /// Norm, modulation, q,k,v projection of a block.
    ProjectQkv(usize),
    /// Self-attention of a block, on this rank's heads over the tokens of all members.
    Attend(usize),
    /// Output projection, cross-attention and feed-forward of a block.
    ProjectOut(usize),
    /// Tensors that change rank.
    Exchange(Exchange),
    /// Final norm, projection, unpatchify.
    ProjectNoise,
}

impl Phase {
    /// Its name in accounts of time and in traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::ProjectQkv(_) => "project_qkv",
            Self::Attend(_) => "attend",
            Self::ProjectOut(_) => "project_out",
            Self::Exchange(exchange) => exchange.id.kind.name(),
            Self::ProjectNoise => "project_noise",
        }
    }
}

/// Shapes that cross between this rank and each member; `None` where nothing does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Which exchange.
    pub id: ExchangeId,
    /// Shape sent to each member.
    pub send: Vec<Option<Vec<usize>>>,
    /// Shape received from each member.
    pub receive: Vec<Option<Vec<usize>>>,
}

/// The phases of one forward pass in order.
pub fn phases(shape: &ForwardShape, model: &ModelSpec) -> impl Iterator<Item = Phase> {
    let first = (shape.blocks.start == 0).then_some(Phase::Embed);
    let last = (shape.blocks.end == model.blocks).then_some(Phase::ProjectNoise);
    let (shape, heads, head_dim) = (shape.clone(), model.heads, model.head_dim);
    let blocks = shape.blocks.clone();
    let inner = blocks.flat_map(move |block| block_phases(&shape, block, heads, head_dim));
    first.into_iter().chain(inner).chain(last)
}

fn block_phases(shape: &ForwardShape, block: usize, heads: usize, head_dim: usize) -> Vec<Phase> {
    if shape.members() == 1 {
        return vec![Phase::ProjectQkv(block), Phase::Attend(block), Phase::ProjectOut(block)];
    }
    vec![
        Phase::ProjectQkv(block),
        Phase::Exchange(scatter_heads(shape, block, heads, head_dim)),
        Phase::Attend(block),
        Phase::Exchange(gather_heads(shape, block, heads, head_dim)),
        Phase::ProjectOut(block),
    ]
}

/// Ulysses' first all-to-all: q, k and v of one layer in one message per peer, `[3, B, n, H, d]`.
fn scatter_heads(shape: &ForwardShape, block: usize, heads: usize, head_dim: usize) -> Exchange {
    let piece = |from: usize, to: usize| {
        let (tokens, heads) = (shape.tokens_of(from), shape.heads_of(to, heads).len());
        vec![3, shape.batch, tokens, heads, head_dim]
    };
    exchange(shape, ExchangeId { block, kind: ExchangeKind::UlyssesQkv }, piece)
}

/// Ulysses' second all-to-all: attention output back to the owners of the tokens, `[B, n, H, d]`.
fn gather_heads(shape: &ForwardShape, block: usize, heads: usize, head_dim: usize) -> Exchange {
    let piece = |from: usize, to: usize| {
        let (tokens, heads) = (shape.tokens_of(to), shape.heads_of(from, heads).len());
        vec![shape.batch, tokens, heads, head_dim]
    };
    exchange(shape, ExchangeId { block, kind: ExchangeKind::UlyssesOut }, piece)
}

fn exchange(
    shape: &ForwardShape,
    id: ExchangeId,
    piece: impl Fn(usize, usize) -> Vec<usize>,
) -> Exchange {
    let me = shape.member;
    let some = |other: usize, shape: Vec<usize>| {
        (other != me && shape.iter().all(|&dim| dim > 0)).then_some(shape)
    };
    Exchange {
        id,
        send: (0..shape.members()).map(|other| some(other, piece(me, other))).collect(),
        receive: (0..shape.members()).map(|other| some(other, piece(other, me))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::strips;
    use crate::spec::{Family, ModelId, TextStream};
    use crate::vae::VaeSpec;

    fn model() -> ModelSpec {
        ModelSpec {
            id: ModelId(1),
            family: Family::PixArt,
            text_stream: TextStream::Cross,
            long_skips: false,
            blocks: 3,
            heads: 6,
            head_dim: 8,
            patch_size: 2,
            latent_channels: 4,
            sample_size: 16,
            vae_scale_factor: 8,
            vae: VaeSpec::default(),
            caption_channels: 24,
            text_tokens: 7,
            block_bytes: 1,
            other_bytes: 1,
        }
    }

    fn shape(members: usize, member: usize) -> ForwardShape {
        let strips = strips(5, 2);
        ForwardShape {
            batch: 2,
            blocks: 0..3,
            rows: (0..members).map(|i| RowSet::of_rank(&strips, i, members)).collect(),
            member,
            tokens_per_row: 4,
        }
    }

    #[test]
    fn one_member_exchanges_nothing() {
        let phases: Vec<_> = phases(&shape(1, 0), &model()).collect();
        assert_eq!(phases.len(), 2 + 3 * 3);
        assert_eq!((&phases[0], &phases[10]), (&Phase::Embed, &Phase::ProjectNoise));
    }

    #[test]
    fn what_one_member_sends_another_receives() {
        for members in [2, 3, 4, 8] {
            let all: Vec<Vec<Exchange>> = (0..members)
                .map(|member| {
                    phases(&shape(members, member), &model())
                        .filter_map(|phase| match phase {
                            Phase::Exchange(exchange) => Some(exchange),
                            _ => None,
                        })
                        .collect()
                })
                .collect();
            for a in 0..members {
                for b in 0..members {
                    for (from, to) in all[a].iter().zip(&all[b]) {
                        assert_eq!((from.id, &from.send[b]), (to.id, &to.receive[a]));
                    }
                }
            }
        }
    }
}

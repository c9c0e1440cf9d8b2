//! The order of work inside one forward pass, as data.
//!
//! [`phases`] is the only place that knows what a block does between its input and its output and
//! which transfers sit in it. The walker ([`crate::forward`]), the plan checker, the byte formulas
//! and every simulation read this list; none of them knows the order by itself. Pure: no tensors.
//!
//! Ulysses (arXiv 2309.14509), ring attention (arXiv 2310.01889) and their product USP (arXiv
//! 2405.07719) are one list here. A transfer starts as soon as what it carries is there and is
//! waited for as late as the next phase allows, so that it moves while this rank computes.
//!
//! Invariants: a phase without work and a transfer without pieces are not in the list; every
//! transfer that starts on one member is waited for on another with the same id and shapes.

mod shape;
#[cfg(test)]
mod tests;
mod transfer;

use std::ops::Range;

pub use shape::ForwardShape;
pub use transfer::Transfer;

use crate::spec::ModelSpec;

/// One piece of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Patch embedding of this rank's rows.
    Embed,
    /// q,k,v projection of this rank's tokens in a block, for the heads of one member.
    ProjectQkv(ProjectQkv),
    /// Tensors begin to leave for other members; nobody waits.
    Start(Transfer),
    /// Waits for tensors of other members.
    Wait(Transfer),
    /// Self-attention of some queries over some keys.
    Attend(Attend),
    /// Output projection, cross-attention and feed-forward of a block on this rank's tokens.
    ProjectOut(usize),
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
            Self::Start(transfer) | Self::Wait(transfer) => transfer.id.kind.name(),
            Self::ProjectNoise => "project_noise",
        }
    }
}

/// Projection of `tokens` tokens to queries, keys and values of `heads`; the first of a block
/// comes with its norm and modulation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectQkv {
    /// Transformer block, counted over the whole model.
    pub block: usize,
    /// The member that attends with these heads.
    pub member: usize,
    /// Tokens of this rank.
    pub tokens: usize,
    /// The heads.
    pub heads: Range<usize>,
}

/// Attention of the queries of one member over a set of keys, with this rank's heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attend {
    /// Transformer block, counted over the whole model.
    pub block: usize,
    /// Whose queries.
    pub member: usize,
    /// Which keys.
    pub keys: Keys,
    /// Number of queries.
    pub query_tokens: usize,
    /// Number of keys.
    pub key_tokens: usize,
    /// Number of heads.
    pub heads: usize,
}

/// Which keys a query meets in one [`Attend`]; several results over disjoint keys are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keys {
    /// All there are: the tokens that were gathered, or the whole patch KV cache.
    All,
    /// The tokens of one Ulysses group, passed around the ring.
    Group(usize),
    /// The rows of the patch KV cache that this pass does not overwrite.
    Kept,
    /// The rows of the patch KV cache that this pass overwrote.
    Fresh,
}

/// The phases of one forward pass in order.
pub fn phases(shape: &ForwardShape, model: &ModelSpec) -> impl Iterator<Item = Phase> + use<> {
    let own = shape.own_tokens() > 0;
    let first = (own && shape.blocks.start == 0).then_some(Phase::Embed);
    let last = (own && shape.blocks.end == model.blocks).then_some(Phase::ProjectNoise);
    let (shape, heads, head_dim) = (shape.clone(), model.heads, model.head_dim);
    let blocks = shape.blocks.clone();
    let inner = blocks.flat_map(move |block| {
        let mut of_block = BlockPhases { shape: &shape, block, heads, head_dim, list: Vec::new() };
        of_block.project();
        of_block.attend();
        of_block.finish();
        of_block.list
    });
    first.into_iter().chain(inner).chain(last)
}

/// The list of one block while it is written.
struct BlockPhases<'a> {
    shape: &'a ForwardShape,
    block: usize,
    heads: usize,
    head_dim: usize,
    list: Vec<Phase>,
}

impl BlockPhases<'_> {
    /// Projection, one member's heads after the other: what leaves comes first, our own heads last,
    /// so that the others' share travels meanwhile.
    fn project(&mut self) {
        let tokens = self.shape.own_tokens();
        for member in self.shape.peers_then_self() {
            let heads = self.shape.heads_of(member, self.heads);
            if tokens == 0 || heads.is_empty() {
                continue;
            }
            let block = self.block;
            self.list.push(Phase::ProjectQkv(ProjectQkv { block, member, tokens, heads }));
            self.start(self.scatter_heads_to(member));
        }
        self.wait(self.scatter_heads());
    }

    /// Attention with this rank's heads for all members of its Ulysses group.
    fn attend(&mut self) {
        if self.own_heads() == 0 {
            return;
        }
        let last = match (self.shape.ring(), self.shape.cached_tokens) {
            (1, _) => Keys::All,
            (_, Some(_)) => self.gather_fresh(),
            (ring, None) => self.pass_around(ring),
        };
        for member in self.shape.peers_then_self() {
            self.attend_for(member, last);
            self.start(self.gather_heads_to(member));
        }
    }

    /// Ring under PipeFusion: only the keys of this pass's rows go to everybody. Meanwhile the
    /// queries meet the rows that stay as they are. Returns the keys that are left.
    fn gather_fresh(&mut self) -> Keys {
        self.start(self.send_fresh());
        let kept = self.key_tokens(Keys::Kept) > 0;
        if kept {
            self.shape.peers_then_self().for_each(|member| self.attend_for(member, Keys::Kept));
        }
        self.wait(self.receive_fresh());
        if kept { Keys::Fresh } else { Keys::All }
    }

    /// Ring attention: in each round but the last the present keys go on to the next Ulysses group
    /// while the queries meet them. Returns the keys of the last round.
    fn pass_around(&mut self, ring: usize) -> Keys {
        for round in 0..ring - 1 {
            let present = Keys::Group(self.shape.group_of_round(round));
            self.start(self.pass_on(round));
            self.shape.peers_then_self().for_each(|member| self.attend_for(member, present));
            self.wait(self.take_over(round));
        }
        Keys::Group(self.shape.group_of_round(ring - 1))
    }

    /// The rest of the block.
    fn finish(&mut self) {
        self.wait(self.gather_heads());
        if self.shape.own_tokens() > 0 {
            self.list.push(Phase::ProjectOut(self.block));
        }
    }

    fn attend_for(&mut self, member: usize, keys: Keys) {
        let (query_tokens, key_tokens) = (self.shape.tokens_of(member), self.key_tokens(keys));
        let (block, heads) = (self.block, self.own_heads());
        if query_tokens > 0 && key_tokens > 0 {
            let attend = Attend { block, member, keys, query_tokens, key_tokens, heads };
            self.list.push(Phase::Attend(attend));
        }
    }

    fn key_tokens(&self, keys: Keys) -> usize {
        let shape = self.shape;
        match (keys, shape.cached_tokens) {
            (Keys::Group(group), _) => shape.group_tokens(group),
            (Keys::All, None) => shape.tokens(),
            (Keys::All, Some(all)) => all,
            (Keys::Fresh, _) => shape.tokens(),
            (Keys::Kept, all) => match shape.fresh_tokens() {
                Some(fresh) => all.unwrap_or(0).saturating_sub(fresh.len()),
                None => 0,
            },
        }
    }

    fn own_heads(&self) -> usize {
        self.shape.heads_of(self.shape.member, self.heads).len()
    }

    fn start(&mut self, transfer: Transfer) {
        if !transfer.pieces.is_empty() {
            self.list.push(Phase::Start(transfer));
        }
    }

    fn wait(&mut self, transfer: Transfer) {
        if !transfer.pieces.is_empty() {
            self.list.push(Phase::Wait(transfer));
        }
    }
}

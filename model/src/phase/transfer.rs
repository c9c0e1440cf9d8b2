//! What crosses between the members of a sequence group, with shapes.
//!
//! Owns the shapes on the wire and who gets which piece. Queries, keys and values travel together,
//! head by head: `[B, n, heads, 3, head_dim]`, keys and values alone `[B, n, heads, 2, head_dim]`.

use super::BlockPhases;
use crate::exchange::{ExchangeId, ExchangeKind};

/// One side of a transfer: pieces that leave for other members, or come from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Which exchange.
    pub id: ExchangeId,
    /// The other member and the shape of the piece; f32.
    pub pieces: Vec<(usize, Vec<usize>)>,
}

impl BlockPhases<'_> {
    /// Ulysses' first all-to-all, the part for one member: q, k and v of its heads.
    pub(super) fn scatter_heads_to(&self, member: usize) -> Transfer {
        let piece = self.qkv_piece(self.shape.member, member);
        self.transfer(ExchangeKind::UlyssesQkv, 0, [(member, piece)])
    }

    /// What comes in Ulysses' first all-to-all: q, k and v of our heads from every other member.
    pub(super) fn scatter_heads(&self) -> Transfer {
        let members = self.shape.members_of(self.shape.group());
        let pieces = members.map(|member| (member, self.qkv_piece(member, self.shape.member)));
        self.transfer(ExchangeKind::UlyssesQkv, 0, pieces)
    }

    fn qkv_piece(&self, from: usize, to: usize) -> Vec<usize> {
        let (tokens, heads) = (self.shape.tokens_of(from), self.shape.heads_of(to, self.heads));
        vec![self.shape.batch, tokens, heads.len(), 3, self.head_dim]
    }

    /// Ulysses' second all-to-all, the part for one member: attention output of its tokens.
    pub(super) fn gather_heads_to(&self, member: usize) -> Transfer {
        let piece = self.attended_piece(self.shape.member, member);
        self.transfer(ExchangeKind::UlyssesOut, 0, [(member, piece)])
    }

    /// What comes in Ulysses' second all-to-all: our tokens' output of every other member's heads.
    pub(super) fn gather_heads(&self) -> Transfer {
        let members = self.shape.members_of(self.shape.group());
        let pieces = members.map(|member| (member, self.attended_piece(member, self.shape.member)));
        self.transfer(ExchangeKind::UlyssesOut, 0, pieces)
    }

    fn attended_piece(&self, from: usize, to: usize) -> Vec<usize> {
        let (tokens, heads) = (self.shape.tokens_of(to), self.shape.heads_of(from, self.heads));
        vec![self.shape.batch, tokens, heads.len(), self.head_dim]
    }

    /// One ring round: the keys and values we hold to the next Ulysses group.
    pub(super) fn pass_on(&self, round: usize) -> Transfer {
        let (shape, ring) = (self.shape, self.shape.ring());
        let next = shape.in_group((shape.group() + 1) % ring);
        let piece = self.kv_piece(shape.group_of_round(round));
        self.transfer(ExchangeKind::RingKv, round, [(next, piece)])
    }

    /// One ring round: the keys and values of the next round from the Ulysses group before.
    pub(super) fn take_over(&self, round: usize) -> Transfer {
        let (shape, ring) = (self.shape, self.shape.ring());
        let before = shape.in_group((shape.group() + ring - 1) % ring);
        let piece = self.kv_piece(shape.group_of_round(round + 1));
        self.transfer(ExchangeKind::RingKv, round, [(before, piece)])
    }

    /// The fresh keys and values of our Ulysses group to the whole ring.
    pub(super) fn send_fresh(&self) -> Transfer {
        let piece = self.kv_piece(self.shape.group());
        let pieces = self.shape.ring_peers().map(|member| (member, piece.clone()));
        self.transfer(ExchangeKind::RingFresh, 0, pieces)
    }

    /// The fresh keys and values of all other Ulysses groups.
    pub(super) fn receive_fresh(&self) -> Transfer {
        let group = |member: usize| member / self.shape.ulysses.max(1);
        let pieces = self.shape.ring_peers().map(|member| (member, self.kv_piece(group(member))));
        self.transfer(ExchangeKind::RingFresh, 0, pieces)
    }

    fn kv_piece(&self, group: usize) -> Vec<usize> {
        let heads = self.shape.heads_of(self.shape.member, self.heads).len();
        vec![self.shape.batch, self.shape.group_tokens(group), heads, 2, self.head_dim]
    }

    /// Leaves out this rank itself and pieces without elements.
    fn transfer(
        &self,
        kind: ExchangeKind,
        round: usize,
        pieces: impl IntoIterator<Item = (usize, Vec<usize>)>,
    ) -> Transfer {
        let other = |(member, shape): &(usize, Vec<usize>)| {
            *member != self.shape.member && shape.iter().all(|&dim| dim > 0)
        };
        let id = ExchangeId { block: self.block, kind, round };
        Transfer { id, pieces: pieces.into_iter().filter(other).collect() }
    }
}

//! The shape of one forward pass: whose rows, whose heads, which keys are kept.
//!
//! Owns the arithmetic of a sequence group. Its members stand in rank order: `ulysses` consecutive
//! ones form a Ulysses group, and members at the same place of each Ulysses group form a ring.

use std::ops::Range;

use crate::rows::{RowSet, share};

/// One forward pass of one sequence rank over some rows and some blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardShape {
    /// Batch rows (guidance branches held by this rank).
    pub batch: usize,
    /// Blocks to run; starts with the patch embedding when it holds block 0 and ends with the
    /// final projection when it holds the last.
    pub blocks: Range<usize>,
    /// Rows of each member of the sequence group, in member order; their number is `ulysses` times
    /// the ring degree.
    pub rows: Vec<RowSet>,
    /// Ulysses degree; divides the number of members.
    pub ulysses: usize,
    /// Which member this rank is.
    pub member: usize,
    /// Tokens in one token row.
    pub tokens_per_row: usize,
    /// Tokens of the whole image, when keys and values of earlier passes are kept (PipeFusion).
    pub cached_tokens: Option<usize>,
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

    /// Tokens of all members.
    pub fn tokens(&self) -> usize {
        (0..self.members()).map(|index| self.tokens_of(index)).sum()
    }

    /// Number of sequence ranks.
    pub fn members(&self) -> usize {
        self.rows.len()
    }

    /// Ring degree: number of Ulysses groups.
    pub fn ring(&self) -> usize {
        self.members() / self.ulysses.max(1)
    }

    /// The Ulysses group this rank is in.
    pub fn group(&self) -> usize {
        self.member / self.ulysses.max(1)
    }

    /// Members of Ulysses group `group`.
    pub fn members_of(&self, group: usize) -> Range<usize> {
        group * self.ulysses..(group + 1) * self.ulysses
    }

    /// Tokens of Ulysses group `group`.
    pub fn group_tokens(&self, group: usize) -> usize {
        self.members_of(group).map(|index| self.tokens_of(index)).sum()
    }

    /// Heads that member `index` attends with, of `heads`.
    pub fn heads_of(&self, index: usize, heads: usize) -> Range<usize> {
        let ulysses = self.ulysses.max(1);
        share(heads, index % ulysses, ulysses)
    }

    /// This rank's Ulysses group, each member starting with the one after itself, so that not
    /// everybody sends to the same one first; this rank comes last.
    pub fn peers_then_self(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, ulysses, member) = (self.group() * self.ulysses, self.ulysses, self.member);
        (1..=ulysses).map(move |ahead| first + (member - first + ahead) % ulysses)
    }

    /// The members that hold the same heads as this rank, itself left out, from the next on.
    pub fn ring_peers(&self) -> impl Iterator<Item = usize> + use<> {
        let (ring, group, shape) = (self.ring(), self.group(), self.clone());
        (1..ring).map(move |ahead| shape.in_group((group + ahead) % ring))
    }

    /// The member at this rank's place in Ulysses group `group`.
    pub fn in_group(&self, group: usize) -> usize {
        group * self.ulysses + self.member % self.ulysses.max(1)
    }

    /// The Ulysses group whose keys this rank holds in ring round `round`: its own, then those of
    /// the group before, and so on.
    pub fn group_of_round(&self, round: usize) -> usize {
        (self.group() + self.ring() - round % self.ring()) % self.ring()
    }

    /// The tokens of this pass in raster order, when they are one range.
    pub fn fresh_tokens(&self) -> Option<Range<usize>> {
        let ranges = || self.rows.iter().flat_map(RowSet::ranges);
        let start = ranges().map(|range| range.start).min()?;
        let end = ranges().map(|range| range.end).max()?;
        let rows: usize = ranges().map(ExactSizeIterator::len).sum();
        let scale = self.tokens_per_row;
        (rows == end - start).then_some(start * scale..end * scale)
    }
}

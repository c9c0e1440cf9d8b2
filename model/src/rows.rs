//! Which rows of the latent a piece of work covers: strips, shares of strips and row sets.
//!
//! Owns the arithmetic that deals rows to patches and ranks. A *row* here is always a token row
//! (one patch row of the transformer, `patch_size` latent rows), counted from the top of the
//! image. Knows nothing of ranks' addresses or of time.
//!
//! Invariants: strips partition the rows; the shares of one strip partition that strip; ranges
//! inside a [`RowSet`] are ascending and disjoint.

use std::ops::Range;

/// The axis along which PipeFusion cuts the latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PatchAxis {
    /// Full-width strips of latent rows (images).
    Height,
    /// Runs of latent frames (video).
    Frames,
}

/// One PipeFusion patch: `len` token rows (or frames) starting at `start` along `axis`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PatchRange {
    /// What is cut.
    pub axis: PatchAxis,
    /// First token row.
    pub start: usize,
    /// Number of token rows.
    pub len: usize,
}

impl PatchRange {
    /// The rows as a half-open range.
    pub fn rows(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// Cuts `rows` token rows into at most `patches` strips of equal height; the last may be shorter.
///
/// Strip height is `ceil(rows / patches)`, which can leave fewer strips than asked for (5 rows in
/// 4 strips gives 2+2+1). Returns no strip for no rows.
pub fn strips(rows: usize, patches: usize) -> Vec<PatchRange> {
    let height = rows.div_ceil(patches.max(1)).max(1);
    (0..rows)
        .step_by(height)
        .map(|start| PatchRange { axis: PatchAxis::Height, start, len: height.min(rows - start) })
        .collect()
}

/// The share of `total` items that member `index` of `members` owns:
/// `floor(i*n/S)..floor((i+1)*n/S)`.
///
/// Deals rows to sequence ranks and heads to Ulysses ranks; a share can be empty.
pub fn share(total: usize, index: usize, members: usize) -> Range<usize> {
    index * total / members..(index + 1) * total / members
}

/// An ascending set of token rows, as disjoint ranges in raster order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RowSet(Vec<Range<usize>>);

impl RowSet {
    /// The rows of `strips` that sequence rank `index` of `members` owns.
    pub fn of_rank(strips: &[PatchRange], index: usize, members: usize) -> Self {
        let mut set = Self::default();
        for strip in strips {
            let own = share(strip.len, index, members);
            set.push(strip.start + own.start..strip.start + own.end);
        }
        set
    }

    /// One range of rows.
    pub fn range(rows: Range<usize>) -> Self {
        let mut set = Self::default();
        set.push(rows);
        set
    }

    /// All rows `0..rows`.
    pub fn all(rows: usize) -> Self {
        Self::range(0..rows)
    }

    /// Appends a range that lies after every range already held; merges when it continues the last.
    fn push(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        match self.0.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.0.push(range),
        }
    }

    /// The ranges, ascending and disjoint.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.0
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.0.iter().map(ExactSizeIterator::len).sum()
    }

    /// The same ranges in tokens, `tokens_per_row` to a row.
    pub fn token_ranges(&self, tokens_per_row: usize) -> Vec<Range<usize>> {
        let scale = |range: &Range<usize>| range.start * tokens_per_row..range.end * tokens_per_row;
        self.0.iter().map(scale).collect()
    }

    /// Whether no row is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where row `row` of the image sits among the rows of this set, if it is in it.
    pub fn position(&self, row: usize) -> Option<usize> {
        let mut before = 0;
        for range in &self.0 {
            if range.contains(&row) {
                return Some(before + row - range.start);
            }
            before += range.len();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uneven_rows_make_fewer_strips() {
        let heights = |rows, patches| -> Vec<usize> {
            strips(rows, patches).iter().map(|strip| strip.len).collect()
        };
        assert_eq!(heights(8, 4), [2, 2, 2, 2]);
        assert_eq!(heights(5, 4), [2, 2, 1]);
        assert_eq!(heights(0, 4), [0usize; 0]);
        assert_eq!(heights(3, 8), [1, 1, 1]);
    }

    #[test]
    fn shares_of_strips_cover_every_row_once() {
        for (rows, patches, members) in [(8, 4, 2), (7, 3, 4), (16, 1, 3), (5, 4, 4)] {
            let strips = strips(rows, patches);
            let mut owners = vec![0; rows];
            for index in 0..members {
                let set = RowSet::of_rank(&strips, index, members);
                set.ranges().iter().cloned().flatten().for_each(|row| owners[row] += 1);
            }
            assert!(owners.iter().all(|&count| count == 1), "{rows} {patches} {members}");
        }
    }

    #[test]
    fn position_counts_rows_of_the_set() {
        let set = RowSet::of_rank(&strips(8, 2), 1, 2);
        assert_eq!(set.ranges(), [2..4, 6..8]);
        assert_eq!((set.position(6), set.position(5), set.len()), (Some(2), None, 4));
    }
}

//! Which blocks each pipeline stage holds.
//!
//! Owns the rule that deals blocks to stages so that the slowest stage is as fast as can be, given
//! what blocks cost and how fast stages are. Pure. Invariant: stages hold contiguous ranges, in
//! order, of at least one block each, and all blocks together.

use std::ops::Range;

use super::PlanError;

/// Where stages begin and end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    ends: Vec<usize>,
}

impl Layout {
    /// Shares that differ by at most one block.
    pub fn even(blocks: usize, stages: usize) -> Self {
        let share = |stage| ditmesh_model::rows::share(blocks, stage, stages).end;
        Self { ends: (0..stages).map(share).collect() }
    }

    /// One past the last block of each stage, as a peer sent it.
    ///
    /// # Errors
    /// When they are not stages of a model of `blocks` blocks.
    pub fn from_ends(ends: &[u32], blocks: usize, stages: usize) -> Result<Self, PlanError> {
        let ends: Vec<usize> = ends.iter().map(|&end| end as usize).collect();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let ascend = starts.zip(&ends).all(|(start, &end)| start < end);
        if ends.len() == stages && ascend && ends.last() == Some(&blocks) {
            return Ok(Self { ends });
        }
        Err(PlanError::Value(format!(
            "stages that end at blocks {ends:?} are no {stages} stages of a model of {blocks} blocks"
        )))
    }

    /// Deals blocks that cost `blocks[i]` to stages that take `slowness[s]` times as long, the
    /// first and the last of which have `edges` to do beside; the slowest stage is as fast as can
    /// be, and among layouts alike in that the stages are as equal as can be. Even shares stay when
    /// nothing is faster.
    pub fn balanced(blocks: &[f64], slowness: &[f64], edges: (f64, f64)) -> Self {
        let (count, stages) = (blocks.len(), slowness.len());
        let even = Self::even(count, stages);
        if stages < 2 || count <= stages {
            return even;
        }
        let sums: Vec<f64> = std::iter::once(0.0)
            .chain(blocks.iter().scan(0.0, |sum, cost| {
                *sum += cost;
                Some(*sum)
            }))
            .collect();
        let cost = Costs { sums: &sums, slowness, edges };
        let best = cost.partition();
        // Worth leaving the even shares for only when it gains something.
        if cost.slowest(&best) < cost.slowest(&even.ends) * (1.0 - 1e-9) {
            Self { ends: best }
        } else {
            even
        }
    }

    /// Number of stages.
    pub fn stages(&self) -> usize {
        self.ends.len()
    }

    /// The blocks of a stage; none when there is no such stage.
    pub fn blocks(&self, stage: usize) -> Range<usize> {
        let start = stage.checked_sub(1).and_then(|before| self.ends.get(before)).copied();
        match self.ends.get(stage) {
            Some(&end) => start.unwrap_or(0)..end,
            None => 0..0,
        }
    }

    /// One past the last block of each stage.
    pub fn ends(&self) -> Vec<u32> {
        self.ends.iter().map(|&end| end as u32).collect()
    }
}

struct Costs<'a> {
    sums: &'a [f64],
    slowness: &'a [f64],
    edges: (f64, f64),
}

impl Costs<'_> {
    fn stage(&self, stage: usize, blocks: Range<usize>) -> f64 {
        let mut work = self.sums[blocks.end] - self.sums[blocks.start];
        work += if stage == 0 { self.edges.0 } else { 0.0 };
        work += if stage + 1 == self.slowness.len() { self.edges.1 } else { 0.0 };
        work * self.slowness[stage]
    }

    fn slowest(&self, ends: &[usize]) -> f64 {
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let stages = starts.zip(ends).enumerate();
        stages.map(|(stage, (start, &end))| self.stage(stage, start..end)).fold(0.0, f64::max)
    }

    /// Dynamic programming over (stage, blocks so far): least slowest stage, then least squares.
    fn partition(&self) -> Vec<usize> {
        let (count, stages) = (self.sums.len() - 1, self.slowness.len());
        let worst = (f64::INFINITY, f64::INFINITY);
        let mut best = vec![worst; count + 1];
        best[0] = (0.0, 0.0);
        let mut cuts = vec![vec![0; count + 1]; stages];
        for (stage, cut) in cuts.iter_mut().enumerate() {
            let mut next = vec![worst; count + 1];
            // Every later stage needs a block too.
            for end in stage + 1..=count - (stages - 1 - stage) {
                let starts = best.iter().enumerate().take(end).skip(stage);
                for (start, &(slowest, squares)) in starts {
                    let own = self.stage(stage, start..end);
                    let found = (slowest.max(own), squares + own * own);
                    if found < next[end] {
                        next[end] = found;
                        cut[end] = start;
                    }
                }
            }
            best = next;
        }
        let mut ends = vec![count; stages];
        for stage in (1..stages).rev() {
            ends[stage - 1] = cuts[stage][ends[stage]];
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn equal_devices_get_equal_shares() {
        let layout = Layout::balanced(&[1.0; 28], &[1.0; 4], (0.0, 0.0));
        assert_eq!(layout, Layout::even(28, 4));
        assert_eq!(layout.blocks(1), 7..14);
        assert_eq!(layout.blocks(4), 0..0);
    }

    #[test]
    fn a_slow_device_gets_fewer_blocks() {
        let layout = Layout::balanced(&[1.0; 12], &[1.0, 3.0, 1.0], (0.0, 0.0));
        // A second block on the slow device would take as long as six on a fast one: no gain.
        assert_eq!(layout.ends(), [5, 6, 12]);
    }

    #[test]
    fn what_the_edges_do_is_counted() {
        let layout = Layout::balanced(&[1.0; 12], &[1.0; 3], (0.0, 3.0));
        assert_eq!(layout.ends(), [5, 10, 12]);
        let cheap_end = [vec![2.0; 4], vec![1.0; 8]].concat();
        assert_eq!(Layout::balanced(&cheap_end, &[1.0, 1.0], (0.0, 0.0)).ends(), [4, 12]);
    }

    #[test]
    fn ends_from_a_peer_are_checked() {
        let ends = Layout::balanced(&[1.0; 12], &[1.0, 3.0, 1.0], (0.0, 0.0)).ends();
        assert_eq!(Layout::from_ends(&ends, 12, 3).unwrap().ends(), ends);
        for bad in [&[5, 7][..], &[5, 5, 12], &[7, 5, 12], &[4, 8, 13], &[]] {
            assert!(Layout::from_ends(bad, 12, 3).is_err(), "{bad:?}");
        }
    }
}

//! How stale PipeFusion's keys and values were: one figure per step from what the ranks report.
//!
//! Owns the mean. Pure.

use crate::request::RankReport;

/// Relative change of keys and values per step over all blocks, branches and heads: the mean of the
/// ranks' figures, each weighted with its blocks. Empty when no rank measured.
pub fn mean_kv_change(ranks: &[RankReport]) -> Vec<Option<f64>> {
    let steps = ranks.iter().map(|rank| rank.kv_change.len()).max().unwrap_or(0);
    (0..steps).map(|step| mean(ranks, step)).collect()
}

fn mean(ranks: &[RankReport], step: usize) -> Option<f64> {
    let (mut sum, mut weights) = (0.0, 0.0);
    for rank in ranks {
        if let Some(change) = rank.kv_change.get(step).copied().flatten() {
            let blocks = f64::from(rank.blocks.1.saturating_sub(rank.blocks.0));
            sum += change * blocks;
            weights += blocks;
        }
    }
    (weights > 0.0).then(|| sum / weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_as_many_times_as_they_have_blocks() {
        let rank = |blocks, kv_change: &[Option<f64>]| RankReport {
            blocks,
            kv_change: kv_change.to_vec(),
            ..RankReport::default()
        };
        let ranks = [
            rank((0, 1), &[None, Some(0.4), None]),
            rank((1, 4), &[None, Some(0.8), Some(0.5)]),
            rank((4, 5), &[]),
        ];
        let mean = mean_kv_change(&ranks);
        assert_eq!((mean[0], mean[2]), (None, Some(0.5)));
        assert!((mean[1].unwrap_or_default() - 0.7).abs() < 1e-12);
        assert!(mean_kv_change(&[]).is_empty());
    }
}

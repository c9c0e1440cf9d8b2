//! The sequence ranks (Ulysses and ring) of one pipeline stage.

use super::group::{Group, Level};
use super::{RankFormed, RankProxy, Seat};

/// Supervises one [`RankProxy`] per sequence rank.
pub(crate) type SpGroup = Group<SpLevel>;

/// One part per rank; all must hold the same blocks.
pub(crate) struct SpLevel;

impl Level for SpLevel {
    type Part = RankProxy;

    fn split(seats: Vec<Seat>) -> Vec<Vec<Seat>> {
        seats.into_iter().map(|seat| vec![seat]).collect()
    }

    fn check(parts: &[Vec<RankFormed>], _blocks: u32) -> Result<(), String> {
        let ranks: Vec<&RankFormed> = parts.iter().flatten().collect();
        for pair in ranks.windows(2) {
            if let [a, b] = pair
                && a.blocks != b.blocks
            {
                return Err(format!(
                    "ranks {} and {} share a stage but hold blocks {:?} and {:?}",
                    a.rank, b.rank, a.blocks, b.blocks
                ));
            }
        }
        Ok(())
    }
}

//! The pipeline stages of one guidance branch.

use super::group::{Group, Level};
use super::{RankFormed, Seat, SpGroup, split_by};

/// Supervises one [`SpGroup`] per stage.
pub(crate) type PipefusionGroup = Group<PipefusionLevel>;

/// Splits by stage; stages must hold all blocks, in order and without gaps.
pub(crate) struct PipefusionLevel;

impl Level for PipefusionLevel {
    type Part = SpGroup;

    fn split(seats: Vec<Seat>) -> Vec<Vec<Seat>> {
        split_by(seats, |seat| seat.stage)
    }

    fn check(parts: &[Vec<RankFormed>], blocks: u32) -> Result<(), String> {
        let mut next = 0;
        for (stage, ranks) in parts.iter().enumerate() {
            let Some(first) = ranks.first() else { continue };
            if first.blocks.start != next {
                return Err(format!(
                    "stage {stage} starts at block {}, the stages before it end at {next}",
                    first.blocks.start
                ));
            }
            next = first.blocks.end;
        }
        if next != blocks {
            return Err(format!("the stages hold {next} blocks, the model has {blocks}"));
        }
        Ok(())
    }
}

//! The guidance branches of one replica: whole copies of the rest of the mesh.

use super::group::{Group, Level};
use super::{PipefusionGroup, RankFormed, Seat, split_by};

/// Supervises one [`PipefusionGroup`] per guidance branch.
pub(crate) type CfgGroup = Group<CfgLevel>;

/// Splits by branch; branches must hold the same blocks.
pub(crate) struct CfgLevel;

impl Level for CfgLevel {
    type Part = PipefusionGroup;

    fn split(seats: Vec<Seat>) -> Vec<Vec<Seat>> {
        split_by(seats, |seat| seat.cfg)
    }

    fn check(parts: &[Vec<RankFormed>], _blocks: u32) -> Result<(), String> {
        for pair in parts.windows(2) {
            let [one, other] = pair else { continue };
            for (a, b) in one.iter().zip(other) {
                if a.blocks != b.blocks {
                    return Err(format!(
                        "rank {} holds blocks {:?}, its partner in the other branch, rank {}, \
                         holds {:?}",
                        a.rank, a.blocks, b.rank, b.blocks
                    ));
                }
            }
        }
        Ok(())
    }
}

//! The device mesh: which rank sits where along the axes of parallelism.
//!
//! Owns the rank order. Sequence ranks are fastest and data replicas slowest, so that the chatty
//! axes stay inside a node while stages and guidance branches, which cross once per patch or step,
//! take the Ethernet.

use crate::request::Degrees;

/// Position of a rank along each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Coordinates {
    /// Data replica.
    pub data: usize,
    /// Guidance branch (0 unconditional, 1 conditional) under CFG parallelism, else 0.
    pub cfg: usize,
    /// Pipeline stage.
    pub stage: usize,
    /// Sequence rank.
    pub sp: usize,
}

/// The mesh of all ranks: `rank = sp + S*(stage + N*(cfg + C*data))`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMesh {
    degrees: Degrees,
}

impl DeviceMesh {
    /// A mesh of `degrees`.
    pub fn new(degrees: Degrees) -> Self {
        Self { degrees }
    }

    /// Its degrees.
    pub fn degrees(&self) -> Degrees {
        self.degrees
    }

    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.degrees.world_size()
    }

    /// Number of pipeline stages.
    pub fn stages(&self) -> usize {
        self.degrees.pipefusion_degree as usize
    }

    /// Number of sequence ranks.
    pub fn sequence(&self) -> usize {
        self.degrees.sequence_degree()
    }

    /// Number of guidance branches run apart.
    pub fn branches(&self) -> usize {
        self.degrees.cfg_degree as usize
    }

    /// The rank at a position.
    pub fn rank(&self, at: Coordinates) -> usize {
        let branch = at.cfg + self.branches() * at.data;
        at.sp + self.sequence() * (at.stage + self.stages() * branch)
    }

    /// The position of a rank.
    pub fn coordinates(&self, rank: usize) -> Coordinates {
        let (sp, rest) = (rank % self.sequence(), rank / self.sequence());
        let (stage, rest) = (rest % self.stages(), rest / self.stages());
        let (cfg, data) = (rest % self.branches(), rest / self.branches());
        Coordinates { data, cfg, stage, sp }
    }

    /// The ranks of one sequence group in member order.
    pub fn sequence_group(&self, at: Coordinates) -> Vec<usize> {
        (0..self.sequence()).map(|sp| self.rank(Coordinates { sp, ..at })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_coordinates_are_inverse() {
        let degrees = Degrees {
            cfg_degree: 2,
            pipefusion_degree: 3,
            ulysses_degree: 2,
            ring_degree: 2,
            data_degree: 2,
        };
        let mesh = DeviceMesh::new(degrees);
        for rank in 0..mesh.world_size() {
            assert_eq!(mesh.rank(mesh.coordinates(rank)), rank);
        }
        assert_eq!(mesh.world_size(), 48);
        assert_eq!(mesh.coordinates(5), Coordinates { data: 0, cfg: 0, stage: 1, sp: 1 });
        assert_eq!(mesh.sequence_group(mesh.coordinates(5)), [4, 5, 6, 7]);
    }
}

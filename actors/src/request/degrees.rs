//! How a run is split over devices.
//!
//! Owns [`Degrees`]; what they mean for ranks is in [`crate::plan::mesh`].

use serde::{Deserialize, Serialize};

/// The degrees of each parallel method; their product is the number of ranks.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct Degrees {
    /// Copies of the mesh that run the two guidance branches, 1 or 2.
    pub cfg_degree: u32,
    /// Pipeline stages.
    pub pipefusion_degree: u32,
    /// Ulysses sequence ranks.
    pub ulysses_degree: u32,
    /// Ring sequence ranks.
    pub ring_degree: u32,
    /// Replicas with requests of their own.
    pub data_degree: u32,
}

impl Default for Degrees {
    fn default() -> Self {
        Self {
            cfg_degree: 1,
            pipefusion_degree: 1,
            ulysses_degree: 1,
            ring_degree: 1,
            data_degree: 1,
        }
    }
}

impl Degrees {
    /// Number of ranks: the product of all degrees.
    pub fn world_size(&self) -> usize {
        [
            self.cfg_degree,
            self.pipefusion_degree,
            self.ulysses_degree,
            self.ring_degree,
            self.data_degree,
        ]
        .iter()
        .map(|&degree| degree as usize)
        .product()
    }

    /// Of one data replica alone.
    pub fn alone(&self) -> Self {
        Self { data_degree: 1, ..*self }
    }

    /// Sequence degree `ulysses * ring`.
    pub fn sequence_degree(&self) -> usize {
        self.ulysses_degree as usize * self.ring_degree as usize
    }
}

impl std::fmt::Display for Degrees {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cfg {} x pipefusion {} x ulysses {} x ring {} x data {}",
            self.cfg_degree,
            self.pipefusion_degree,
            self.ulysses_degree,
            self.ring_degree,
            self.data_degree
        )
    }
}

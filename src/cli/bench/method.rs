//! The parallel methods on two ranks, as they are measured.
//!
//! Owns the degrees and the settings of each, and the share of the machine's ceiling it is to
//! reach.

use clap::ValueEnum;
use ditmesh::{Degrees, GenerateRequest};

/// Patches of PipeFusion.
const NUM_PIPELINE_PATCH: u32 = 4;
/// Synchronous steps of PipeFusion.
const SYNC_STEPS: u32 = 1;

/// A method on two ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Method {
    /// The branches of guidance apart
    Cfg2,
    /// Heads shared
    Ulysses2,
    /// Keys and values in turn
    Ring2,
    /// Two stages, four patches, one synchronous step
    Pipefusion2,
}

impl Method {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Cfg2, Self::Ulysses2, Self::Ring2, Self::Pipefusion2];

    /// Key in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cfg2 => "cfg2",
            Self::Ulysses2 => "ulysses2",
            Self::Ring2 => "ring2",
            Self::Pipefusion2 => "pipefusion2",
        }
    }

    /// The mesh.
    pub(crate) fn degrees(self) -> Degrees {
        let one = Degrees::default();
        match self {
            Self::Cfg2 => Degrees { cfg_degree: 2, ..one },
            Self::Ulysses2 => Degrees { ulysses_degree: 2, ..one },
            Self::Ring2 => Degrees { ring_degree: 2, ..one },
            Self::Pipefusion2 => Degrees { pipefusion_degree: 2, ..one },
        }
    }

    /// `request` as this method runs it.
    pub(crate) fn applied_to(self, request: &GenerateRequest) -> GenerateRequest {
        let degrees = Some(self.degrees());
        match self {
            Self::Pipefusion2 => GenerateRequest {
                degrees,
                num_pipeline_patch: Some(NUM_PIPELINE_PATCH),
                sync_steps: SYNC_STEPS,
                ..request.clone()
            },
            _ => GenerateRequest { degrees, ..request.clone() },
        }
    }

    /// Efficiency to reach, as a share of the ceiling; PipeFusion's is that of its asynchronous
    /// steps.
    pub(crate) fn target(self) -> f64 {
        match self {
            Self::Cfg2 | Self::Pipefusion2 => 0.97,
            Self::Ulysses2 | Self::Ring2 => 0.95,
        }
    }
}

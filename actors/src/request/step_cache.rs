//! The step cache as a request names it, and the decisions a run reports.
//!
//! Owns the values and their defaults. The rule that decides is
//! [`crate::parallel::step_cache::reuses`].

use serde::{Deserialize, Serialize};

/// Threshold of the command line, a relative change of the first block's residual.
pub const STEP_CACHE_THRESHOLD: f32 = 0.08;
/// Passes in a row that may be reused where nothing else is asked for.
pub const STEP_CACHE_REUSES_MAX: u32 = 3;

/// First-block cache (diffusers: `FirstBlockCacheConfig`; ParaAttention): where the residual of the
/// first block has hardly changed since the last computed step, the other blocks are not run and
/// the sum of their residuals of that step is added in their place.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct StepCache {
    /// Reuse below this relative L1 change of the first block's residual.
    pub threshold: f32,
    /// Passes over the same rows that may be reused in a row; the next one is computed.
    pub reuses_max: u32,
    /// Decisions of an earlier run to take in place of own ones; what is not named is computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Vec<StepDecision>>,
}

impl Default for StepCache {
    fn default() -> Self {
        Self { threshold: STEP_CACHE_THRESHOLD, reuses_max: STEP_CACHE_REUSES_MAX, replay: None }
    }
}

/// What was decided for the rows of one patch in one step.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct StepDecision {
    /// Denoising step, from 0.
    pub step: u32,
    /// Patch, 0 where there is one.
    pub patch: u32,
    /// Relative L1 change of the first block's residual since the pass over these rows that was
    /// computed last.
    pub change: f32,
    /// Whether the other blocks were not run.
    pub reuse: bool,
}

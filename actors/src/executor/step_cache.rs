//! A rank's part in the step cache of a run: its residuals, the pass under way, what was decided.
//!
//! Owns the bookkeeping. Where it sits in the program is [`crate::parallel::step_cache`]'s, which
//! also has the rule; what a residual is, the model's.

use std::ops::Range;

use candle_core::{Device, Tensor};
use ditmesh_model::change::Change;
use ditmesh_model::error::ModelError;
use ditmesh_model::exchange::Exchanger;
use ditmesh_model::forward::{ForwardInput, ForwardOutput, PartitionRun};
use ditmesh_model::phase::ForwardShape;
use ditmesh_model::step_cache::ResidualCache;

use crate::parallel::step_cache::{decides, reuses};
use crate::plan::Plan;
use crate::plan::mesh::Coordinates;
use crate::plan::program::Patch;
use crate::request::{StepCache, StepDecision};

/// A pass over some rows.
pub(super) struct Pass<'a> {
    pub(super) plan: &'a Plan,
    pub(super) step: usize,
    pub(super) patch: Patch,
    pub(super) shape: &'a ForwardShape,
    pub(super) timestep: f64,
}

/// State of one run.
pub(super) struct CacheRun {
    settings: StepCache,
    /// The first block's residual, on the first stage.
    first: Option<ResidualCache>,
    /// That of this rank's other blocks.
    rest: ResidualCache,
    /// Passes reused since one was computed, by strip.
    in_a_row: Vec<u32>,
    /// Sums of the pass that is measured.
    change: Change,
    /// The first block's residual in this pass.
    latest: Option<Tensor>,
    /// What was decided for this pass.
    reuse: bool,
    decisions: Vec<StepDecision>,
}

impl CacheRun {
    /// For a run that has a step cache.
    pub(super) fn new(plan: &Plan, at: Coordinates) -> Option<Self> {
        let tokens =
            |strip| plan.rows(at.sp, Patch::Strip(strip)).len() * plan.grid.tokens_per_row();
        let strips = plan.strips.len();
        let residuals = || ResidualCache::new((0..strips).map(tokens));
        Some(Self {
            settings: plan.run.step_cache.clone()?,
            first: (at.stage == 0).then(residuals),
            rest: residuals(),
            in_a_row: vec![0; strips],
            change: Change::default(),
            latest: None,
            reuse: false,
            decisions: Vec::new(),
        })
    }

    fn strips(&self, patch: Patch) -> Range<usize> {
        patch.strip().map_or(0..self.in_a_row.len(), |strip| strip..strip + 1)
    }

    /// Runs the blocks of `pass`, or puts their residual of an earlier step in their place.
    pub(super) fn forward(
        &mut self,
        partition: &mut PartitionRun,
        pass: &Pass<'_>,
        input: ForwardInput,
        exchanger: &mut dyn Exchanger,
    ) -> Result<ForwardOutput, ModelError> {
        let Pass { shape, timestep, .. } = *pass;
        if self.reuse {
            let residual = self.reused(pass)?;
            return partition.skip(shape, timestep, input, residual.as_ref(), exchanger);
        }
        let output = partition.forward(shape, timestep, input, exchanger)?;
        let residual = partition.take_residual();
        if shape.blocks.start == 0 {
            self.measure(pass, residual)?;
        } else {
            self.keep(pass.patch, residual)?;
        }
        Ok(output)
    }

    /// The first block has run: `residual` is its own, `None` without rows.
    fn measure(&mut self, pass: &Pass<'_>, residual: Option<Tensor>) -> Result<(), ModelError> {
        self.change = Change::default();
        if let (true, Some(new), Some(first)) =
            (decides(pass.plan, pass.step), &residual, &self.first)
            && let Some(old) = first.get(self.strips(pass.patch))?
        {
            self.change = Change::of_magnitudes(new, &old)?;
        }
        self.latest = residual;
        Ok(())
    }

    /// The residual to add in place of this rank's blocks; `None` without rows or blocks.
    fn reused(&mut self, pass: &Pass<'_>) -> Result<Option<Tensor>, ModelError> {
        let strips = self.strips(pass.patch);
        self.in_a_row.get_mut(strips.clone()).unwrap_or_default().iter_mut().for_each(|n| *n += 1);
        self.reuse = false;
        self.latest = None;
        if pass.shape.blocks.is_empty() { Ok(None) } else { self.rest.get(strips) }
    }

    /// The other blocks have run: `residual` is theirs, `None` without rows or blocks.
    fn keep(&mut self, patch: Patch, residual: Option<Tensor>) -> Result<(), ModelError> {
        let strips = self.strips(patch);
        self.in_a_row.get_mut(strips.clone()).unwrap_or_default().fill(0);
        if let (Some(first), Some(latest)) = (&mut self.first, self.latest.take()) {
            first.keep(strips.clone(), &latest)?;
        }
        residual.map_or(Ok(()), |residual| self.rest.keep(strips, &residual))
    }

    /// This rank's sums, as they travel.
    pub(super) fn change(&self) -> Result<Tensor, ModelError> {
        let sums = [self.change.difference as f32, self.change.reference as f32];
        Ok(Tensor::from_slice(&sums, 2, &Device::Cpu)?)
    }

    /// Adds the sums of another rank.
    pub(super) fn add_change(&mut self, sums: &Tensor) -> Result<(), ModelError> {
        if let [difference, reference] = sums.to_vec1::<f32>()?.as_slice() {
            let (difference, reference) = (f64::from(*difference), f64::from(*reference));
            self.change.add(Change { difference, reference });
        }
        Ok(())
    }

    /// Decides for the pass, by the sums of all ranks.
    pub(super) fn decide(&mut self, step: usize, patch: Patch) {
        let strip = patch.strip().unwrap_or(0);
        let in_a_row = self.in_a_row.get(strip).copied().unwrap_or(0);
        let change = self.change.ratio().min(f64::from(f32::MAX));
        self.reuse = reuses(&self.settings, step, strip, change, in_a_row);
        self.decisions.push(StepDecision {
            step: step as u32,
            patch: strip as u32,
            change: change as f32,
            reuse: self.reuse,
        });
    }

    /// What the deciding rank said.
    pub(super) fn told(&mut self, reuse: bool) {
        self.reuse = reuse;
    }

    /// The decision of this pass.
    pub(super) fn is_reused(&self) -> bool {
        self.reuse
    }

    /// What this rank decided, in order; nothing on the others.
    pub(super) fn decisions(self) -> Vec<StepDecision> {
        self.decisions
    }
}

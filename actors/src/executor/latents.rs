//! The latent rows of one rank, strip by strip, with the solver's history of each strip.
//!
//! Owns `x_t`. Solvers are elementwise, so a history per strip equals diffusers' history of the
//! whole latent, and no step has to wait for the strips of another.

use std::sync::Arc;

use candle_core::Tensor;
use ditmesh_model::error::ModelError;
use ditmesh_model::forward::latent_rows;
use ditmesh_model::noise;
use ditmesh_model::rows::RowSet;
use ditmesh_model::scheduler::{Scheduler, SolverState};

use super::error::ExecuteError;
use crate::plan::Plan;
use crate::plan::program::Patch;

/// One strip's rows of this rank.
struct Strip {
    rows: RowSet,
    /// f32 `[n, C, F, rows*patch_size, W]`, a row per picture; absent until drawn or received.
    sample: Option<Tensor>,
    solver: SolverState,
}

/// All strips' rows of this rank.
pub(super) struct Latents {
    strips: Vec<Strip>,
    patch_size: usize,
    scheduler: Arc<dyn Scheduler>,
}

impl Latents {
    pub(super) fn new(plan: &Plan, sp: usize, scheduler: Arc<dyn Scheduler>) -> Self {
        let strip = |index| Strip {
            rows: plan.rows(sp, Patch::Strip(index)),
            sample: None,
            solver: scheduler.new_state(),
        };
        let strips = (0..plan.strips.len()).map(strip).collect();
        Self { strips, patch_size: plan.grid.patch_size, scheduler }
    }

    fn range(&self, patch: Patch) -> std::ops::Range<usize> {
        patch.strip().map_or(0..self.strips.len(), |index| index..index + 1)
    }

    fn of(&mut self, patch: Patch) -> impl Iterator<Item = &mut Strip> {
        let range = self.range(patch);
        self.strips.get_mut(range).unwrap_or_default().iter_mut().filter(|s| !s.rows.is_empty())
    }

    /// Draws the initial noise of all rows, each picture's from its seed.
    pub(super) fn draw(&mut self, plan: &Plan) -> Result<(), ModelError> {
        let sigma = self.scheduler.init_noise_sigma();
        for strip in self.of(Patch::All) {
            let seeds = plan.run.images.iter().map(|image| image.seed);
            let noise = seeds.map(|seed| noise::latents(seed, plan.grid, &strip.rows));
            let noise = Tensor::cat(&noise.collect::<Result<Vec<_>, _>>()?, 0)?;
            strip.sample = Some((noise * sigma)?);
        }
        Ok(())
    }

    /// Takes the rows out of a whole initial latent (`latents` of diffusers: scaled here).
    pub(super) fn take(&mut self, whole: &Tensor) -> Result<(), ModelError> {
        let (sigma, patch_size) = (self.scheduler.init_noise_sigma(), self.patch_size);
        for strip in self.of(Patch::All) {
            strip.sample = Some((latent_rows(whole, &strip.rows, patch_size)? * sigma)?);
        }
        Ok(())
    }

    /// What a checkpoint keeps of `patch`: its rows, then the solver's history of them, stacked as
    /// [`Plan::checkpoint_batch`] counts, f32 `[batch, C, F, rows*patch_size, W]`.
    pub(super) fn snapshot(&mut self, patch: Patch, batch: usize) -> Result<Tensor, ExecuteError> {
        let missing = ExecuteError::Order { op: "keeping latents", missing: "the noise" };
        let mut strips = Vec::new();
        for strip in self.of(patch) {
            let Some(sample) = &strip.sample else { return Err(missing) };
            let images = sample.dim(0)?;
            let history = strip.solver.tensors().iter().take(batch / images - 1);
            let held: Vec<&Tensor> = std::iter::once(sample).chain(history).collect();
            strips.push(Tensor::cat(&held, 0)?);
        }
        Ok(Tensor::cat(&strips, 3)?)
    }

    /// Takes the rows, and the solver's history of them, out of a whole checkpoint.
    pub(super) fn restore(&mut self, plan: &Plan, whole: &Tensor) -> Result<(), ModelError> {
        let (images, patch_size) = (plan.images(), self.patch_size);
        let Some(last) = plan.first_step().checked_sub(1) else { return Ok(()) };
        let held = plan.checkpoint_batch(last) / images;
        for strip in self.of(Patch::All) {
            let rows = latent_rows(whole, &strip.rows, patch_size)?;
            let part = |index: usize| rows.narrow(0, index * images, images)?.contiguous();
            strip.sample = Some(part(0)?);
            let history = (1..held).map(part).collect::<Result<Vec<_>, _>>()?;
            strip.solver = SolverState::after(last, history);
        }
        Ok(())
    }

    /// Overwrites the rows of `patch` with what another rank computed.
    pub(super) fn put(&mut self, patch: Patch, rows: &Tensor) -> Result<(), ModelError> {
        let (mut start, patch_size) = (0, self.patch_size);
        for strip in self.of(patch) {
            let height = strip.rows.len() * patch_size;
            strip.sample = Some(rows.narrow(3, start, height)?.contiguous()?);
            start += height;
        }
        Ok(())
    }

    /// The rows of `patch`, strip after strip.
    pub(super) fn get(&mut self, patch: Patch) -> Result<Tensor, ExecuteError> {
        let missing = ExecuteError::Order { op: "reading latents", missing: "the noise" };
        let parts: Option<Vec<Tensor>> = self.of(patch).map(|s| s.sample.clone()).collect();
        match parts.as_deref() {
            None | Some([]) => Err(missing),
            Some([one]) => Ok(one.clone()),
            Some(parts) => Ok(Tensor::cat(parts, 3)?),
        }
    }

    /// One scheduler step on the rows of `patch`, given their guided noise prediction.
    pub(super) fn denoise(
        &mut self,
        step: usize,
        patch: Patch,
        prediction: &Tensor,
    ) -> Result<(), ExecuteError> {
        let (mut start, patch_size) = (0, self.patch_size);
        let scheduler = Arc::clone(&self.scheduler);
        for strip in self.of(patch) {
            let height = strip.rows.len() * patch_size;
            let output = prediction.narrow(3, start, height)?.contiguous()?;
            start += height;
            let sample = strip
                .sample
                .as_ref()
                .ok_or(ExecuteError::Order { op: "denoising", missing: "the noise" })?;
            strip.sample = Some(scheduler.step(&mut strip.solver, step, &output, sample)?);
        }
        Ok(())
    }
}

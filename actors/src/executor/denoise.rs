//! One step of one patch: the forward pass, the exchange of branches, the solver.
//!
//! Owns no state beside the executor's.

use std::ops::Range;

use candle_core::{Device, Tensor};
use ditmesh_model::forward::{ForwardInput, ForwardOutput};
use ditmesh_model::guidance;
use ditmesh_model::phase::ForwardShape;
use ditmesh_model::transformer::Activation;

use super::Executor;
use super::error::ExecuteError;
use super::group::Group;
use super::step_cache::{CacheRun, Pass};
use crate::plan::message::Message;
use crate::plan::program::Patch;

impl Executor {
    /// The step cache of a run that has one.
    pub(super) fn step_cache(&mut self) -> Result<&mut CacheRun, ExecuteError> {
        let missing = ExecuteError::Order { op: "deciding", missing: "a step cache" };
        self.step_cache.as_mut().ok_or(missing)
    }

    pub(super) fn forward(
        &mut self,
        step: usize,
        patch: Patch,
        blocks: Range<usize>,
    ) -> Result<(), ExecuteError> {
        let shape = self.plan.forward_shape(self.at, patch, blocks);
        let input = self.forward_input(step, patch, &shape)?;
        let timestep = self.scheduler.timesteps().get(step).copied();
        let timestep =
            timestep.ok_or(ExecuteError::Order { op: "forward", missing: "its timestep" })?;
        let ranks = self.plan.mesh.sequence_group(self.at);
        let partition = self.partition.as_mut();
        let partition =
            partition.ok_or(ExecuteError::Order { op: "forward", missing: "the text" })?;
        self.staleness.begin(step, partition);
        let mut group = Group::new(&mut self.bag, ranks, step, patch.strip(), self.plan.run.wire);
        let output = match &mut self.step_cache {
            Some(cache) => {
                let pass = Pass { plan: &self.plan, step, patch, shape: &shape, timestep };
                cache.forward(partition, &pass, input, &mut group)
            }
            None => partition.forward(&shape, timestep, input, &mut group),
        };
        let output = match output {
            Ok(output) => output,
            Err(error) => return Err(group.error.take().unwrap_or(ExecuteError::Model(error))),
        };
        match output {
            ForwardOutput::Noise(noise) => {
                self.predictions = vec![noise.to_device(&Device::Cpu)?];
            }
            ForwardOutput::Activation(x) => self.activation = Some(x.image),
            ForwardOutput::Nothing => {}
        }
        Ok(())
    }

    fn forward_input(
        &mut self,
        step: usize,
        patch: Patch,
        shape: &ForwardShape,
    ) -> Result<ForwardInput, ExecuteError> {
        if shape.own_tokens() == 0 {
            return Ok(ForwardInput::Nothing);
        }
        if shape.blocks.start > 0 {
            let image = self.activation.take();
            let missing = ExecuteError::Order { op: "forward", missing: "hidden states" };
            let image = image.ok_or(missing)?;
            return Ok(ForwardInput::Activation(Activation { image, text: None }));
        }
        let x = self.scheduler.scale_model_input(&self.latents.get(patch)?, step)?;
        let branches: Vec<&Tensor> = vec![&x; self.plan.batch() / self.plan.images()];
        Ok(ForwardInput::Latents(Tensor::cat(&branches, 0)?.to_device(&self.device)?))
    }

    /// Swaps predicted noise with the other branch; the unconditional one comes first. Both go on
    /// with what travelled, so that their latents stay the same.
    pub(super) fn exchange(&mut self, peer: usize, message: &Message) -> Result<(), ExecuteError> {
        let own = self.predictions.pop();
        let missing = ExecuteError::Order { op: "exchange", missing: "the prediction" };
        let own = own.ok_or(missing)?;
        self.bag.send(peer, message, &own)?;
        let own = self.bag.as_received(&own, message)?;
        let other = self.bag.receive(peer, message, self.bag.deadline())?;
        self.predictions = if self.at.cfg == 0 { vec![own, other] } else { vec![other, own] };
        Ok(())
    }

    pub(super) fn denoise(&mut self, step: usize, patch: Patch) -> Result<(), ExecuteError> {
        let scale = f64::from(self.plan.run.guidance_scale);
        let predictions = std::mem::take(&mut self.predictions);
        let prediction = match (predictions.as_slice(), self.plan.branches()) {
            ([one], 1) => one.clone(),
            ([both], _) => {
                let images = self.plan.images();
                let (uncond, cond) = (both.narrow(0, 0, images)?, both.narrow(0, images, images)?);
                guidance::combine(&uncond, &cond, scale)?
            }
            ([uncond, cond], _) => guidance::combine(uncond, cond, scale)?,
            _ => return Err(ExecuteError::Order { op: "denoising", missing: "the prediction" }),
        };
        self.latents.denoise(step, patch, &prediction)
    }
}

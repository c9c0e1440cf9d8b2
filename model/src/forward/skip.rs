//! A forward pass whose blocks are not run: a residual of an earlier step stands in their place.
//!
//! Owns what is left of the walk. Invariant: every frame of the pass is sent and received all the
//! same, without payload; keys and values stay as they are.

use std::time::Instant;

use candle_core::Tensor;

use super::{ForwardInput, ForwardOutput, PartitionRun};
use crate::error::ModelError;
use crate::exchange::Exchanger;
use crate::phase::{ForwardShape, Phase, phases};

impl PartitionRun {
    /// The outcome of [`PartitionRun::forward`] with `residual`, f32 `[B, n, hidden]`, in place of
    /// what the blocks of `shape` would add to the hidden states; `None` adds nothing.
    ///
    /// # Errors
    /// When `input` are latents (block 0 embeds them and is always run), shapes disagree, an
    /// exchange fails or the run is aborted.
    pub fn skip(
        &mut self,
        shape: &ForwardShape,
        timestep: f64,
        input: ForwardInput,
        residual: Option<&Tensor>,
        exchanger: &mut dyn Exchanger,
    ) -> Result<ForwardOutput, ModelError> {
        let mut x = match input {
            ForwardInput::Activation(x) => Some(x),
            ForwardInput::Nothing => None,
            ForwardInput::Latents(_) => {
                return Err(ModelError::Invalid("patch embedding cannot be skipped".into()));
            }
        };
        if let (Some(x), Some(residual)) = (&mut x, residual) {
            x.image = (&x.image + residual)?;
        }
        let phases: Vec<Phase> = phases(shape, &self.spec).collect();
        // All that leaves leaves at once: a skipped pass waits for its peers once, not per block.
        for phase in &phases {
            if let Phase::Start(transfer) = phase {
                exchanger.start_reused(transfer)?;
            }
        }
        for phase in &phases {
            if let Phase::Wait(transfer) = phase {
                exchanger.wait_reused(transfer, Instant::now() + self.wait_limit)?;
            }
        }
        match x {
            None => Ok(ForwardOutput::Nothing),
            Some(x) if phases.last() == Some(&Phase::ProjectNoise) => {
                exchanger.proceed(&Phase::ProjectNoise)?;
                self.pass.set_timestep(timestep)?;
                let own = shape.rows.get(shape.member).cloned().unwrap_or_default();
                Ok(ForwardOutput::Noise(self.pass.project_noise(&x, &own)?))
            }
            Some(x) => Ok(ForwardOutput::Activation(x)),
        }
    }
}

//! Noise schedulers: from the model's output at a step to the latent of the next.
//!
//! Owns the trait, the solvers of the supported pipelines and how they are configured. A scheduler
//! is immutable; all history lives in a [`SolverState`], one per strip of rows. Every solver here
//! is elementwise, so strips stepped on their own equal the whole picture stepped at once: nobody
//! shifts a shared history, and PipeFusion needs no special case. Does not own guidance, nor
//! noise. Invariant: coefficients are rounded to f32 wherever numpy or torch round them, because
//! diffusers does and rounding at small timesteps is visible.

mod alphas;
mod ddim;
mod dpm_solver;
mod flow_match;
mod numpy;
mod state;

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::checkpoint::{CheckpointError, read_json};
use crate::error::ModelError;
pub use state::SolverState;

/// A noise scheduler whose timesteps are set.
pub trait Scheduler: Send + Sync {
    /// The timestep the model is given at each step, as diffusers' `scheduler.timesteps`.
    fn timesteps(&self) -> &[f64];

    /// Deviation that the initial noise is multiplied by; 1 unless a solver says otherwise.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// What the model is given in place of `sample` at `step`; same shape, f32. The sample itself
    /// unless a solver says otherwise.
    ///
    /// # Errors
    /// When the tensor backend fails.
    fn scale_model_input(&self, sample: &Tensor, step: usize) -> Result<Tensor, ModelError> {
        let _ = step;
        Ok(sample.clone())
    }

    /// An empty history.
    fn new_state(&self) -> SolverState {
        SolverState::default()
    }

    /// The sample after `step`, from the model's output (guidance applied, learned sigma dropped)
    /// and the sample before it; all f32 of one shape, any shape.
    ///
    /// # Errors
    /// When `step` is not the one after the last step of `state`, shapes differ, or the tensor
    /// backend fails.
    fn step(
        &self,
        state: &mut SolverState,
        step: usize,
        model_output: &Tensor,
        sample: &Tensor,
    ) -> Result<Tensor, ModelError>;
}

/// Loads the scheduler in the folder `dir` (`scheduler_config.json`) and sets its timesteps for
/// `num_inference_steps`. `mu` is the shift of the models that shift with resolution.
///
/// # Errors
/// When the configuration is invalid or asks for something unsupported (the error names key and
/// value), the number of steps is 0 or too large, or `mu` is missing.
pub fn load(
    dir: &Path,
    num_inference_steps: usize,
    mu: Option<f64>,
) -> Result<Arc<dyn Scheduler>, ModelError> {
    if num_inference_steps == 0 {
        return Err(ModelError::Invalid(
            "num_inference_steps is 0, expected at least 1".to_owned(),
        ));
    }
    let path = dir.join("scheduler_config.json");
    let json = read_json(&path)?;
    let class = json.get("_class_name").cloned().unwrap_or_default();
    Ok(match class.as_str() {
        Some("DPMSolverMultistepScheduler") => {
            Arc::new(dpm_solver::DpmSolverMultistep::load(dir, num_inference_steps, mu)?)
        }
        Some("DDIMScheduler") => Arc::new(ddim::Ddim::load(dir, num_inference_steps)?),
        Some("FlowMatchEulerDiscreteScheduler") => {
            Arc::new(flow_match::FlowMatchEuler::load(dir, num_inference_steps, mu)?)
        }
        _ => {
            return Err(CheckpointError::Config {
                path,
                key: "_class_name".to_owned(),
                expected:
                    "DPMSolverMultistepScheduler, DDIMScheduler or FlowMatchEulerDiscreteScheduler"
                        .to_owned(),
                found: class.to_string(),
            }
            .into());
        }
    })
}

/// How many earlier model outputs the scheduler in the folder `dir` keeps, at most.
///
/// # Errors
/// When the configuration cannot be read or asks for something unsupported.
pub fn history(dir: &Path) -> Result<usize, CheckpointError> {
    let json = read_json(&dir.join("scheduler_config.json"))?;
    match json.get("_class_name").and_then(|class| class.as_str()) {
        Some("DPMSolverMultistepScheduler") => dpm_solver::history(dir),
        _ => Ok(0),
    }
}

/// Both tensors as f32, after checking that they have one shape.
fn same_shape(model_output: &Tensor, sample: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
    if model_output.dims() != sample.dims() {
        return Err(ModelError::Invalid(format!(
            "model output has shape {:?}, sample has {:?}; expected the same",
            model_output.dims(),
            sample.dims()
        )));
    }
    Ok((model_output.to_dtype(DType::F32)?, sample.to_dtype(DType::F32)?))
}

/// `tensor * factor`, both f32.
fn times(tensor: &Tensor, factor: f32) -> Result<Tensor, candle_core::Error> {
    tensor.affine(f64::from(factor), 0.0)
}

/// `tensor / divisor`, both f32, as a division (not a product with the reciprocal).
fn divided(tensor: &Tensor, divisor: f32) -> Result<Tensor, candle_core::Error> {
    tensor.broadcast_div(&Tensor::new(divisor, tensor.device())?)
}

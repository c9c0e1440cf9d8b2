//! `DDIMScheduler` without added noise (Song et al., "Denoising diffusion implicit models", eta 0).

use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;

use super::alphas::Betas;
use super::numpy::{arange_down, linspace};
use super::{Scheduler, SolverState, divided, same_shape, times};
use crate::checkpoint::{CheckpointError, FloatValue, typed_config};
use crate::error::ModelError;

/// Prediction types the model may be trained for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Prediction {
    Epsilon,
    Sample,
    #[serde(rename = "v_prediction")]
    Velocity,
}

/// Where the timesteps lie (Lin et al. 2023, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Spacing {
    Leading,
    Trailing,
    Linspace,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct DdimConfig {
    num_train_timesteps: usize,
    beta_start: FloatValue,
    beta_end: FloatValue,
    beta_schedule: String,
    trained_betas: Option<Vec<f32>>,
    rescale_betas_zero_snr: bool,
    clip_sample: bool,
    clip_sample_range: f64,
    set_alpha_to_one: bool,
    steps_offset: usize,
    prediction_type: Prediction,
    timestep_spacing: Spacing,
    thresholding: bool,
    /// Used with `thresholding` only, which is refused.
    #[serde(rename = "dynamic_thresholding_ratio")]
    _dynamic_thresholding_ratio: f64,
    #[serde(rename = "sample_max_value")]
    _sample_max_value: f64,
}

impl Default for DdimConfig {
    fn default() -> Self {
        let betas = Betas::default();
        Self {
            num_train_timesteps: betas.num_train_timesteps,
            beta_start: betas.beta_start,
            beta_end: betas.beta_end,
            beta_schedule: betas.beta_schedule,
            trained_betas: None,
            rescale_betas_zero_snr: false,
            clip_sample: true,
            clip_sample_range: 1.0,
            set_alpha_to_one: true,
            steps_offset: 0,
            prediction_type: Prediction::Epsilon,
            timestep_spacing: Spacing::Leading,
            thresholding: false,
            _dynamic_thresholding_ratio: 0.995,
            _sample_max_value: 1.0,
        }
    }
}

/// The square roots that one step needs, f32 as diffusers has them.
#[derive(Clone, Copy, Debug)]
struct Coefficients {
    /// Of `alphas_cumprod[t]`.
    alpha: f32,
    /// Of one less that.
    beta: f32,
    /// The same two at the timestep after.
    alpha_next: f32,
    beta_next: f32,
}

/// DDIM with its timesteps set.
#[derive(Debug)]
pub(super) struct Ddim {
    prediction: Prediction,
    clip: Option<f32>,
    timesteps: Vec<f64>,
    coefficients: Vec<Coefficients>,
}

impl Ddim {
    /// Loads the configuration in `dir` and sets `steps` timesteps.
    pub(super) fn load(dir: &Path, steps: usize) -> Result<Self, ModelError> {
        let config: DdimConfig = typed_config(dir)?;
        let path = dir.join("scheduler_config.json");
        if config.thresholding {
            return Err(CheckpointError::Config {
                path,
                key: "thresholding".to_owned(),
                expected: "false".to_owned(),
                found: "true".to_owned(),
            }
            .into());
        }
        let alphas = config.betas().alphas_cumprod(&path)?;
        let train = config.num_train_timesteps;
        if steps > train {
            return Err(ModelError::Invalid(format!(
                "num_inference_steps is {steps}, expected at most the {train} \
                 steps the model was trained with"
            )));
        }
        let timesteps = config.timesteps(steps);
        let last_alpha = if config.set_alpha_to_one { 1.0 } else { alphas[0] };
        let stride = (train / steps) as i64;
        let coefficients = timesteps.iter().map(|&t| {
            let alpha = alphas.get(t as usize).copied().ok_or_else(|| {
                ModelError::Invalid(format!(
                    "steps_offset {} puts a timestep at {t}, expected \
                     below num_train_timesteps {train}",
                    config.steps_offset
                ))
            })?;
            let next = t - stride;
            let alpha_next = if next >= 0 { alphas[next as usize] } else { last_alpha };
            Ok(Coefficients {
                alpha: alpha.sqrt(),
                beta: (1.0 - alpha).sqrt(),
                alpha_next: alpha_next.sqrt(),
                beta_next: (1.0 - alpha_next).sqrt(),
            })
        });
        Ok(Self {
            prediction: config.prediction_type,
            clip: config.clip_sample.then_some(config.clip_sample_range as f32),
            coefficients: coefficients.collect::<Result<_, ModelError>>()?,
            timesteps: timesteps.iter().map(|&t| t as f64).collect(),
        })
    }
}

impl DdimConfig {
    fn betas(&self) -> Betas {
        Betas {
            num_train_timesteps: self.num_train_timesteps,
            beta_start: self.beta_start,
            beta_end: self.beta_end,
            beta_schedule: self.beta_schedule.clone(),
            trained_betas: self.trained_betas.clone(),
            rescale_betas_zero_snr: self.rescale_betas_zero_snr,
        }
    }

    fn timesteps(&self, steps: usize) -> Vec<i64> {
        let train = self.num_train_timesteps;
        let round = |t: f64| t.round_ties_even() as i64;
        match self.timestep_spacing {
            Spacing::Linspace => {
                linspace(0.0, (train - 1) as f64, steps).into_iter().rev().map(round).collect()
            }
            Spacing::Leading => {
                (0..steps).rev().map(|i| (i * (train / steps) + self.steps_offset) as i64).collect()
            }
            Spacing::Trailing => {
                let values = arange_down(train as f64, train as f64 / steps as f64);
                values.into_iter().map(|t| round(t) - 1).collect()
            }
        }
    }
}

impl Scheduler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(
        &self,
        state: &mut SolverState,
        step: usize,
        model_output: &Tensor,
        sample: &Tensor,
    ) -> Result<Tensor, ModelError> {
        state.expect(step, self.timesteps.len())?;
        let (output, sample) = same_shape(model_output, sample)?;
        let Coefficients { alpha, beta, alpha_next, beta_next } = self.coefficients[step];
        let (original, epsilon) = match self.prediction {
            Prediction::Epsilon => (divided(&(&sample - times(&output, beta)?)?, alpha)?, output),
            Prediction::Sample => {
                let epsilon = divided(&(&sample - times(&output, alpha)?)?, beta)?;
                (output, epsilon)
            }
            Prediction::Velocity => (
                (times(&sample, alpha)? - times(&output, beta)?)?,
                (times(&output, alpha)? + times(&sample, beta)?)?,
            ),
        };
        let original = match self.clip {
            Some(range) => original.clamp(-range, range)?,
            None => original,
        };
        let next = (times(&original, alpha_next)? + times(&epsilon, beta_next)?)?;
        state.done(step, 1);
        Ok(next)
    }
}

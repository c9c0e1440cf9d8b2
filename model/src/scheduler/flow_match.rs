//! `FlowMatchEulerDiscreteScheduler` (SD3, FLUX): Euler steps along a rectified flow.

use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;

use super::numpy::{exponential, karras, linspace};
use super::{Scheduler, SolverState, same_shape, times};
use crate::checkpoint::{CheckpointError, typed_config};
use crate::error::ModelError;

/// How `mu` bends the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TimeShift {
    Exponential,
    Linear,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct FlowMatchConfig {
    num_train_timesteps: usize,
    shift: f64,
    use_dynamic_shifting: bool,
    time_shift_type: TimeShift,
    shift_terminal: Option<f64>,
    invert_sigmas: bool,
    use_karras_sigmas: bool,
    use_exponential_sigmas: bool,
    use_beta_sigmas: bool,
    stochastic_sampling: bool,
    /// The four numbers pipelines make `mu` of; the scheduler itself does not use them.
    #[serde(rename = "base_shift")]
    _base_shift: Option<f64>,
    #[serde(rename = "max_shift")]
    _max_shift: Option<f64>,
    #[serde(rename = "base_image_seq_len")]
    _base_image_seq_len: usize,
    #[serde(rename = "max_image_seq_len")]
    _max_image_seq_len: usize,
}

impl Default for FlowMatchConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            time_shift_type: TimeShift::Exponential,
            shift_terminal: None,
            invert_sigmas: false,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            stochastic_sampling: false,
            _base_shift: Some(0.5),
            _max_shift: Some(1.15),
            _base_image_seq_len: 256,
            _max_image_seq_len: 4096,
        }
    }
}

/// Flow-match Euler with its timesteps set.
#[derive(Debug)]
pub(super) struct FlowMatchEuler {
    timesteps: Vec<f64>,
    /// One more than timesteps; the last is 0.
    sigmas: Vec<f32>,
}

impl FlowMatchEuler {
    /// Loads the configuration in `dir` and sets `steps` timesteps.
    pub(super) fn load(dir: &Path, steps: usize, mu: Option<f64>) -> Result<Self, ModelError> {
        let config: FlowMatchConfig = typed_config(dir)?;
        config.check(dir)?;
        let train = config.num_train_timesteps as f64;
        let mut sigmas = config.unshifted(steps);
        if config.use_dynamic_shifting {
            let mu = mu.ok_or_else(|| {
                ModelError::Invalid(
                    "the scheduler shifts with resolution, expected a value for mu".to_owned(),
                )
            })?;
            let weight = match config.time_shift_type {
                TimeShift::Exponential => libm::exp(mu),
                TimeShift::Linear => mu,
            };
            sigmas.iter_mut().for_each(|s| *s = weight / (weight + (1.0 / *s - 1.0)));
        } else {
            let shift = config.shift;
            sigmas.iter_mut().for_each(|s| *s = shift * *s / (1.0 + (shift - 1.0) * *s));
        }
        if let (Some(terminal), Some(&last)) =
            (config.shift_terminal.filter(|&t| t != 0.0), sigmas.last())
        {
            let scale = (1.0 - last) / (1.0 - terminal);
            sigmas.iter_mut().for_each(|s| *s = 1.0 - (1.0 - *s) / scale);
        }
        let ends = (sigmas[0], sigmas[sigmas.len() - 1]);
        if config.use_karras_sigmas {
            sigmas = karras(ends.0, ends.1, steps);
        } else if config.use_exponential_sigmas {
            sigmas = exponential(ends.0, ends.1, steps);
        }
        let mut sigmas: Vec<f32> = sigmas.into_iter().map(|s| s as f32).collect();
        let timesteps = sigmas.iter().map(|s| f64::from(s * train as f32)).collect();
        sigmas.push(0.0);
        Ok(Self { timesteps, sigmas })
    }
}

impl FlowMatchConfig {
    /// Refuses what is not supported.
    fn check(&self, dir: &Path) -> Result<(), CheckpointError> {
        let refused = [
            ("invert_sigmas", self.invert_sigmas),
            ("use_beta_sigmas", self.use_beta_sigmas),
            ("stochastic_sampling", self.stochastic_sampling),
        ];
        let bad = |key: &str, expected: &str, found: String| CheckpointError::Config {
            path: dir.join("scheduler_config.json"),
            key: key.to_owned(),
            expected: expected.to_owned(),
            found,
        };
        if let Some((key, _)) = refused.iter().find(|(_, set)| *set) {
            return Err(bad(key, "false", "true".to_owned()));
        }
        if self.num_train_timesteps == 0 {
            return Err(bad("num_train_timesteps", "at least 1", "0".to_owned()));
        }
        if self.shift_terminal == Some(1.0) {
            return Err(bad("shift_terminal", "null or below 1", "1".to_owned()));
        }
        Ok(())
    }

    /// Evenly spaced from the training schedule's largest sigma to its smallest, which diffusers
    /// holds as f32 and (unless shifting is dynamic) shifted already.
    fn unshifted(&self, steps: usize) -> Vec<f64> {
        let train = self.num_train_timesteps as f32;
        let shift = self.shift as f32;
        let end = |t: f32| {
            let sigma = t / train;
            let shifted = shift * sigma / (1.0 + (self.shift - 1.0) as f32 * sigma);
            f64::from(if self.use_dynamic_shifting { sigma } else { shifted })
        };
        let train = f64::from(train);
        let timesteps =
            linspace(end(self.num_train_timesteps as f32) * train, end(1.0) * train, steps);
        timesteps.into_iter().map(|t| t / train).collect()
    }
}

impl Scheduler for FlowMatchEuler {
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
        let next = (sample + times(&output, self.sigmas[step + 1] - self.sigmas[step])?)?;
        state.done(step, 1);
        Ok(next)
    }
}

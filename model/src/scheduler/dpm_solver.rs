//! `DPMSolverMultistepScheduler`: DPM-Solver and DPM-Solver++ of order 1 to 3 (Lu et al. 2022).
//!
//! Owns the order of a step and the conversion of model outputs; `schedule` owns timesteps and
//! sigmas, `update` the formulas.

mod config;
mod schedule;
mod update;

use std::path::Path;

use candle_core::Tensor;

use self::config::{Algorithm, DpmSolverConfig, Prediction};
use self::schedule::Schedule;
use super::{Scheduler, SolverState, divided, same_shape, times};
use crate::checkpoint::{CheckpointError, typed_config};
use crate::error::ModelError;

/// Below this many steps diffusers lowers the order at the end.
const FEW_STEPS: usize = 15;

/// Outputs that the solver configured in `dir` keeps.
pub(super) fn history(dir: &Path) -> Result<usize, CheckpointError> {
    let config: DpmSolverConfig = typed_config(dir)?;
    config.check(&dir.join("scheduler_config.json"))?;
    Ok(config.solver_order)
}

/// The multistep solver with its timesteps set.
#[derive(Debug)]
pub(super) struct DpmSolverMultistep {
    config: DpmSolverConfig,
    schedule: Schedule,
}

impl DpmSolverMultistep {
    /// Loads the configuration in `dir` and sets `steps` timesteps.
    pub(super) fn load(dir: &Path, steps: usize, mu: Option<f64>) -> Result<Self, ModelError> {
        let path = dir.join("scheduler_config.json");
        let mut config: DpmSolverConfig = typed_config(dir)?;
        config.check(&path)?;
        if let (true, Some(mu)) = (config.use_dynamic_shifting, mu) {
            config.flow_shift = libm::exp(mu);
        }
        let alphas = config.betas().alphas_cumprod(&path)?;
        let schedule = Schedule::new(&config, alphas, steps)?;
        Ok(Self { config, schedule })
    }

    /// Which order `step` is taken with, after `done` earlier steps.
    fn order_of(&self, step: usize, done: usize) -> usize {
        let steps = self.schedule.timesteps.len();
        let config = &self.config;
        let lower = config.lower_order_final && steps < FEW_STEPS;
        let euler = config.euler_at_final || lower || config.final_sigmas_type.is_zero();
        let limit = match steps - step {
            1 if euler => 1,
            2 if lower => 2,
            _ => 3,
        };
        config.solver_order.min(done + 1).min(limit)
    }

    /// The data prediction (DPM-Solver++) or noise prediction (DPM-Solver) the model output means.
    fn convert(&self, step: usize, output: Tensor, sample: &Tensor) -> Result<Tensor, ModelError> {
        let point = self.schedule.points[step];
        let (alpha, sigma) = (point.alpha, point.sigma);
        Ok(match (self.config.algorithm_type, self.config.prediction_type) {
            (Algorithm::DpmSolverPlusPlus, Prediction::Epsilon) => {
                divided(&(sample - times(&output, sigma)?)?, alpha)?
            }
            (Algorithm::DpmSolverPlusPlus, Prediction::Sample) => output,
            (Algorithm::DpmSolverPlusPlus, Prediction::Velocity) => {
                (times(sample, alpha)? - times(&output, sigma)?)?
            }
            (Algorithm::DpmSolverPlusPlus, Prediction::Flow) => {
                (sample - times(&output, self.schedule.sigmas[step])?)?
            }
            (Algorithm::DpmSolver, Prediction::Sample) => {
                divided(&(sample - times(&output, alpha)?)?, sigma)?
            }
            (Algorithm::DpmSolver, Prediction::Velocity) => {
                (times(&output, alpha)? + times(sample, sigma)?)?
            }
            (Algorithm::DpmSolver, Prediction::Epsilon | Prediction::Flow) => output,
        })
    }
}

impl Scheduler for DpmSolverMultistep {
    fn timesteps(&self) -> &[f64] {
        &self.schedule.timesteps
    }

    fn step(
        &self,
        state: &mut SolverState,
        step: usize,
        model_output: &Tensor,
        sample: &Tensor,
    ) -> Result<Tensor, ModelError> {
        state.expect(step, self.schedule.timesteps.len())?;
        let (output, sample) = same_shape(model_output, sample)?;
        let output = self.convert(step, output, &sample)?;
        let order = self.order_of(step, state.lower_order_nums());
        let mut outputs = state.tensors().to_vec();
        outputs.push(output.clone());
        if outputs.len() < order {
            return Err(ModelError::Invalid(format!(
                "solver history holds {} outputs, step {step} of order {order} expects that many",
                outputs.len()
            )));
        }
        let next =
            update::advance(&self.config, &self.schedule.points, step, order, &outputs, &sample)?;
        state.push(output, self.config.solver_order);
        state.done(step, self.config.solver_order);
        Ok(next)
    }
}

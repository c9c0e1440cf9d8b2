//! Timesteps and sigmas of the multistep solver, with numpy's rounding.

use super::config::{DpmSolverConfig, Spacing};
use crate::error::ModelError;
use crate::scheduler::numpy::{arange_down, exponential, karras, linspace};

/// One sigma and what the formulas need of it, f32 as torch computes them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) alpha: f32,
    pub(super) sigma: f32,
    /// `ln(alpha / sigma)`, infinite at the end.
    pub(super) lambda: f32,
}

/// The steps of one run.
#[derive(Debug)]
pub(super) struct Schedule {
    pub(super) timesteps: Vec<f64>,
    /// One more than timesteps.
    pub(super) sigmas: Vec<f32>,
    /// One per sigma.
    pub(super) points: Vec<Point>,
}

impl Schedule {
    /// Spreads `steps` steps over the training schedule `alphas` (`alphas_cumprod`).
    pub(super) fn new(
        config: &DpmSolverConfig,
        mut alphas: Vec<f32>,
        steps: usize,
    ) -> Result<Self, ModelError> {
        if let (true, Some(last)) = (config.rescale_betas_zero_snr, alphas.last_mut()) {
            *last = libm::exp2f(-24.0);
        }
        let train_sigmas: Vec<f32> =
            alphas.iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect();
        let (timesteps, mut sigmas) = timesteps_and_sigmas(config, &alphas, &train_sigmas, steps)?;
        sigmas.push(if config.final_sigmas_type.is_zero() {
            0.0
        } else {
            f64::from(train_sigmas[0])
        });
        let sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        let points = sigmas.iter().map(|&sigma| point(sigma, config.use_flow_sigmas)).collect();
        let timesteps = timesteps.into_iter().map(f64::trunc).collect();
        Ok(Self { timesteps, sigmas, points })
    }
}

/// Timesteps (not yet truncated to integers) and their sigmas, without the last.
fn timesteps_and_sigmas(
    config: &DpmSolverConfig,
    alphas: &[f32],
    train_sigmas: &[f32],
    steps: usize,
) -> Result<(Vec<f64>, Vec<f64>), ModelError> {
    let (first, last) =
        (f64::from(train_sigmas[0]), f64::from(train_sigmas[train_sigmas.len() - 1]));
    let train = config.num_train_timesteps as f64;
    let to_timesteps = |sigmas: &[f64], round: bool| -> Vec<f64> {
        let logs: Vec<f32> = train_sigmas.iter().map(|&sigma| libm::logf(sigma)).collect();
        let at = |&sigma: &f64| timestep_of(sigma, &logs);
        sigmas.iter().map(at).map(|t| if round { t.round_ties_even() } else { t }).collect()
    };
    if config.use_karras_sigmas {
        let sigmas = karras(last, first, steps);
        let timesteps = to_timesteps(&sigmas, config.beta_schedule != "squaredcos_cap_v2");
        return Ok((timesteps, sigmas));
    }
    if config.use_exponential_sigmas {
        let sigmas = exponential(last, first, steps);
        return Ok((to_timesteps(&sigmas, false), sigmas));
    }
    if config.use_flow_sigmas {
        let shift = config.flow_shift;
        let alphas = linspace(1.0, 1.0 / train, steps + 1);
        let shifted = alphas.iter().map(|alpha| {
            let sigma = 1.0 - alpha;
            shift * sigma / (1.0 + (shift - 1.0) * sigma)
        });
        let sigmas: Vec<f64> = shifted.skip(1).collect::<Vec<_>>().into_iter().rev().collect();
        return Ok((sigmas.iter().map(|sigma| sigma * train).collect(), sigmas));
    }
    let timesteps = spaced(config, alphas, steps);
    let sigma_at = |&t: &f64| {
        let index = (t.max(0.0) as usize).min(train_sigmas.len() - 1);
        f64::from(train_sigmas[index])
    };
    let sigmas = timesteps.iter().map(sigma_at).collect();
    if timesteps.len() != steps {
        return Err(ModelError::Invalid(format!(
            "lambda_min_clipped {} and timestep_spacing trailing leave {} timesteps of {steps}",
            config.lambda_min_clipped.0,
            timesteps.len()
        )));
    }
    Ok((timesteps, sigmas))
}

/// Integer timesteps, the noisiest first.
fn spaced(config: &DpmSolverConfig, alphas: &[f32], steps: usize) -> Vec<f64> {
    let last = last_timestep(config, alphas);
    match config.timestep_spacing {
        Spacing::Linspace => {
            let values = linspace(0.0, last as f64 - 1.0, steps + 1);
            values.into_iter().skip(1).rev().map(f64::round_ties_even).collect()
        }
        Spacing::Leading => {
            let ratio = last / (steps + 1);
            (1..=steps).rev().map(|i| (i * ratio) as f64 + config.steps_offset as f64).collect()
        }
        Spacing::Trailing => {
            let ratio = config.num_train_timesteps as f64 / steps as f64;
            arange_down(last as f64, ratio).into_iter().map(|t| t.round_ties_even() - 1.0).collect()
        }
    }
}

/// One past the noisiest timestep whose lambda is not clipped.
fn last_timestep(config: &DpmSolverConfig, alphas: &[f32]) -> usize {
    let lambda = |alpha: f32| libm::logf(alpha.sqrt()) - libm::logf((1.0 - alpha).sqrt());
    let limit = config.lambda_min_clipped.0 as f32;
    let clipped = alphas.iter().rev().take_while(|&&alpha| lambda(alpha) < limit).count();
    alphas.len() - clipped
}

/// The fractional training step whose sigma is `sigma`, from the logarithms of all of them.
fn timestep_of(sigma: f64, logs: &[f32]) -> f64 {
    let log = libm::log(sigma.max(1e-10));
    let below = logs.iter().take_while(|&&at| log - f64::from(at) >= 0.0).count();
    let low = below.saturating_sub(1).min(logs.len() - 2);
    let (at_low, at_high) = (logs[low], logs[low + 1]);
    let weight = (f64::from(at_low) - log) / f64::from(at_low - at_high);
    let weight = weight.clamp(0.0, 1.0);
    (1.0 - weight) * low as f64 + weight * (low + 1) as f64
}

/// Alpha, sigma and lambda of one sigma.
fn point(sigma: f32, flow: bool) -> Point {
    let alpha = if flow { 1.0 - sigma } else { 1.0 / (sigma * sigma + 1.0).sqrt() };
    let sigma = if flow { sigma } else { sigma * alpha };
    Point { alpha, sigma, lambda: libm::logf(alpha) - libm::logf(sigma) }
}

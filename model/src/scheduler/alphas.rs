//! The cumulative products of `1 - beta` that diffusion models are trained on.
//!
//! Owns the beta schedules and their rounding: betas and alphas are f32, products accumulate in
//! f64 and are stored as f32, as torch does on the CPU.

use std::path::Path;

use serde::Deserialize;

use super::numpy::linspace_f32;
use crate::checkpoint::{CheckpointError, FloatValue};

/// Training steps beyond which a schedule is refused.
const TRAIN_TIMESTEPS_MAX: usize = 1_000_000;

/// The keys that describe the betas, with diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(super) struct Betas {
    pub(super) num_train_timesteps: usize,
    pub(super) beta_start: FloatValue,
    pub(super) beta_end: FloatValue,
    pub(super) beta_schedule: String,
    pub(super) trained_betas: Option<Vec<f32>>,
    pub(super) rescale_betas_zero_snr: bool,
}

impl Default for Betas {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: FloatValue(0.0001),
            beta_end: FloatValue(0.02),
            beta_schedule: "linear".to_owned(),
            trained_betas: None,
            rescale_betas_zero_snr: false,
        }
    }
}

impl Betas {
    /// `alphas_cumprod`, one f32 per training step, at least 2.
    pub(super) fn alphas_cumprod(&self, path: &Path) -> Result<Vec<f32>, CheckpointError> {
        let bad = |key: &str, expected: &str, found: String| CheckpointError::Config {
            path: path.to_owned(),
            key: key.to_owned(),
            expected: expected.to_owned(),
            found,
        };
        let num = self.num_train_timesteps;
        if !(2..=TRAIN_TIMESTEPS_MAX).contains(&num) {
            return Err(bad("num_train_timesteps", "2 to 1000000", num.to_string()));
        }
        let (start, end) = (self.beta_start.0, self.beta_end.0);
        let betas = match (&self.trained_betas, self.beta_schedule.as_str()) {
            (Some(betas), _) if betas.len() == num => betas.clone(),
            (Some(betas), _) => {
                return Err(bad(
                    "trained_betas",
                    &format!("{num} numbers"),
                    format!("{} numbers", betas.len()),
                ));
            }
            (None, "linear") => linspace_f32(start, end, num),
            (None, "scaled_linear") => {
                let roots = linspace_f32(libm::sqrt(start), libm::sqrt(end), num);
                roots.into_iter().map(|root| root * root).collect()
            }
            (None, "squaredcos_cap_v2") => cosine(num),
            (None, other) => {
                let expected = "linear, scaled_linear or squaredcos_cap_v2";
                return Err(bad("beta_schedule", expected, format!("{other:?}")));
            }
        };
        let betas = if self.rescale_betas_zero_snr { zero_terminal_snr(&betas) } else { betas };
        Ok(cumprod(&betas))
    }
}

/// Products of `1 - beta`, accumulated in f64.
fn cumprod(betas: &[f32]) -> Vec<f32> {
    let mut product = 1f64;
    let mut next = |beta: &f32| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(&mut next).collect()
}

/// Nichol and Dhariwal's cosine schedule (`betas_for_alpha_bar`).
fn cosine(num: usize) -> Vec<f32> {
    const BETA_MAX: f64 = 0.999;
    let alpha_bar = |t: f64| {
        let cos = libm::cos((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0);
        cos * cos
    };
    let at = |i: usize| alpha_bar(i as f64 / num as f64);
    (0..num).map(|i| (1.0 - at(i + 1) / at(i)).min(BETA_MAX) as f32).collect()
}

/// Lin et al. 2023, algorithm 1: shifts and scales so that the last step has no signal.
fn zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let mut roots: Vec<f32> = cumprod(betas).into_iter().map(f32::sqrt).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    roots.iter_mut().for_each(|root| *root = (*root - last) * scale);
    let bars: Vec<f32> = roots.iter().map(|root| root * root).collect();
    let mut previous = 1f32;
    let mut beta = |bar: &f32| {
        let alpha = bar / previous;
        previous = *bar;
        1.0 - alpha
    };
    bars.iter().map(&mut beta).collect()
}

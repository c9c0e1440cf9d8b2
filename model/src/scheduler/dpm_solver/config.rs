//! The keys of a `DPMSolverMultistepScheduler` and which of their values are supported.

use std::path::Path;

use serde::Deserialize;

use crate::checkpoint::{CheckpointError, FloatValue};
use crate::scheduler::alphas::Betas;

/// What the model predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Prediction {
    Epsilon,
    Sample,
    #[serde(rename = "v_prediction")]
    Velocity,
    #[serde(rename = "flow_prediction")]
    Flow,
}

/// Which integral is solved: of the noise or of the data prediction. `deis` means the latter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum Algorithm {
    #[serde(rename = "dpmsolver")]
    DpmSolver,
    #[serde(rename = "dpmsolver++", alias = "deis")]
    DpmSolverPlusPlus,
}

/// Second-order formula; diffusers maps the names of other solvers to the midpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SolverType {
    #[serde(alias = "logrho", alias = "bh1", alias = "bh2")]
    Midpoint,
    Heun,
}

/// Where the timesteps lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Spacing {
    Leading,
    Trailing,
    Linspace,
}

/// The sigma after the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FinalSigma {
    Zero,
    SigmaMin,
}

impl FinalSigma {
    /// Whether it is zero.
    pub(super) fn is_zero(self) -> bool {
        self == Self::Zero
    }
}

/// Kept apart so that an unsupported value is named, not only refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(super) struct DpmSolverConfig {
    pub(super) num_train_timesteps: usize,
    beta_start: FloatValue,
    beta_end: FloatValue,
    pub(super) beta_schedule: String,
    trained_betas: Option<Vec<f32>>,
    pub(super) rescale_betas_zero_snr: bool,
    pub(super) solver_order: usize,
    pub(super) prediction_type: Prediction,
    pub(super) algorithm_type: Algorithm,
    pub(super) solver_type: SolverType,
    pub(super) lower_order_final: bool,
    pub(super) euler_at_final: bool,
    pub(super) use_karras_sigmas: bool,
    pub(super) use_exponential_sigmas: bool,
    use_beta_sigmas: bool,
    use_lu_lambdas: bool,
    pub(super) use_flow_sigmas: bool,
    pub(super) flow_shift: f64,
    pub(super) final_sigmas_type: FinalSigma,
    pub(super) lambda_min_clipped: FloatValue,
    variance_type: Option<String>,
    pub(super) timestep_spacing: Spacing,
    pub(super) steps_offset: i64,
    pub(super) use_dynamic_shifting: bool,
    time_shift_type: String,
    thresholding: bool,
    /// Used with `thresholding` only, which is refused.
    #[serde(rename = "dynamic_thresholding_ratio")]
    _dynamic_thresholding_ratio: f64,
    #[serde(rename = "sample_max_value")]
    _sample_max_value: f64,
}

impl Default for DpmSolverConfig {
    fn default() -> Self {
        let betas = Betas::default();
        Self {
            num_train_timesteps: betas.num_train_timesteps,
            beta_start: betas.beta_start,
            beta_end: betas.beta_end,
            beta_schedule: betas.beta_schedule,
            trained_betas: None,
            rescale_betas_zero_snr: false,
            solver_order: 2,
            prediction_type: Prediction::Epsilon,
            algorithm_type: Algorithm::DpmSolverPlusPlus,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            use_lu_lambdas: false,
            use_flow_sigmas: false,
            flow_shift: 1.0,
            final_sigmas_type: FinalSigma::Zero,
            lambda_min_clipped: FloatValue(f64::NEG_INFINITY),
            variance_type: None,
            timestep_spacing: Spacing::Linspace,
            steps_offset: 0,
            use_dynamic_shifting: false,
            time_shift_type: "exponential".to_owned(),
            thresholding: false,
            _dynamic_thresholding_ratio: 0.995,
            _sample_max_value: 1.0,
        }
    }
}

impl DpmSolverConfig {
    /// The keys that describe the training schedule.
    pub(super) fn betas(&self) -> Betas {
        Betas {
            num_train_timesteps: self.num_train_timesteps,
            beta_start: self.beta_start,
            beta_end: self.beta_end,
            beta_schedule: self.beta_schedule.clone(),
            trained_betas: self.trained_betas.clone(),
            rescale_betas_zero_snr: self.rescale_betas_zero_snr,
        }
    }

    /// Refuses what is not supported, and what diffusers refuses.
    pub(super) fn check(&self, path: &Path) -> Result<(), CheckpointError> {
        let bad = |key: &str, expected: &str, found: String| {
            Err(CheckpointError::Config {
                path: path.to_owned(),
                key: key.to_owned(),
                expected: expected.to_owned(),
                found,
            })
        };
        let refused = [
            ("thresholding", self.thresholding),
            ("use_beta_sigmas", self.use_beta_sigmas),
            ("use_lu_lambdas", self.use_lu_lambdas),
        ];
        if let Some((key, _)) = refused.iter().find(|(_, set)| *set) {
            return bad(key, "false", "true".to_owned());
        }
        if self.use_karras_sigmas && self.use_exponential_sigmas {
            return bad(
                "use_exponential_sigmas",
                "false with use_karras_sigmas",
                "true".to_owned(),
            );
        }
        if !(1..=3).contains(&self.solver_order) {
            return bad("solver_order", "1, 2 or 3", self.solver_order.to_string());
        }
        if let Some(kind) = &self.variance_type {
            return bad("variance_type", "null", format!("{kind:?}"));
        }
        if self.time_shift_type != "exponential" {
            return bad(
                "time_shift_type",
                "\"exponential\"",
                format!("{:?}", self.time_shift_type),
            );
        }
        if self.algorithm_type == Algorithm::DpmSolver {
            if self.final_sigmas_type.is_zero() {
                return bad(
                    "final_sigmas_type",
                    "\"sigma_min\" with dpmsolver",
                    "\"zero\"".to_owned(),
                );
            }
            if self.prediction_type == Prediction::Flow {
                let expected = "\"epsilon\", \"sample\" or \"v_prediction\" with dpmsolver";
                return bad("prediction_type", expected, "\"flow_prediction\"".to_owned());
            }
        }
        Ok(())
    }
}

//! The update formulas of DPM-Solver and DPM-Solver++, orders 1 to 3.
//!
//! With `e = exp(-h) - 1` (DPM-Solver++) or `exp(h) - 1` (DPM-Solver) both are one formula:
//! `x' = ratio * x - scale * (e * D0 + c1 * D1 + c2 * D2)`, with signs as noted.

use candle_core::Tensor;

use super::config::{Algorithm, DpmSolverConfig, SolverType};
use super::schedule::Point;
use crate::error::ModelError;
use crate::scheduler::times;

/// What one step multiplies its terms by: `ratio * x - d0 * D0 + d1 * D1 + d2 * D2`.
struct Weights {
    ratio: f32,
    d0: f32,
    d1: f32,
    d2: f32,
}

/// The sample after `step`, taken with `order`. `outputs` are converted, newest last.
pub(super) fn advance(
    config: &DpmSolverConfig,
    points: &[Point],
    step: usize,
    order: usize,
    outputs: &[Tensor],
    sample: &Tensor,
) -> Result<Tensor, ModelError> {
    let weights = weights(config, points[step + 1], points[step], order);
    let newest = |age: usize| &outputs[outputs.len() - 1 - age];
    let h = points[step + 1].lambda - points[step].lambda;
    let ratio = |age: usize| (points[step - age].lambda - points[step - age - 1].lambda) / h;
    let first = (times(sample, weights.ratio)? - times(newest(0), weights.d0)?)?;
    Ok(match order {
        1 => first,
        2 => {
            let d1 = times(&(newest(0) - newest(1))?, 1.0 / ratio(0))?;
            (first + times(&d1, weights.d1)?)?
        }
        _ => {
            let (r0, r1) = (ratio(0), ratio(1));
            let near = times(&(newest(0) - newest(1))?, 1.0 / r0)?;
            let far = times(&(newest(1) - newest(2))?, 1.0 / r1)?;
            let bend = (&near - far)?;
            let d1 = (near + times(&bend, r0 / (r0 + r1))?)?;
            let d2 = times(&bend, 1.0 / (r0 + r1))?;
            ((first + times(&d1, weights.d1)?)? + times(&d2, weights.d2)?)?
        }
    })
}

/// The weights of a step from `from` to `to`.
fn weights(config: &DpmSolverConfig, to: Point, from: Point, order: usize) -> Weights {
    let h = to.lambda - from.lambda;
    let heun = order == 3 || config.solver_type == SolverType::Heun;
    match config.algorithm_type {
        Algorithm::DpmSolverPlusPlus => {
            let e = libm::expf(-h) - 1.0;
            Weights {
                ratio: to.sigma / from.sigma,
                d0: to.alpha * e,
                d1: if heun { to.alpha * (e / h + 1.0) } else { -0.5 * (to.alpha * e) },
                d2: -(to.alpha * ((e + h) / (h * h) - 0.5)),
            }
        }
        Algorithm::DpmSolver => {
            let e = libm::expf(h) - 1.0;
            Weights {
                ratio: to.alpha / from.alpha,
                d0: to.sigma * e,
                d1: if heun { -(to.sigma * (e / h - 1.0)) } else { -0.5 * (to.sigma * e) },
                d2: -(to.sigma * ((e - h) / (h * h) - 0.5)),
            }
        }
    }
}

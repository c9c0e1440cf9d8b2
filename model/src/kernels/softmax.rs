//! Softmax over the last dimension.
//!
//! Owns the row kernel and its tensor form for f32 on the CPU. Scores of attention never pass
//! through here: see [`super::flash`].

use candle_core::{D, DType, Device, Result, Tensor};

use super::access::with_contiguous;
use super::exp::exp;
use super::isa::{Isa, multiversion};
use super::parallel::new_rows;

/// Lanes a reduction runs in; fixed, so that sums do not depend on the instruction set.
pub(super) const LANES: usize = 32;
/// Rows below which another thread is not worth waking.
const ROWS_PER_THREAD_MIN: usize = 8;

/// Softmax over the last dimension of `x`, any rank. A row of `-inf` alone gives NaN, as in
/// PyTorch.
///
/// # Errors
/// When candle fails (a scalar, a device out of memory).
pub fn softmax_last_dim(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() || x.dtype() != DType::F32 {
        let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
        return shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?);
    }
    let width = x.dim(D::Minus1)?;
    if x.elem_count() == 0 {
        return x.contiguous();
    }
    let isa = Isa::detect();
    let out = with_contiguous(x, |input| {
        Ok(new_rows(input.len() / width, width, ROWS_PER_THREAD_MIN, |index, row| {
            row.copy_from_slice(&input[index * width..][..width]);
            softmax_row(isa, row);
        }))
    })?;
    Tensor::from_vec(out, x.shape(), &Device::Cpu)
}

/// Largest element, `-inf` for none; NaN elements are passed over.
#[inline(always)]
pub(super) fn max_of(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    for &value in chunks.remainder() {
        lanes[0] = if value > lanes[0] { value } else { lanes[0] };
    }
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            let other = lanes[lane + half];
            lanes[lane] = if other > lanes[lane] { other } else { lanes[lane] };
        }
        half /= 2;
    }
    lanes[0]
}

/// Replaces each element by `exp(element - shift)` and returns their sum.
#[inline(always)]
pub(super) fn exp_and_sum(row: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let mut chunks = row.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *value = exp(*value - shift);
            *lane += *value;
        }
    }
    let mut rest = 0.0;
    for value in chunks.into_remainder() {
        *value = exp(*value - shift);
        rest += *value;
    }
    sum_lanes(&lanes) + rest
}

/// Adds the lanes of a reduction, always in the same order.
#[inline(always)]
pub(super) fn sum_lanes(lanes: &[f32; LANES]) -> f32 {
    let mut halves = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            halves[lane] += halves[lane + half];
        }
        half /= 2;
    }
    halves[0]
}

multiversion! {
    /// Softmax of one row in place.
    fn softmax_row(row: &mut [f32]) {
        let largest = max_of(row);
        let inverse = 1.0 / exp_and_sum(row, largest);
        for value in row {
            *value *= inverse;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_any_length_sum_to_one_in_the_right_proportions() {
        for width in [1usize, 5, 32, 33, 100, 300] {
            let values: Vec<f32> = (0..3 * width).map(|i| ((i * 37) % 101) as f32 / 7.0).collect();
            let x = Tensor::from_vec(values.clone(), (3, width), &Device::Cpu).expect("input");
            let y = softmax_last_dim(&x).expect("softmax").to_vec2::<f32>().expect("rows");
            for (row, input) in y.iter().zip(values.chunks(width)) {
                let total: f64 = input.iter().map(|&v| f64::from(v).exp()).sum();
                for (&got, &v) in row.iter().zip(input) {
                    assert!((f64::from(got) - f64::from(v).exp() / total).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn all_instruction_sets_agree_to_the_bit() {
        let input: Vec<f32> = (0..77).map(|i| (i as f32).sin() * 9.0).collect();
        let mut portable = input.clone();
        softmax_row(Isa::Portable, &mut portable);
        for isa in [Isa::Avx2, Isa::Avx512] {
            let mut row = input.clone();
            softmax_row(isa, &mut row);
            assert_eq!(row, portable, "{isa:?}");
        }
    }
}

//! Activation functions: gelu in its tanh form, and silu.
//!
//! Owns the row kernels and their tensor forms for f32 on the CPU; other devices and types go
//! through candle.

use candle_core::{DType, Device, Result, Tensor};

use super::access::with_contiguous;
use super::exp::exp;
use super::isa::{Isa, multiversion};
use super::parallel::new_rows;

/// Elements a thread works on at a time.
const CHUNK_ELEMENTS: usize = 1024;
/// Chunks below which another thread is not worth waking.
const CHUNKS_PER_THREAD_MIN: usize = 16;

/// `gelu` by its tanh formula (diffusers' `gelu-approximate`), any shape.
///
/// # Errors
/// When candle fails (a device out of memory).
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    if !on_cpu_in_f32(x) {
        return x.gelu();
    }
    elementwise(x, gelu_tanh_row)
}

/// `x * sigmoid(x)`, any shape.
///
/// # Errors
/// When candle fails (a device out of memory).
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if !on_cpu_in_f32(x) {
        return x.silu();
    }
    elementwise(x, silu_row)
}

fn on_cpu_in_f32(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

fn elementwise(x: &Tensor, kernel: fn(Isa, &mut [f32])) -> Result<Tensor> {
    let isa = Isa::detect();
    let out = with_contiguous(x, |input| {
        let whole = input.len() / CHUNK_ELEMENTS;
        let mut out = new_rows(whole, CHUNK_ELEMENTS, CHUNKS_PER_THREAD_MIN, |index, row| {
            row.copy_from_slice(&input[index * CHUNK_ELEMENTS..][..CHUNK_ELEMENTS]);
            kernel(isa, row);
        });
        let mut rest = input[whole * CHUNK_ELEMENTS..].to_vec();
        kernel(isa, &mut rest);
        out.extend_from_slice(&rest);
        Ok(out)
    })?;
    Tensor::from_vec(out, x.shape(), &Device::Cpu)
}

multiversion! {
    /// Tanh gelu in place, as `x * sigmoid(2u)`, `u = sqrt(2/pi) (x + 0.044715 x^3)`,
    /// which equals `x/2 (1 + tanh u)` without cancellation for negative `x`.
    pub(super) fn gelu_tanh_row(row: &mut [f32]) {
        const TWO_SQRT_TWO_OVER_PI: f32 = 1.595_769_2;
        for value in row {
            let x = *value;
            let twice_u = TWO_SQRT_TWO_OVER_PI * x * (1.0 + 0.044_715 * x * x);
            *value = x / (1.0 + exp(-twice_u));
        }
    }
}

multiversion! {
    /// `x * sigmoid(x)` in place.
    pub(super) fn silu_row(row: &mut [f32]) {
        for value in row {
            let x = *value;
            *value = x / (1.0 + exp(-x));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tensor {
        let values: Vec<f32> = (0..4099).map(|i| (i as f32 - 2049.0) / 200.0).collect();
        Tensor::from_vec(values, 4099, &Device::Cpu).expect("sample")
    }

    fn worst(a: &Tensor, reference: impl Fn(f64) -> f64) -> f64 {
        let xs = sample().to_vec1::<f32>().expect("sample");
        let ys = a.to_vec1::<f32>().expect("result");
        let errors = xs.iter().zip(&ys).map(|(&x, &y)| (f64::from(y) - reference(x.into())).abs());
        errors.fold(0.0, f64::max)
    }

    #[test]
    fn follow_their_formulas() {
        let gelu = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        };
        assert!(worst(&gelu_tanh(&sample()).expect("gelu"), gelu) < 2e-6);
        let silu_reference = |x: f64| x / (1.0 + (-x).exp());
        assert!(worst(&silu(&sample()).expect("silu"), silu_reference) < 2e-6);
    }

    #[test]
    fn all_instruction_sets_agree_to_the_bit() {
        let input = sample().to_vec1::<f32>().expect("sample");
        for kernel in [gelu_tanh_row, silu_row] {
            let mut portable = input.clone();
            kernel(Isa::Portable, &mut portable);
            for isa in [Isa::Avx2, Isa::Avx512] {
                let mut row = input.clone();
                kernel(isa, &mut row);
                assert_eq!(row, portable, "{isa:?}");
            }
        }
    }
}

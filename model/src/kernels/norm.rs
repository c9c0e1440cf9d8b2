//! Layer norm without affine parameters, followed by adaLN's modulation, in one pass.
//!
//! Owns `norm(x) * (1 + scale) + shift` (DiT, arXiv 2212.09748, section 3.2). Statistics are two
//! passes over a row in f32: mean first, then squared deviations.

use candle_core::{D, DType, Device, Result, Tensor};

use super::access::with_contiguous;
use super::isa::{Isa, multiversion};
use super::parallel::new_rows;
use super::softmax::{LANES, sum_lanes};

/// Rows below which another thread is not worth waking.
const ROWS_PER_THREAD_MIN: usize = 8;

/// `layer_norm(x) * (1 + scale) + shift` over the last dimension: `x` is `[.., D]`, `shift` and
/// `scale` are `[D]`; the result has the shape of `x`.
///
/// # Errors
/// When the widths disagree, or candle fails.
pub fn layer_norm_modulate(x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if shift.dims() != [width] || scale.dims() != [width] {
        candle_core::bail!(
            "modulation of width {width} got shift {:?} and scale {:?}",
            shift.dims(),
            scale.dims()
        );
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() && x.dtype() == DType::F32 {
        return crate::cuda::norm_modulate(x, shift, scale, eps);
    }
    if !x.device().is_cpu() || x.dtype() != DType::F32 {
        return plain(x, shift, scale, eps);
    }
    let (isa, eps) = (Isa::detect(), eps as f32);
    let out = with_contiguous(x, |input| {
        with_contiguous(shift, |shift| {
            with_contiguous(scale, |scale| {
                let rows = input.len() / width.max(1);
                Ok(new_rows(rows, width, ROWS_PER_THREAD_MIN, |index, row| {
                    let input = &input[index * width..][..width];
                    modulate_row(isa, input, shift, scale, eps, row);
                }))
            })
        })
    })?;
    Tensor::from_vec(out, x.shape(), &Device::Cpu)
}

fn plain(x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    normed.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)
}

#[inline(always)]
fn sum_of(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let chunks = row.chunks_exact(LANES);
    let mut rest = 0.0;
    for &value in chunks.remainder() {
        rest += term(value);
    }
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += term(value);
        }
    }
    sum_lanes(&lanes) + rest
}

multiversion! {
    fn modulate_row(input: &[f32], shift: &[f32], scale: &[f32], eps: f32, out: &mut [f32]) {
        let width = input.len() as f32;
        let mean = sum_of(input, |value| value) / width;
        let variance = sum_of(input, |value| (value - mean) * (value - mean)) / width;
        let inverse = 1.0 / (variance + eps).sqrt();
        let rows = input.iter().zip(shift).zip(scale).zip(out);
        for (((&value, &shift), &scale), out) in rows {
            *out = (value - mean) * inverse * (1.0 + scale) + shift;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(count: usize, step: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * step).sin() * 3.0 + 1.0).collect()
    }

    #[test]
    fn agrees_with_plain_candle_at_widths_off_the_lanes() {
        for width in [1usize, 12, 48, 100, 1152] {
            let tensor = |count, shape: &[usize], step| {
                Tensor::from_vec(wave(count, step), shape, &Device::Cpu).expect("input")
            };
            let x = tensor(10 * width, &[2, 5, width], 0.7);
            let (shift, scale) = (tensor(width, &[width], 0.3), tensor(width, &[width], 1.3));
            let got = layer_norm_modulate(&x, &shift, &scale, 1e-6).expect("fused");
            let want = plain(&x, &shift, &scale, 1e-6).expect("plain");
            let gap = (got - want).and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>());
            assert!(gap.expect("gap") < 2e-5, "width {width}");
        }
    }

    #[test]
    fn all_instruction_sets_agree_to_the_bit() {
        let (x, shift, scale) = (wave(75, 0.9), wave(75, 0.2), wave(75, 0.4));
        let run = |isa| {
            let mut out = vec![0.0; 75];
            modulate_row(isa, &x, &shift, &scale, 1e-6, &mut out);
            out
        };
        assert!([Isa::Avx2, Isa::Avx512].into_iter().all(|isa| run(isa) == run(Isa::Portable)));
    }
}

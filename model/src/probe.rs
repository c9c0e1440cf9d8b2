//! Measures what this device sustains on the shapes of a transformer block.
//!
//! Owns the shapes and the timing. Does not own what the figures are used for, nor threads: it
//! runs on the current rayon pool, or on the caller's thread. Invariants: everything that is timed
//! is what a forward pass calls; each figure is a median over a bounded time.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};

use crate::attention::attention;
use crate::error::ModelError;
use crate::kernels::layer_norm_modulate;
use crate::linear::{Linear, LinearWeight};

/// Tokens of a whole picture, a patch and a small patch.
pub const TOKENS: [usize; 3] = [1024, 256, 64];
/// Runs of one measurement, at least and at most.
const RUNS: std::ops::RangeInclusive<usize> = 3..=10_000;
/// Phases of a block: projection in, attention, projection out.
const PHASES_PER_BLOCK: f64 = 3.0;
/// Epsilon of norms.
const EPSILON: f64 = 1e-6;

/// The block whose shapes are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    /// Width of the hidden states.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
}

/// Rates at one number of tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AtTokens {
    /// Rows of the products, and queries.
    pub tokens: usize,
    /// FLOP/s, a multiply-add counted as two.
    pub flops_per_s: f64,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// The linear layers of a block, weights in f32, by tokens.
    pub gemm_f32: Vec<AtTokens>,
    /// Weights in f16.
    pub gemm_f16: Vec<AtTokens>,
    /// Weights in bf16.
    pub gemm_bf16: Vec<AtTokens>,
    /// Self-attention over [`TOKENS`]`[0]` keys, by queries; counted as `4 * queries * keys *
    /// hidden`.
    pub attention: Vec<AtTokens>,
    /// Bytes read and written per second by the norm with modulation.
    pub memory_bytes_per_s: f64,
    /// Seconds that a phase of a forward pass costs beside its arithmetic.
    pub phase_s: f64,
}

/// Measures everything on a block of `size`, each figure for about `each`.
///
/// # Errors
/// When the width does not divide by the heads, or the tensor backend fails.
pub fn measure(size: BlockSize, each: Duration) -> Result<Probe, ModelError> {
    let BlockSize { hidden, heads } = size;
    if heads == 0 || !hidden.is_multiple_of(heads) {
        let cause = format!("hidden width {hidden} does not divide by {heads} heads");
        return Err(ModelError::Invalid(cause));
    }
    let gemm = |dtype| -> Result<Vec<AtTokens>, ModelError> {
        let layers = block_layers(hidden, dtype)?;
        TOKENS.iter().map(|&tokens| measure_gemm(&layers, tokens, each)).collect()
    };
    Ok(Probe {
        gemm_f32: gemm(DType::F32)?,
        gemm_f16: gemm(DType::F16)?,
        gemm_bf16: gemm(DType::BF16)?,
        attention: TOKENS
            .iter()
            .map(|&queries| measure_attention(size, queries, each))
            .collect::<Result<_, _>>()?,
        memory_bytes_per_s: measure_memory(hidden, each)?,
        phase_s: measure_phase(each)?,
    })
}

/// Median seconds of `run`.
fn median(
    each: Duration,
    mut run: impl FnMut() -> Result<(), ModelError>,
) -> Result<f64, ModelError> {
    run()?;
    let (started, mut times) = (Instant::now(), Vec::new());
    while times.len() < *RUNS.start() || (started.elapsed() < each && times.len() < *RUNS.end()) {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2].max(f64::MIN_POSITIVE))
}

/// `[tokens, width]` of numbers that are neither zero nor large.
fn activations(tokens: usize, width: usize) -> Result<Tensor, ModelError> {
    let values: Vec<f32> =
        (0..tokens * width).map(|i| ((i % 251) as f32 - 125.0) / 100.0).collect();
    Ok(Tensor::from_vec(values, (1, tokens, width), &Device::Cpu)?)
}

/// The linear layers of a block in order, with input and output width.
fn block_layers(hidden: usize, dtype: DType) -> Result<Vec<(Linear, usize, usize)>, ModelError> {
    let sizes = [
        (hidden, 3 * hidden),
        (hidden, hidden),
        (hidden, hidden),
        (hidden, hidden),
        (hidden, 4 * hidden),
        (4 * hidden, hidden),
    ];
    let layer = |(input, output): (usize, usize)| {
        let weight = (activations(output, input)?.squeeze(0)? * 0.01)?.to_dtype(dtype)?;
        let bias = Tensor::zeros(output, DType::F32, &Device::Cpu)?;
        Ok((Linear::new(LinearWeight::new(weight)?, Some(bias)), input, output))
    };
    sizes.into_iter().map(layer).collect()
}

fn measure_gemm(
    layers: &[(Linear, usize, usize)],
    tokens: usize,
    each: Duration,
) -> Result<AtTokens, ModelError> {
    let hidden = layers.first().map_or(0, |layer| layer.1);
    let (narrow, wide) = (activations(tokens, hidden)?, activations(tokens, 4 * hidden)?);
    let seconds = median(each, || {
        for (layer, input, _) in layers {
            layer.forward(if *input == hidden { &narrow } else { &wide })?;
        }
        Ok(())
    })?;
    let flops: usize = layers.iter().map(|(_, input, output)| 2 * tokens * input * output).sum();
    Ok(AtTokens { tokens, flops_per_s: flops as f64 / seconds })
}

fn heads_of(tokens: usize, hidden: usize, heads: usize) -> Result<Tensor, ModelError> {
    Ok(activations(tokens, hidden)?.reshape((1, tokens, heads, hidden / heads))?)
}

fn measure_attention(
    size: BlockSize,
    queries: usize,
    each: Duration,
) -> Result<AtTokens, ModelError> {
    let BlockSize { hidden, heads } = size;
    let keys = TOKENS[0];
    let (q, k) = (heads_of(queries, hidden, heads)?, heads_of(keys, hidden, heads)?);
    let v = k.clone();
    let scale = ((hidden / heads) as f64).sqrt().recip();
    let seconds = median(each, || attention(&q, &k, &v, scale, None).map(drop))?;
    let flops = (4 * queries * keys * hidden) as f64;
    Ok(AtTokens { tokens: queries, flops_per_s: flops / seconds })
}

fn measure_memory(hidden: usize, each: Duration) -> Result<f64, ModelError> {
    let x = activations(TOKENS[0], hidden)?;
    let ones = Tensor::ones(hidden, DType::F32, &Device::Cpu)?;
    let seconds = median(each, || Ok(layer_norm_modulate(&x, &ones, &ones, EPSILON).map(drop)?))?;
    let bytes = 2 * TOKENS[0] * hidden * size_of::<f32>();
    Ok(bytes as f64 / seconds)
}

/// A block so small that its arithmetic does not count.
fn measure_phase(each: Duration) -> Result<f64, ModelError> {
    let (tokens, hidden, heads) = (4, 8, 2);
    let layers = block_layers(hidden, DType::F32)?;
    let (narrow, wide) = (activations(tokens, hidden)?, activations(tokens, 4 * hidden)?);
    let ones = Tensor::ones(hidden, DType::F32, &Device::Cpu)?;
    let q = heads_of(tokens, hidden, heads)?;
    let seconds = median(each, || {
        for _ in 0..2 {
            layer_norm_modulate(&narrow, &ones, &ones, EPSILON)?;
            attention(&q, &q, &q, 1.0, None)?;
        }
        for (layer, input, _) in &layers {
            layer.forward(if *input == hidden { &narrow } else { &wide })?;
        }
        Ok(())
    })?;
    Ok(seconds / PHASES_PER_BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_layer_takes_longer_and_rates_are_positive() -> Result<(), ModelError> {
        let each = Duration::from_millis(1);
        let layers = block_layers(32, DType::F32)?;
        let rate = measure_gemm(&layers, 16, each)?;
        assert!(rate.flops_per_s.is_finite() && rate.flops_per_s > 0.0);
        // Two norms, two attentions and six products are not free.
        assert!(measure_phase(each)? > 1e-8);
        Ok(())
    }
}

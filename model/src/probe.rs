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
pub const TOKENS: &[usize] = &[1024, 256, 64];
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

/// How much is measured, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// The block.
    pub size: BlockSize,
    /// Numbers of tokens, the one first that stands for a whole picture.
    pub tokens: &'static [usize],
    /// Time for each of the figures, about.
    pub each: Duration,
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
    /// Self-attention over the keys of a whole picture, by queries; counted as `4 * queries * keys *
    /// hidden`.
    pub attention: Vec<AtTokens>,
    /// Bytes read and written per second by the norm with modulation.
    pub memory_bytes_per_s: f64,
    /// Seconds that a phase of a forward pass costs beside its arithmetic.
    pub phase_s: f64,
}

impl Effort {
    /// Measures everything on a device.
    ///
    /// # Errors
    /// When there are no tokens, the width does not divide by the heads, or the tensor backend
    /// fails.
    pub fn measure(&self, on: &Device) -> Result<Probe, ModelError> {
        let Self { size, tokens, each } = *self;
        let BlockSize { hidden, heads } = size;
        if heads == 0 || !hidden.is_multiple_of(heads) {
            let cause = format!("hidden width {hidden} does not divide by {heads} heads");
            return Err(ModelError::Invalid(cause));
        }
        let Some(&whole) = tokens.first() else {
            return Err(ModelError::Invalid("no number of tokens to measure at".into()));
        };
        let clock = Clock { on, each };
        let gemm = |dtype| -> Result<Vec<AtTokens>, ModelError> {
            let layers = block_layers(hidden, dtype, on)?;
            tokens.iter().map(|&tokens| measure_gemm(&layers, tokens, clock)).collect()
        };
        let attention = |&queries: &usize| measure_attention(size, queries, whole, clock);
        Ok(Probe {
            gemm_f32: gemm(DType::F32)?,
            gemm_f16: gemm(DType::F16)?,
            gemm_bf16: gemm(DType::BF16)?,
            attention: tokens.iter().map(attention).collect::<Result<_, _>>()?,
            memory_bytes_per_s: measure_memory(hidden, whole, clock)?,
            phase_s: measure_phase(clock)?,
        })
    }
}

/// Times what runs on a device, each figure for about so long.
#[derive(Clone, Copy)]
struct Clock<'a> {
    on: &'a Device,
    each: Duration,
}

impl Clock<'_> {
    /// Median seconds of `run`, until the device is done with it.
    fn median(self, mut run: impl FnMut() -> Result<(), ModelError>) -> Result<f64, ModelError> {
        let mut run = || {
            run()?;
            Ok::<_, ModelError>(self.on.synchronize()?)
        };
        run()?;
        let (started, mut times) = (Instant::now(), Vec::new());
        let enough = |times: &[f64]| {
            times.len() >= *RUNS.end()
                || (times.len() >= *RUNS.start() && started.elapsed() >= self.each)
        };
        while !enough(&times) {
            let start = Instant::now();
            run()?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2].max(f64::MIN_POSITIVE))
    }
}

/// `[tokens, width]` of numbers that are neither zero nor large.
fn activations(tokens: usize, width: usize, on: &Device) -> Result<Tensor, ModelError> {
    let values: Vec<f32> =
        (0..tokens * width).map(|i| ((i % 251) as f32 - 125.0) / 100.0).collect();
    Ok(Tensor::from_vec(values, (1, tokens, width), on)?)
}

/// The linear layers of a block in order, with input and output width.
fn block_layers(
    hidden: usize,
    dtype: DType,
    on: &Device,
) -> Result<Vec<(Linear, usize, usize)>, ModelError> {
    let sizes = [
        (hidden, 3 * hidden),
        (hidden, hidden),
        (hidden, hidden),
        (hidden, hidden),
        (hidden, 4 * hidden),
        (4 * hidden, hidden),
    ];
    let layer = |(input, output): (usize, usize)| {
        let weight = (activations(output, input, on)?.squeeze(0)? * 0.01)?.to_dtype(dtype)?;
        let bias = Tensor::zeros(output, DType::F32, on)?;
        Ok((Linear::new(LinearWeight::new(weight)?, Some(bias)), input, output))
    };
    sizes.into_iter().map(layer).collect()
}

fn measure_gemm(
    layers: &[(Linear, usize, usize)],
    tokens: usize,
    clock: Clock<'_>,
) -> Result<AtTokens, ModelError> {
    let hidden = layers.first().map_or(0, |layer| layer.1);
    let narrow = activations(tokens, hidden, clock.on)?;
    let wide = activations(tokens, 4 * hidden, clock.on)?;
    let seconds = clock.median(|| {
        for (layer, input, _) in layers {
            layer.forward(if *input == hidden { &narrow } else { &wide })?;
        }
        Ok(())
    })?;
    let flops: usize = layers.iter().map(|(_, input, output)| 2 * tokens * input * output).sum();
    Ok(AtTokens { tokens, flops_per_s: flops as f64 / seconds })
}

fn heads_of(tokens: usize, size: BlockSize, on: &Device) -> Result<Tensor, ModelError> {
    let BlockSize { hidden, heads } = size;
    Ok(activations(tokens, hidden, on)?.reshape((1, tokens, heads, hidden / heads))?)
}

fn measure_attention(
    size: BlockSize,
    queries: usize,
    keys: usize,
    clock: Clock<'_>,
) -> Result<AtTokens, ModelError> {
    let BlockSize { hidden, heads } = size;
    let (q, k) = (heads_of(queries, size, clock.on)?, heads_of(keys, size, clock.on)?);
    let v = k.clone();
    let scale = ((hidden / heads) as f64).sqrt().recip();
    let seconds = clock.median(|| attention(&q, &k, &v, scale, None).map(drop))?;
    let flops = (4 * queries * keys * hidden) as f64;
    Ok(AtTokens { tokens: queries, flops_per_s: flops / seconds })
}

fn measure_memory(hidden: usize, tokens: usize, clock: Clock<'_>) -> Result<f64, ModelError> {
    let x = activations(tokens, hidden, clock.on)?;
    let ones = Tensor::ones(hidden, DType::F32, clock.on)?;
    let seconds = clock.median(|| Ok(layer_norm_modulate(&x, &ones, &ones, EPSILON).map(drop)?))?;
    let bytes = 2 * tokens * hidden * size_of::<f32>();
    Ok(bytes as f64 / seconds)
}

/// A block so small that its arithmetic does not count.
fn measure_phase(clock: Clock<'_>) -> Result<f64, ModelError> {
    let (tokens, on) = (4, clock.on);
    let size = BlockSize { hidden: 8, heads: 2 };
    let hidden = size.hidden;
    let layers = block_layers(hidden, DType::F32, on)?;
    let (narrow, wide) = (activations(tokens, hidden, on)?, activations(tokens, 4 * hidden, on)?);
    let ones = Tensor::ones(hidden, DType::F32, on)?;
    let q = heads_of(tokens, size, on)?;
    let seconds = clock.median(|| {
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
        let clock = Clock { on: &Device::Cpu, each: Duration::from_millis(1) };
        let layers = block_layers(32, DType::F32, clock.on)?;
        let rate = measure_gemm(&layers, 16, clock)?;
        assert!(rate.flops_per_s.is_finite() && rate.flops_per_s > 0.0);
        // Two norms, two attentions and six products are not free.
        assert!(measure_phase(clock)? > 1e-8);
        Ok(())
    }
}

//! Attention and merging out of candle's own operations.
//!
//! For devices without a kernel of ours, and as the independent reference of the tests. Blocked
//! over queries, so that memory is bounded by [`SCORES_MAX`].

use candle_core::{D, Result, Tensor};

/// Scores held at a time.
const SCORES_MAX: usize = 1 << 26;
/// Stands for `-inf` where a difference of infinities would make NaN.
const LOWEST: f64 = -1e30;

/// As [`super::attention`]; returns result and log-sum-exp.
pub(super) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    key_bias: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    let (batch, queries, heads, _) = q.dims4()?;
    let keys = k.dim(1)?;
    if keys == 0 || queries == 0 {
        let lse = Tensor::full(f32::NEG_INFINITY, (batch, heads, queries), q.device())?;
        return Ok((q.zeros_like()?, lse));
    }
    let heads_first = |tensor: &Tensor| tensor.transpose(1, 2)?.contiguous();
    let (q, k, v) = (heads_first(q)?, heads_first(k)?.t()?, heads_first(v)?);
    let bias = key_bias.map(|bias| bias.reshape((batch, 1, 1, keys))).transpose()?;
    let block = (SCORES_MAX / (batch * heads * keys)).clamp(1, queries);
    let (mut outs, mut lses) = (Vec::new(), Vec::new());
    for first in (0..queries).step_by(block) {
        let q = q.narrow(2, first, block.min(queries - first))?.contiguous()?;
        let mut scores = (q.matmul(&k)? * scale)?;
        if let Some(bias) = &bias {
            scores = scores.broadcast_add(bias)?;
        }
        let largest = scores.max_keepdim(D::Minus1)?.maximum(LOWEST)?;
        let weights = scores.broadcast_sub(&largest)?.exp()?;
        let sums = weights.sum_keepdim(D::Minus1)?;
        outs.push(weights.matmul(&v)?.broadcast_div(&sums.maximum(f64::from(f32::MIN_POSITIVE))?)?);
        lses.push((largest + sums.log()?)?.squeeze(D::Minus1)?);
    }
    let out = Tensor::cat(&outs, 2)?.transpose(1, 2)?.contiguous()?;
    Ok((out, Tensor::cat(&lses, 2)?))
}

/// As [`super::merge`], by weights relative to the larger log-sum-exp.
pub(super) fn merge(
    (out_a, lse_a): (&Tensor, &Tensor),
    (out_b, lse_b): (&Tensor, &Tensor),
) -> Result<(Tensor, Tensor)> {
    let larger = lse_a.maximum(lse_b)?.maximum(LOWEST)?;
    let (weight_a, weight_b) = ((lse_a - &larger)?.exp()?, (lse_b - &larger)?.exp()?);
    let sum = (&weight_a + &weight_b)?;
    let lse = (larger + sum.log()?)?;
    let per_token = |weight: Tensor| weight.transpose(1, 2)?.unsqueeze(D::Minus1);
    let sum = per_token(sum.maximum(f64::from(f32::MIN_POSITIVE))?)?;
    let joined = (out_a.broadcast_mul(&per_token(weight_a)?)?
        + out_b.broadcast_mul(&per_token(weight_b)?)?)?;
    Ok((joined.broadcast_div(&sum)?, lse))
}

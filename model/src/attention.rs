//! Attention with its log-sum-exp, and the joining of partial results.
//!
//! Owns the one entry point through which every block, every parallel method and both self- and
//! cross-attention go, and the checks of its arguments. Does not own where keys come from.
//!
//! Invariant: no `n x m` matrix is ever held; memory beyond the result is bounded by a tile.

mod merge;
mod plain;
#[cfg(test)]
mod tests;

use candle_core::{DType, Tensor};

pub use merge::merge;

use crate::error::ModelError;
use crate::kernels;

/// The result of attending to some keys; partial results over disjoint keys can be [`merge`]d.
#[derive(Clone, Debug)]
pub struct AttentionOutput {
    /// Weighted values, f32 `[B, n, H, d]`; 0 where there was no key to attend to.
    pub out: Tensor,
    /// Log-sum-exp of the scaled and biased scores, f32 `[B, H, n]`; `-inf` without keys.
    pub lse: Tensor,
}

/// `softmax(scale * q k^T + key_bias) v` per head: `q` is f32 `[B, n, H, d]`, `k` and `v` are f32
/// `[B, m, H, d]`, all with any strides; `key_bias` is f32 `[B, m]` and is added to the scores of
/// all heads and queries (a padding mask is a bias of -10000 or `-inf`). `m` may be 0.
///
/// Exact, in f32, blocked over queries and keys (FlashAttention, arXiv 2205.14135).
///
/// # Errors
/// When shapes or types do not fit, or the tensor backend fails.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    key_bias: Option<&Tensor>,
) -> Result<AttentionOutput, ModelError> {
    attention_in(Precision::Full, q, k, v, scale, key_bias)
}

/// The arithmetic of the two products of attention; softmax and sums are f32 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    #[default]
    Full,
    /// bfloat16 where the device has units for it (GPUs), else f32.
    Half,
}

/// As [`attention`], with products in `precision`.
///
/// # Errors
/// As [`attention`].
pub fn attention_in(
    precision: Precision,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    key_bias: Option<&Tensor>,
) -> Result<AttentionOutput, ModelError> {
    check(q, k, v, key_bias)?;
    if q.device().is_cpu() {
        let (out, lse) = kernels::flash_attention(q, k, v, scale, key_bias)?;
        return Ok(AttentionOutput { out, lse });
    }
    #[cfg(feature = "cuda")]
    if q.device().is_cuda()
        && let Some((out, lse)) = crate::cuda::attention(q, k, v, scale, key_bias, precision)?
    {
        return Ok(AttentionOutput { out, lse });
    }
    let _ = precision;
    let (out, lse) = plain::attention(q, k, v, scale, key_bias)?;
    Ok(AttentionOutput { out, lse })
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, key_bias: Option<&Tensor>) -> Result<(), ModelError> {
    let (batch, _, heads, width) = q.dims4()?;
    let keys = k.dims4()?.1;
    let expected = [batch, keys, heads, width];
    if k.dims() != expected || v.dims() != expected {
        return Err(ModelError::Invalid(format!(
            "queries {:?} need keys and values [{batch}, m, {heads}, {width}], got {:?} and {:?}",
            q.dims(),
            k.dims(),
            v.dims()
        )));
    }
    if let Some(bias) = key_bias.filter(|bias| bias.dims() != [batch, keys]) {
        return Err(ModelError::Invalid(format!(
            "key bias is {:?}, expected [{batch}, {keys}]",
            bias.dims()
        )));
    }
    match [Some(q), Some(k), Some(v), key_bias]
        .into_iter()
        .flatten()
        .find(|t| t.dtype() != DType::F32)
    {
        Some(tensor) => {
            Err(ModelError::Invalid(format!("attention takes f32, got {:?}", tensor.dtype())))
        }
        None => Ok(()),
    }
}

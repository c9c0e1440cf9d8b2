//! Joining two partial results of attention on the CPU.
//!
//! Owns the arithmetic of one row; shapes are checked in [`crate::attention`].

use candle_core::{Device, Result, Tensor};

use super::access::with_contiguous;
use super::parallel::new_rows;

/// Rows below which another thread is not worth waking.
const ROWS_PER_THREAD_MIN: usize = 64;

/// Joins `(out_a, lse_a)` and `(out_b, lse_b)`, attention of the same queries over two disjoint
/// sets of keys: f32 `[B, n, H, d]` and `[B, H, n]`.
///
/// In f32, with `d = lse_b - lse_a`: `out = a + (b - a) * sigmoid(d)` and
/// `lse = max(lse_a, lse_b) + ln_1p(exp(-|d|))`; a side of `lse = -inf` leaves the other as it is.
///
/// # Errors
/// When a tensor is not f32 on the CPU.
pub fn merge_partials(
    (out_a, lse_a): (&Tensor, &Tensor),
    (out_b, lse_b): (&Tensor, &Tensor),
) -> Result<(Tensor, Tensor)> {
    let (batch, queries, heads, width) = out_a.dims4()?;
    let flat = |tensor: &Tensor| with_contiguous(tensor, |values| Ok(values.to_vec()));
    let (lse_a, lse_b) = (flat(lse_a)?, flat(lse_b)?);
    if lse_a.len() != batch * queries * heads || out_b.dims() != out_a.dims() {
        candle_core::bail!("partial results {:?} and {:?}", out_a.dims(), out_b.dims());
    }
    let out = with_contiguous(out_a, |a| {
        with_contiguous(out_b, |b| {
            let rows = batch * queries * heads;
            Ok(new_rows(rows, width, ROWS_PER_THREAD_MIN, |row, out| {
                let (token, h) = (row / heads, row % heads);
                let (batch, query) = (token / queries, token % queries);
                let at = (batch * heads + h) * queries + query;
                let share = share_of_b(lse_a[at], lse_b[at]);
                let sides = a[row * width..][..width].iter().zip(&b[row * width..][..width]);
                for (out, (&a, &b)) in out.iter_mut().zip(sides) {
                    *out = join(a, b, share);
                }
            }))
        })
    })?;
    let lse = lse_a.iter().zip(&lse_b).map(|(&a, &b)| join_lse(a, b)).collect::<Vec<_>>();
    Ok((
        Tensor::from_vec(out, (batch, queries, heads, width), &Device::Cpu)?,
        Tensor::from_vec(lse, (batch, heads, queries), &Device::Cpu)?,
    ))
}

/// How much of the joined result is side b: `sigmoid(lse_b - lse_a)`.
fn share_of_b(lse_a: f32, lse_b: f32) -> f32 {
    if lse_b == f32::NEG_INFINITY {
        0.0
    } else if lse_a == f32::NEG_INFINITY {
        1.0
    } else {
        1.0 / (1.0 + (lse_a - lse_b).exp())
    }
}

/// A share of exactly 0 or 1 takes its side as it is, whatever the other holds.
#[inline(always)]
fn join(a: f32, b: f32, share: f32) -> f32 {
    if share == 0.0 {
        a
    } else if share == 1.0 {
        b
    } else {
        a + (b - a) * share
    }
}

fn join_lse(a: f32, b: f32) -> f32 {
    if b == f32::NEG_INFINITY {
        a
    } else if a == f32::NEG_INFINITY {
        b
    } else {
        let larger = if b > a { b } else { a };
        larger + (-(b - a).abs()).exp().ln_1p()
    }
}

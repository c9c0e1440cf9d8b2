//! Joining attention over two disjoint sets of keys (ring attention, arXiv 2310.01889).
//!
//! Owns the checks; the arithmetic is [`crate::kernels::merge_partials`] on the CPU.

use super::{AttentionOutput, plain};
use crate::error::ModelError;
use crate::kernels;

/// The attention over the keys of `a` and of `b` together, from the results over each.
///
/// Shapes are those of [`AttentionOutput`]. All in f32, finite for any gap between the two
/// log-sum-exps; a side without keys (`lse = -inf`) leaves the other unchanged to the bit.
///
/// # Errors
/// When the shapes differ, or the tensor backend fails.
pub fn merge(a: &AttentionOutput, b: &AttentionOutput) -> Result<AttentionOutput, ModelError> {
    if a.out.dims() != b.out.dims() || a.lse.dims() != b.lse.dims() {
        return Err(ModelError::Invalid(format!(
            "partial attention results of shapes {:?} and {:?} cannot be merged",
            a.out.dims(),
            b.out.dims()
        )));
    }
    let (out, lse) = if a.out.device().is_cpu() {
        kernels::merge_partials((&a.out, &a.lse), (&b.out, &b.lse))?
    } else {
        plain::merge((&a.out, &a.lse), (&b.out, &b.lse))?
    };
    Ok(AttentionOutput { out, lse })
}

//! What a step cache keeps: residuals of blocks, for the rows of each strip on their own.
//!
//! A residual is what some consecutive blocks add to the hidden states, `h_out - h_in`. Residuals
//! telescope: stages that each keep that of their own blocks add up to that of all of them. Owns
//! the tensors. Does not own when a residual is kept or used (first-block cache: diffusers
//! `FirstBlockCacheConfig`), nor how it is compared ([`crate::change`]).
//!
//! Invariant: a residual of a strip is used only after one was kept for it.

use std::ops::Range;

use candle_core::Tensor;

use crate::error::ModelError;

/// Residuals of the tokens one rank owns, strip by strip.
#[derive(Debug)]
pub struct ResidualCache {
    strips: Vec<Strip>,
}

#[derive(Debug)]
struct Strip {
    tokens: usize,
    /// f32 `[B, tokens, hidden]`.
    residual: Option<Tensor>,
}

impl ResidualCache {
    /// An empty cache for strips of `tokens` tokens each (of this rank; can be none).
    pub fn new(tokens: impl IntoIterator<Item = usize>) -> Self {
        let strips = tokens.into_iter().map(|tokens| Strip { tokens, residual: None });
        Self { strips: strips.collect() }
    }

    /// Keeps `residual`, f32 `[B, n, hidden]` with the `n` tokens of `strips` one strip after the
    /// other, in place of what was kept for them.
    ///
    /// # Errors
    /// When `n` is not the number of tokens of those strips; nothing is kept then.
    pub fn keep(&mut self, strips: Range<usize>, residual: &Tensor) -> Result<(), ModelError> {
        let (found, strips) = (residual.dim(1)?, self.strips.get_mut(strips).unwrap_or_default());
        let expected: usize = strips.iter().map(|strip| strip.tokens).sum();
        if found != expected {
            return Err(ModelError::Invalid(format!(
                "a residual of {found} tokens for strips of {expected}"
            )));
        }
        let mut start = 0;
        for strip in strips.iter_mut().filter(|strip| strip.tokens > 0) {
            strip.residual = Some(residual.narrow(1, start, strip.tokens)?.contiguous()?);
            start += strip.tokens;
        }
        Ok(())
    }

    /// What was kept for `strips`, f32 `[B, n, hidden]`; `None` for strips without tokens.
    ///
    /// # Errors
    /// When nothing was kept for one of them.
    pub fn get(&self, strips: Range<usize>) -> Result<Option<Tensor>, ModelError> {
        let held = self.strips.get(strips.clone()).unwrap_or_default();
        let parts: Option<Vec<&Tensor>> =
            held.iter().filter(|s| s.tokens > 0).map(|s| s.residual.as_ref()).collect();
        match parts.as_deref() {
            None => Err(ModelError::Invalid(format!(
                "a residual of strips {strips:?} is reused before one was kept"
            ))),
            Some([]) => Ok(None),
            Some([one]) => Ok(Some((*one).clone())),
            Some(parts) => Ok(Some(Tensor::cat(parts, 1)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn numbered(tokens: usize, first: f32) -> Result<Tensor, ModelError> {
        let values: Vec<f32> = (0..2 * tokens * 3).map(|i| first + i as f32).collect();
        Ok(Tensor::from_vec(values, (2, tokens, 3), &Device::Cpu)?)
    }

    fn values(x: &Tensor) -> Result<Vec<f32>, ModelError> {
        Ok(x.flatten_all()?.to_vec1()?)
    }

    #[test]
    fn strips_are_kept_together_or_alone() -> Result<(), ModelError> {
        let mut cache = ResidualCache::new([2, 0, 3]);
        assert!(cache.get(0..1).is_err() && cache.get(1..2)?.is_none());
        let all = numbered(5, 0.0)?;
        cache.keep(0..3, &all)?;
        assert_eq!(values(&cache.get(0..3)?.expect("kept"))?, values(&all)?);
        let fresh = numbered(3, 100.0)?;
        cache.keep(2..3, &fresh)?;
        let expected = Tensor::cat(&[&all.narrow(1, 0, 2)?, &fresh], 1)?;
        assert_eq!(values(&cache.get(0..3)?.expect("kept"))?, values(&expected)?);
        assert!(cache.keep(0..1, &fresh).is_err());
        Ok(())
    }
}

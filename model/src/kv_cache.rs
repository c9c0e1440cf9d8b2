//! The patch KV cache of PipeFusion (arXiv 2405.14430): keys and values of one block, all tokens.
//!
//! Owns the two tensors, which of their rows hold something, and how much rows change when they are
//! overwritten. Does not own when rows are written or which queries read them ([`crate::forward`]).
//!
//! Invariants: tokens lie in raster order whatever patch or rank they came from; nothing can be
//! read before every row was written once; memory is taken once, at creation.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use crate::change::{Change, on_host};
use crate::error::ModelError;

/// Keys and values of one block for the heads this rank attends with.
#[derive(Debug)]
pub struct PatchKvCache {
    keys: Tensor,
    values: Tensor,
    written: Vec<bool>,
    change: Option<Change>,
}

impl PatchKvCache {
    /// An empty cache of `tokens` tokens: two f32 tensors `[batch, tokens, heads, head_dim]`.
    ///
    /// # Errors
    /// When the memory is not there.
    pub fn new(
        batch: usize,
        tokens: usize,
        heads: usize,
        head_dim: usize,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let empty = || Tensor::zeros((batch, tokens, heads, head_dim), DType::F32, device);
        Ok(Self { keys: empty()?, values: empty()?, written: vec![false; tokens], change: None })
    }

    /// Overwrites the tokens of `token_ranges` (ascending, in raster order) with `k` and `v`, f32
    /// `[batch, n, heads, head_dim]` of any strides, `n` being the number of tokens in the ranges.
    ///
    /// # Errors
    /// When a range lies outside of the image or shapes disagree; nothing is written then.
    pub fn write(
        &mut self,
        token_ranges: &[Range<usize>],
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(), ModelError> {
        self.check(token_ranges, k, v)?;
        let mut taken = 0;
        for range in token_ranges.iter().filter(|range| !range.is_empty()) {
            for (cache, fresh) in [(&self.keys, k), (&self.values, v)] {
                let fresh = fresh.narrow(1, taken, range.len())?.contiguous()?;
                if self.written[range.clone()].iter().all(|&written| written) {
                    add_change(&mut self.change, cache, &fresh, range)?;
                }
                cache.slice_set(&fresh, 1, range.start)?;
            }
            self.written[range.clone()].fill(true);
            taken += range.len();
        }
        Ok(())
    }

    fn check(&self, ranges: &[Range<usize>], k: &Tensor, v: &Tensor) -> Result<(), ModelError> {
        let tokens = self.written.len();
        if let Some(range) = ranges.iter().find(|r| r.end > tokens || r.start > r.end) {
            return Err(ModelError::Invalid(format!(
                "tokens {range:?} are not in a cache of {tokens} tokens"
            )));
        }
        let mut expected = self.keys.dims().to_vec();
        expected[1] = ranges.iter().map(ExactSizeIterator::len).sum();
        if k.dims() != expected || v.dims() != expected {
            return Err(ModelError::Invalid(format!(
                "tokens {ranges:?} need keys and values {expected:?}, got {:?} and {:?}",
                k.dims(),
                v.dims()
            )));
        }
        Ok(())
    }

    /// Keys of all tokens, f32 `[batch, tokens, heads, head_dim]`. A view: later writes show in it.
    ///
    /// # Errors
    /// When some token was never written.
    pub fn keys(&self) -> Result<&Tensor, ModelError> {
        self.readable().map(|()| &self.keys)
    }

    /// Values of all tokens, f32 `[batch, tokens, heads, head_dim]`, as [`PatchKvCache::keys`].
    ///
    /// # Errors
    /// When some token was never written.
    pub fn values(&self) -> Result<&Tensor, ModelError> {
        self.readable().map(|()| &self.values)
    }

    fn readable(&self) -> Result<(), ModelError> {
        match self.written.iter().position(|&written| !written) {
            None => Ok(()),
            Some(token) => Err(ModelError::Invalid(format!(
                "patch kv cache is read before token {token} of {} was written; \
                 a run needs at least one sync step",
                self.written.len()
            ))),
        }
    }

    /// How much keys and values changed in the rows overwritten since this was last asked, as sums
    /// of squares; `None` when none were. Measured in host memory only.
    pub fn take_change(&mut self) -> Option<Change> {
        self.change.take()
    }

    /// Whether every token was written.
    pub fn is_filled(&self) -> bool {
        self.written.iter().all(|&written| written)
    }

    /// Forgets what was written, for another run.
    pub fn clear(&mut self) {
        self.written.fill(false);
        self.change = None;
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        2 * self.keys.elem_count() * self.keys.dtype().size_in_bytes()
    }
}

/// Adds to `change` what `fresh` changes in the tokens `range` of `cache`.
fn add_change(
    change: &mut Option<Change>,
    cache: &Tensor,
    fresh: &Tensor,
    range: &Range<usize>,
) -> Result<(), ModelError> {
    if !cache.device().is_cpu() {
        return Ok(());
    }
    let (batch, tokens, heads, head_dim) = cache.dims4()?;
    let per_token = heads * head_dim;
    let sums = on_host(cache, |cache| {
        on_host(fresh, |fresh| {
            let mut sums = Change::default();
            for image in 0..batch {
                let (old, new) = (image * tokens + range.start, image * range.len());
                let at =
                    |values, first: usize| part(values, first * per_token, range.len() * per_token);
                sums.add(Change::of_squares(at(fresh, new), at(cache, old)));
            }
            Ok(sums)
        })
    })?;
    change.get_or_insert_default().add(sums);
    Ok(())
}

fn part(values: &[f32], start: usize, len: usize) -> &[f32] {
    values.get(start..start + len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(tokens: usize, first: f32) -> Tensor {
        let values: Vec<f32> = (0..2 * tokens * 3).map(|i| first + i as f32).collect();
        Tensor::from_vec(values, (2, tokens, 1, 3), &Device::Cpu).expect("tensor")
    }

    fn one(range: Range<usize>) -> Vec<Range<usize>> {
        Vec::from([range])
    }

    #[test]
    fn rows_land_in_raster_order_and_reading_waits_for_all() -> Result<(), ModelError> {
        let mut cache = PatchKvCache::new(2, 6, 1, 3, &Device::Cpu)?;
        assert_eq!(cache.bytes(), 2 * 2 * 6 * 3 * 4);
        let fresh = numbered(4, 1.0);
        cache.write(&[0..1, 3..6], &fresh, &(&fresh * -1.0)?)?;
        assert!(!cache.is_filled());
        let error = cache.keys().expect_err("token 1 is missing").to_string();
        assert!(error.contains("token 1 of 6") && error.contains("sync step"), "{error}");
        let rest = numbered(2, 100.0);
        cache.write(&one(1..3), &rest, &rest)?;
        assert!(cache.is_filled());
        let expected = Tensor::cat(&[&fresh.narrow(1, 0, 1)?, &rest, &fresh.narrow(1, 1, 3)?], 1)?;
        let flat = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>());
        assert_eq!(flat(cache.keys()?)?, flat(&expected)?);
        assert_eq!(
            flat(&cache.values()?.narrow(1, 0, 1)?)?,
            flat(&(fresh.narrow(1, 0, 1)? * -1.0)?)?
        );
        cache.clear();
        assert!(!cache.is_filled() && cache.values().is_err());
        Ok(())
    }

    #[test]
    fn overwritten_rows_tell_how_much_they_changed() -> Result<(), ModelError> {
        let mut cache = PatchKvCache::new(2, 6, 1, 3, &Device::Cpu)?;
        let first = numbered(6, 1.0);
        cache.write(&one(0..6), &first, &first)?;
        assert_eq!(cache.take_change(), None);
        // Keys grow by a half in tokens 1, 2 and 4, values stay: of 2 x 3 tokens of 3 elements.
        let some = Tensor::cat(&[&first.narrow(1, 1, 2)?, &first.narrow(1, 4, 1)?], 1)?;
        cache.write(&[1..3, 4..5], &(&some * 1.5)?, &some)?;
        let squares = some.sqr()?.sum_all()?.to_scalar::<f32>()?;
        let change = cache.take_change().expect("a change");
        assert_eq!(change.reference, 2.0 * f64::from(squares));
        assert_eq!(change.difference, 0.25 * f64::from(squares));
        assert_eq!(cache.take_change(), None);
        Ok(())
    }

    #[test]
    fn strided_keys_are_taken_and_misfits_refused() -> Result<(), ModelError> {
        let mut cache = PatchKvCache::new(2, 4, 1, 3, &Device::Cpu)?;
        let fused = Tensor::cat(&[&numbered(4, 0.0), &numbered(4, 50.0)], 2)?;
        let (k, v) = (fused.narrow(2, 0, 1)?, fused.narrow(2, 1, 1)?);
        cache.write(&[0..2, 2..4], &k, &v)?;
        let gap = (cache.values()? - numbered(4, 50.0))?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert_eq!(gap, 0.0);
        assert!(cache.write(&one(3..5), &numbered(2, 0.0), &numbered(2, 0.0)).is_err());
        assert!(cache.write(&one(0..3), &numbered(2, 0.0), &numbered(2, 0.0)).is_err());
        assert!(cache.write(&one(0..2), &numbered(2, 0.0), &numbered(1, 0.0)).is_err());
        Ok(())
    }
}

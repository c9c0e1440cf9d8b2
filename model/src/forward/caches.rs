//! The patch KV caches of a partition, one for each block it holds.

use std::ops::Range;

use candle_core::Device;

use crate::error::ModelError;
use crate::kv_cache::PatchKvCache;

/// Size of the patch KV cache of a partition: see [`super::PartitionRun::new`].
#[derive(Clone, Debug)]
pub struct CacheShape {
    /// Blocks of the partition.
    pub blocks: Range<usize>,
    /// Batch rows.
    pub batch: usize,
    /// Tokens of the whole image.
    pub tokens: usize,
    /// Heads this rank attends with.
    pub heads: usize,
}

/// Caches by block.
pub(super) struct Caches {
    first_block: usize,
    of_block: Vec<PatchKvCache>,
}

impl Caches {
    pub(super) fn new(
        shape: &CacheShape,
        head_dim: usize,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let one = || PatchKvCache::new(shape.batch, shape.tokens, shape.heads, head_dim, device);
        let of_block = shape.blocks.clone().map(|_| one()).collect::<Result<_, _>>()?;
        Ok(Self { first_block: shape.blocks.start, of_block })
    }

    pub(super) fn get(&mut self, block: usize) -> Result<&mut PatchKvCache, ModelError> {
        let held = self.of_block.len();
        block
            .checked_sub(self.first_block)
            .and_then(|index| self.of_block.get_mut(index))
            .ok_or_else(|| {
                ModelError::Invalid(format!(
                    "block {block} has no cache here: blocks {}..{} have",
                    self.first_block,
                    self.first_block + held
                ))
            })
    }

    /// Mean over blocks of how much their rows changed, as [`super::PartitionRun::take_kv_change`].
    pub(super) fn take_change(&mut self) -> Option<f64> {
        let caches = self.of_block.iter_mut();
        let ratios: Vec<f64> =
            caches.filter_map(PatchKvCache::take_change).map(|sums| sums.ratio().sqrt()).collect();
        (!ratios.is_empty()).then(|| ratios.iter().sum::<f64>() / ratios.len() as f64)
    }

    /// Bytes of all caches.
    pub(super) fn bytes(&self) -> u64 {
        self.of_block.iter().map(|cache| cache.bytes() as u64).sum()
    }
}

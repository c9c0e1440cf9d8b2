//! What the blocks of a forward pass add to the hidden states, for a step cache.
//!
//! Owns when hidden states are looked at: before the first block of a pass and after the last.

use candle_core::Tensor;

use super::PartitionRun;
use crate::error::ModelError;
use crate::phase::ForwardShape;
use crate::transformer::Activation;

/// The residual of the newest pass.
#[derive(Default)]
pub(super) struct Residual {
    wanted: bool,
    before: Option<Tensor>,
    newest: Option<Tensor>,
}

impl Residual {
    /// `block` begins with the hidden states `x`.
    pub(super) fn enter(&mut self, shape: &ForwardShape, block: usize, x: Option<&Activation>) {
        if self.wanted && block == shape.blocks.start {
            self.before = x.map(|x| x.image.clone());
        }
    }

    /// `block` ends with the hidden states `x`.
    pub(super) fn leave(
        &mut self,
        shape: &ForwardShape,
        block: usize,
        x: Option<&Activation>,
    ) -> Result<(), ModelError> {
        if block + 1 == shape.blocks.end
            && let (Some(before), Some(x)) = (self.before.take(), x)
        {
            self.newest = Some((&x.image - before)?);
        }
        Ok(())
    }
}

impl PartitionRun {
    /// Whether [`PartitionRun::take_residual`] is going to be asked; off at first.
    pub fn keep_residuals(&mut self, wanted: bool) {
        self.residual.wanted = wanted;
    }

    /// What the blocks of the newest pass added to the hidden states of this rank's rows, f32
    /// `[B, n, hidden]`; `None` without rows or blocks, or when nobody wanted it.
    pub fn take_residual(&mut self) -> Option<Tensor> {
        self.residual.newest.take()
    }
}

//! A transformer that computes nothing: zeros of the right shapes, at once.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use ditmesh_model::conditioning::{Conditioning, LatentGrid};
use ditmesh_model::error::ModelError;
use ditmesh_model::rows::RowSet;
use ditmesh_model::spec::ModelSpec;
use ditmesh_model::transformer::{Activation, ForwardPass, Qkv, Transformer};

/// The partition `blocks` of the model `spec`.
pub(super) struct Idle {
    pub(super) spec: ModelSpec,
    pub(super) blocks: Range<usize>,
}

struct IdlePass {
    spec: ModelSpec,
    grid: LatentGrid,
    batch: usize,
}

fn zeros(shape: impl Into<candle_core::Shape>) -> Result<Tensor, ModelError> {
    Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?)
}

impl Transformer for Idle {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn blocks(&self) -> Range<usize> {
        self.blocks.clone()
    }

    fn bytes_read(&self) -> u64 {
        0
    }

    fn begin(
        &self,
        conditioning: &Conditioning,
        grid: LatentGrid,
    ) -> Result<Box<dyn ForwardPass>, ModelError> {
        let batch = conditioning.embeds.dim(0)?;
        Ok(Box::new(IdlePass { spec: self.spec.clone(), grid, batch }))
    }
}

impl ForwardPass for IdlePass {
    fn set_timestep(&mut self, _: f64) -> Result<(), ModelError> {
        Ok(())
    }

    fn embed(&self, _: &Tensor, rows: &RowSet) -> Result<Activation, ModelError> {
        let tokens = rows.len() * self.grid.width / self.grid.patch_size;
        let image = zeros((self.batch, tokens, self.spec.hidden()))?;
        Ok(Activation { image, text: None })
    }

    fn modulate(&self, _: usize, x: &Activation) -> Result<Activation, ModelError> {
        Ok(x.clone())
    }

    fn project_heads(
        &self,
        _: usize,
        x: &Activation,
        heads: Range<usize>,
    ) -> Result<Tensor, ModelError> {
        let (batch, tokens, _) = x.image.dims3()?;
        zeros((batch, tokens, heads.len(), 3, self.spec.head_dim))
    }

    fn project_qkv(&self, _: usize, x: &Activation) -> Result<Qkv, ModelError> {
        let (batch, tokens, _) = x.image.dims3()?;
        let all = zeros((batch, tokens, self.spec.heads, self.spec.head_dim))?;
        Ok(Qkv { q: all.clone(), k: all.clone(), v: all, text: None })
    }

    fn project_out(&self, _: usize, x: Activation, _: Tensor) -> Result<Activation, ModelError> {
        Ok(x)
    }

    fn project_noise(&self, _: &Activation, rows: &RowSet) -> Result<Tensor, ModelError> {
        let LatentGrid { channels, frames, width, patch_size, .. } = self.grid;
        zeros((self.batch, channels, frames, rows.len() * patch_size, width))
    }
}

//! adaLN-single: timestep (and picture size) to the modulation of all blocks.
//!
//! Owns the embedders and the one projection that all blocks share (PixArt-alpha, arXiv
//! 2310.00426, section 2.3). A block's own table is added by the forward pass.

use candle_core::{DType, Device, Tensor};

use super::config::PixArtConfig;
use super::positions::sinusoid;
use super::tensors::SINUSOID;
use crate::checkpoint::{CheckpointError, Weights};
use crate::error::ModelError;
use crate::kernels::{Epilogue, silu};
use crate::linear::Linear;

/// Timestep to modulation.
#[derive(Debug)]
pub(super) struct AdaLnSingle {
    timestep: Embedder,
    size: Option<SizeEmbedders>,
    projection: Linear,
    hidden: usize,
}

/// Embedders of the micro-conditioning.
#[derive(Debug)]
struct SizeEmbedders {
    resolution: Embedder,
    aspect_ratio: Embedder,
}

/// What a timestep means to the blocks.
pub(super) struct Modulation {
    /// Shift, scale, gate of attention and of feed-forward before a block's table is added, f32
    /// `[6, hidden]`.
    pub(super) of_blocks: Tensor,
    /// The embedded timestep, f32 `[1, hidden]`.
    pub(super) embedded: Tensor,
}

impl AdaLnSingle {
    pub(super) fn load(
        weights: &Weights,
        config: &PixArtConfig,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let hidden = config.hidden();
        let embedder = |name: &str, width: usize| {
            Embedder::load(weights, &format!("adaln_single.emb.{name}"), width, dtype, device)
        };
        let size = if config.has_additional_conditions() {
            Some(SizeEmbedders {
                resolution: embedder("resolution_embedder", hidden / 3)?,
                aspect_ratio: embedder("aspect_ratio_embedder", hidden / 3)?,
            })
        } else {
            None
        };
        let name = "adaln_single.linear";
        Ok(Self {
            timestep: embedder("timestep_embedder", hidden)?,
            size,
            projection: Linear::load(weights, name, hidden, 6 * hidden, true, dtype, device)?,
            hidden,
        })
    }

    /// The part of the embedding that the picture's size in pixels adds, f32 `[1, hidden]`.
    pub(super) fn embed_size(
        &self,
        height: usize,
        width: usize,
        device: &Device,
    ) -> Result<Option<Tensor>, ModelError> {
        let Some(size) = &self.size else { return Ok(None) };
        let (height, width) = (height as f64, width as f64);
        let resolution = size.resolution.forward(&sinusoid(&[height, width], device)?)?;
        let ratio = f64::from((height / width) as f32);
        let aspect_ratio = size.aspect_ratio.forward(&sinusoid(&[ratio], device)?)?;
        let resolution = resolution.reshape((1, 2 * (self.hidden / 3)))?;
        Ok(Some(Tensor::cat(&[resolution, aspect_ratio], 1)?))
    }

    /// The modulation at `timestep`.
    pub(super) fn modulation(
        &self,
        timestep: f64,
        size: Option<&Tensor>,
        device: &Device,
    ) -> Result<Modulation, ModelError> {
        let mut embedded = self.timestep.forward(&sinusoid(&[timestep], device)?)?;
        if let Some(size) = size {
            embedded = (embedded + size)?;
        }
        let of_blocks = self.projection.forward(&silu(&embedded)?)?;
        Ok(Modulation { of_blocks: of_blocks.reshape((6, self.hidden))?, embedded })
    }
}

/// Two linear layers with silu between them.
#[derive(Debug)]
struct Embedder {
    first: Linear,
    second: Linear,
}

impl Embedder {
    fn load(
        weights: &Weights,
        prefix: &str,
        width: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let linear = |part: &str, input: usize| {
            Linear::load(weights, &format!("{prefix}.{part}"), input, width, true, dtype, device)
        };
        Ok(Self { first: linear("linear_1", SINUSOID)?, second: linear("linear_2", width)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        self.second.forward(&self.first.forward_then(x, Epilogue::Silu)?)
    }
}

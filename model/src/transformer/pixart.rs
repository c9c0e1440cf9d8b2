//! PixArt-alpha and PixArt-Sigma (arXiv 2310.00426, 2403.04692), as diffusers stores them.
//!
//! Owns loading a partition and beginning a run on it. Does not attend to image tokens (see
//! [`crate::transformer`]) and does not know what the other partitions hold.
//!
//! Invariant: a partition reads the tensors of its own blocks only, plus the small ones that every
//! partition needs (timestep and caption projections) and those of the ends that it holds.

mod block;
mod conditions;
mod config;
mod edges;
mod pass;
mod positions;
mod tensors;
mod text;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device};

pub use config::PixArtConfig;

use self::block::Block;
use self::conditions::AdaLnSingle;
use self::edges::{FinalLayer, PatchEmbed};
use self::pass::PixArtForwardPass;
use self::text::CaptionProjection;
use super::{ForwardPass, Transformer};
use crate::checkpoint::{CheckpointError, Weights};
use crate::conditioning::{Conditioning, LatentGrid};
use crate::error::ModelError;
use crate::spec::ModelSpec;

/// A loaded partition of a PixArt transformer. Cheap to clone; weights are shared.
#[derive(Clone, Debug)]
pub struct PixArtTransformer2DModel {
    partition: Arc<Partition>,
}

/// The weights, shared by all runs.
#[derive(Debug)]
struct Partition {
    config: PixArtConfig,
    spec: ModelSpec,
    device: Device,
    /// Which blocks of the model `held` are.
    blocks: Range<usize>,
    held: Vec<Block>,
    adaln: AdaLnSingle,
    captions: CaptionProjection,
    patch_embed: Option<PatchEmbed>,
    final_layer: Option<FinalLayer>,
    bytes_read: u64,
}

impl PixArtTransformer2DModel {
    /// Loads `blocks` of the model in `weights`, matrices in `dtype`, everything else in f32.
    ///
    /// The whole checkpoint is checked against `config` by its headers; only the tensors of this
    /// partition are read.
    ///
    /// # Errors
    /// When a tensor is missing, extra or misshapen, or the model does not have those blocks.
    pub fn load(
        weights: &Weights,
        config: &PixArtConfig,
        spec: ModelSpec,
        blocks: Range<usize>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        if blocks.is_empty() || blocks.end > config.num_layers {
            return Err(CheckpointError::Config {
                path: weights.path().to_owned(),
                key: "num_layers".to_owned(),
                expected: format!("blocks {}..{} to load", blocks.start, blocks.end),
                found: config.num_layers.to_string(),
            });
        }
        weights.check(&tensors::all(config), &tensors::IGNORABLE)?;
        let before = weights.bytes_read();
        let (first, last) = (blocks.start == 0, blocks.end == config.num_layers);
        let load_block = |index| Block::load(weights, config, index, dtype, device);
        let load_embed = || PatchEmbed::load(weights, config, dtype, device);
        let load_final = || FinalLayer::load(weights, config, dtype, device);
        let mut partition = Partition {
            adaln: AdaLnSingle::load(weights, config, dtype, device)?,
            captions: CaptionProjection::load(weights, config, dtype, device)?,
            patch_embed: first.then(load_embed).transpose()?,
            held: blocks.clone().map(load_block).collect::<Result<_, _>>()?,
            final_layer: last.then(load_final).transpose()?,
            config: config.clone(),
            spec,
            device: device.clone(),
            blocks,
            bytes_read: 0,
        };
        partition.bytes_read = weights.bytes_read() - before;
        Ok(Self { partition: Arc::new(partition) })
    }
}

impl Transformer for PixArtTransformer2DModel {
    fn spec(&self) -> &ModelSpec {
        &self.partition.spec
    }

    fn blocks(&self) -> Range<usize> {
        self.partition.blocks.clone()
    }

    fn bytes_read(&self) -> u64 {
        self.partition.bytes_read
    }

    fn begin(
        &self,
        conditioning: &Conditioning,
        grid: LatentGrid,
    ) -> Result<Box<dyn ForwardPass>, ModelError> {
        let pass = PixArtForwardPass::new(Arc::clone(&self.partition), conditioning, grid)?;
        Ok(Box::new(pass))
    }
}

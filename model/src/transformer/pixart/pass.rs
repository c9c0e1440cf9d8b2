//! What one run keeps on a partition: text keys and values, positions, the timestep's modulation.
//!
//! Owns the checks of every call's shapes. The arithmetic is the partition's.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::Partition;
use super::block::{Block, TextKv};
use super::positions::Positions;
use crate::attention::Precision;
use crate::conditioning::{Conditioning, LatentGrid};
use crate::error::ModelError;
use crate::rows::RowSet;
use crate::transformer::{Activation, ForwardPass, Qkv};

/// A run of PixArt on one partition.
pub(super) struct PixArtForwardPass {
    partition: Arc<Partition>,
    grid: LatentGrid,
    batch: usize,
    text: Vec<TextKv>,
    key_bias: Tensor,
    /// Only where patches are embedded.
    positions: Option<Positions>,
    /// Embedding of the picture's size, f32 `[1, hidden]`.
    size: Option<Tensor>,
    at: Option<AtTimestep>,
}

/// What depends on the timestep.
struct AtTimestep {
    timestep: f64,
    /// f32 `[6, hidden]` per block held.
    of_blocks: Vec<Tensor>,
    /// f32 `[2, hidden]`, on the last partition.
    of_final: Option<Tensor>,
}

impl PixArtForwardPass {
    pub(super) fn new(
        partition: Arc<Partition>,
        conditioning: &Conditioning,
        grid: LatentGrid,
    ) -> Result<Self, ModelError> {
        check_grid(&partition, grid)?;
        let text = partition.captions.project(conditioning)?;
        let of_blocks = partition.held.iter().map(|block| block.text_kv(&text));
        let device = &partition.device;
        let positions = match &partition.patch_embed {
            Some(_) => Some(Positions::new(&partition.config, grid, device)?),
            None => None,
        };
        let pixels = partition.spec.vae_scale_factor;
        let (height, width) = (grid.height * pixels, grid.width * pixels);
        Ok(Self {
            batch: conditioning.embeds.dim(0)?,
            text: of_blocks.collect::<Result<_, _>>()?,
            key_bias: text.key_bias,
            positions,
            size: partition.adaln.embed_size(height, width, device)?,
            at: None,
            grid,
            partition,
        })
    }

    /// The block, its text and its modulation.
    fn block(&self, block: usize) -> Result<(&Block, &TextKv, &Tensor), ModelError> {
        let held = &self.partition.blocks;
        let missing = || {
            let (start, end) = (held.start, held.end);
            ModelError::Invalid(format!("block {block} is not in blocks {start}..{end} held here"))
        };
        let index = block.checked_sub(held.start).ok_or_else(missing)?;
        let weights = self.partition.held.get(index).ok_or_else(missing)?;
        let text = self.text.get(index).ok_or_else(missing)?;
        let modulation = self.at()?.of_blocks.get(index).ok_or_else(missing)?;
        Ok((weights, text, modulation))
    }

    fn at(&self) -> Result<&AtTimestep, ModelError> {
        self.at.as_ref().ok_or_else(|| ModelError::Invalid("no timestep was set".to_owned()))
    }

    /// Checks `x.image` and returns it; `tokens` of them, if known.
    fn image<'a>(
        &self,
        x: &'a Activation,
        tokens: Option<usize>,
    ) -> Result<&'a Tensor, ModelError> {
        let (batch, found, width) = x.image.dims3()?;
        let tokens = tokens.unwrap_or(found);
        let expected = (self.batch, tokens, self.partition.spec.hidden());
        if (batch, found, width) != expected {
            return Err(ModelError::Invalid(format!(
                "hidden states are {:?}, expected {expected:?}",
                x.image.dims()
            )));
        }
        Ok(&x.image)
    }

    fn check_rows(&self, rows: &RowSet) -> Result<(), ModelError> {
        let (end, limit) = (rows.ranges().last().map_or(0, |r| r.end), self.grid.token_rows());
        if rows.is_empty() || end > limit {
            return Err(ModelError::Invalid(format!(
                "token rows {:?} are not in an image of {limit} token rows",
                rows.ranges()
            )));
        }
        Ok(())
    }
}

fn check_grid(partition: &Partition, grid: LatentGrid) -> Result<(), ModelError> {
    let (patch, channels) = (partition.config.patch_size, partition.config.in_channels);
    let divides = |edge: usize| edge > 0 && edge.is_multiple_of(patch);
    let fits = grid.frames == 1
        && grid.patch_size == patch
        && grid.channels == channels
        && divides(grid.height)
        && divides(grid.width);
    if fits {
        return Ok(());
    }
    Err(ModelError::Invalid(format!(
        "latent {grid:?} does not fit a model of {channels} channels, 1 frame, patches of {patch}"
    )))
}

impl ForwardPass for PixArtForwardPass {
    fn precision(&self) -> Precision {
        self.partition.held.first().map_or(Precision::Full, Block::precision)
    }

    fn set_timestep(&mut self, timestep: f64) -> Result<(), ModelError> {
        if self.at.as_ref().is_some_and(|at| at.timestep == timestep) {
            return Ok(());
        }
        let partition = &self.partition;
        let modulation =
            partition.adaln.modulation(timestep, self.size.as_ref(), &partition.device)?;
        let of_block = |block: &Block| block.modulation(&modulation.of_blocks);
        let of_final = match &partition.final_layer {
            Some(layer) => Some(layer.modulation(&modulation.embedded)?),
            None => None,
        };
        let of_blocks = partition.held.iter().map(of_block).collect::<Result<_, _>>()?;
        self.at = Some(AtTimestep { timestep, of_blocks, of_final });
        Ok(())
    }

    fn embed(&self, latents: &Tensor, rows: &RowSet) -> Result<Activation, ModelError> {
        let (Some(embed), Some(positions)) = (&self.partition.patch_embed, &self.positions) else {
            return Err(ModelError::Invalid("patch embedding is not held here".to_owned()));
        };
        self.check_rows(rows)?;
        let x =
            Activation { image: embed.forward(latents, rows, self.grid, positions)?, text: None };
        self.image(&x, None)?;
        Ok(x)
    }

    fn modulate(&self, block: usize, x: &Activation) -> Result<Activation, ModelError> {
        let (weights, _, modulation) = self.block(block)?;
        let image = weights.modulate(self.image(x, None)?, modulation)?;
        Ok(Activation { image, text: None })
    }

    fn project_heads(
        &self,
        block: usize,
        modulated: &Activation,
        heads: Range<usize>,
    ) -> Result<Tensor, ModelError> {
        let (weights, ..) = self.block(block)?;
        weights.project_heads(self.image(modulated, None)?, heads)
    }

    fn project_qkv(&self, block: usize, x: &Activation) -> Result<Qkv, ModelError> {
        let modulated = self.modulate(block, x)?;
        let all = self.project_heads(block, &modulated, 0..self.partition.spec.heads)?;
        let part = |index| all.narrow(3, index, 1)?.squeeze(3);
        Ok(Qkv { q: part(0)?, k: part(1)?, v: part(2)?, text: None })
    }

    fn project_out(
        &self,
        block: usize,
        x: Activation,
        attended: Tensor,
    ) -> Result<Activation, ModelError> {
        let (weights, text, modulation) = self.block(block)?;
        let tokens = self.image(&x, None)?.dim(1)?;
        let spec = &self.partition.spec;
        let expected = [self.batch, tokens, spec.heads, spec.head_dim];
        if attended.dims() != expected {
            return Err(ModelError::Invalid(format!(
                "attention output is {:?}, expected {expected:?}",
                attended.dims()
            )));
        }
        let image = weights.project_out(x.image, attended, modulation, text, &self.key_bias)?;
        Ok(Activation { image, text: None })
    }

    fn project_noise(&self, x: &Activation, rows: &RowSet) -> Result<Tensor, ModelError> {
        let (Some(layer), Some(modulation)) = (&self.partition.final_layer, &self.at()?.of_final)
        else {
            return Err(ModelError::Invalid("the final layer is not held here".to_owned()));
        };
        self.check_rows(rows)?;
        let image = self.image(x, Some(rows.len() * self.grid.tokens_per_row()))?;
        layer.forward(image, rows, self.grid, modulation)
    }
}

//! The two ends of the transformer: latents to tokens and tokens to predicted noise.
//!
//! Owns patch embedding and the final layer, for any set of token rows.

use candle_core::{DType, Device, Tensor};

use super::config::PixArtConfig;
use super::positions::Positions;
use crate::checkpoint::{CheckpointError, Weights};
use crate::conditioning::LatentGrid;
use crate::error::ModelError;
use crate::kernels::layer_norm_modulate;
use crate::linear::{Linear, LinearWeight};
use crate::rows::RowSet;

/// Epsilon of the final norm; not configurable in diffusers.
const FINAL_EPS: f64 = 1e-6;

/// The convolution that makes tokens of latent patches, as a linear layer.
#[derive(Debug)]
pub(super) struct PatchEmbed {
    projection: Linear,
}

impl PatchEmbed {
    pub(super) fn load(
        weights: &Weights,
        config: &PixArtConfig,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let (hidden, patch, channels) = (config.hidden(), config.patch_size, config.in_channels);
        let name = "pos_embed.proj.weight";
        let weight = weights
            .get(name, &[hidden, channels, patch, patch], dtype, device)?
            .reshape((hidden, channels * patch * patch))
            .map_err(ModelError::from)
            .and_then(LinearWeight::new)
            .map_err(|error| CheckpointError::Tensor {
                path: weights.path().to_owned(),
                tensor: name.to_owned(),
                source: Box::new(candle_core::Error::Msg(error.to_string())),
            })?;
        let bias = weights.get("pos_embed.proj.bias", &[hidden], DType::F32, device)?;
        Ok(Self { projection: Linear::new(weight, Some(bias)) })
    }

    /// f32 `[B, C, 1, rows*patch_size, W]` to `[B, n, hidden]`.
    pub(super) fn forward(
        &self,
        latents: &Tensor,
        rows: &RowSet,
        grid: LatentGrid,
        positions: &Positions,
    ) -> Result<Tensor, ModelError> {
        let (count, patch) = (rows.len(), grid.patch_size);
        let batch = latents.dims().first().copied().unwrap_or(0);
        let expected = [batch, grid.channels, 1, count * patch, grid.width];
        if latents.dims() != expected {
            return Err(ModelError::Invalid(format!(
                "latent rows are {:?}, expected {expected:?} for {count} token rows",
                latents.dims()
            )));
        }
        let columns = grid.width / patch;
        let patches = latents
            .reshape(&[batch, grid.channels, count, patch, columns, patch][..])?
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .reshape((batch, count * columns, grid.channels * patch * patch))?;
        let tokens = self.projection.forward(&patches)?;
        Ok(tokens.broadcast_add(&positions.of_rows(rows)?)?)
    }
}

/// Final norm, modulation, projection and unpatchify.
#[derive(Debug)]
pub(super) struct FinalLayer {
    /// f32 `[2, hidden]`: shift, scale.
    table: Tensor,
    projection: Linear,
    output_channels: usize,
}

impl FinalLayer {
    pub(super) fn load(
        weights: &Weights,
        config: &PixArtConfig,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let (hidden, output_channels) = (config.hidden(), config.output_channels());
        let width = config.patch_size * config.patch_size * output_channels;
        Ok(Self {
            table: weights.get("scale_shift_table", &[2, hidden], DType::F32, device)?,
            projection: Linear::load(weights, "proj_out", hidden, width, true, dtype, device)?,
            output_channels,
        })
    }

    /// The final modulation at a timestep, f32 `[2, hidden]`: shift, scale.
    pub(super) fn modulation(&self, embedded: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.table.broadcast_add(embedded)?)
    }

    /// `[B, n, hidden]` to f32 `[B, C, 1, rows*patch_size, W]` without learned sigma.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        rows: &RowSet,
        grid: LatentGrid,
        modulation: &Tensor,
    ) -> Result<Tensor, ModelError> {
        let (shift, scale) = (modulation.get(0)?, modulation.get(1)?);
        let normed = layer_norm_modulate(x, &shift, &scale, FINAL_EPS)?;
        let (batch, count, patch) = (x.dim(0)?, rows.len(), grid.patch_size);
        let shape = [batch, count, grid.width / patch, patch, patch, self.output_channels];
        Ok(self
            .projection
            .forward(&normed)?
            .reshape(&shape[..])?
            .narrow(5, 0, grid.channels)?
            .permute(vec![0, 5, 1, 3, 2, 4])?
            .reshape((batch, grid.channels, 1, count * patch, grid.width))?)
    }
}

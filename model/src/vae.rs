//! The decoder of an AutoencoderKL: from latents to pixels.
//!
//! Owns the decoder's structure and the conversion to 8-bit pixels. Does not own the encoder (its
//! tensors may be in the file and are not read), nor tiling. Invariants: convolutions see rows
//! beyond a band only through [`Halo`], and group norms see a picture only through [`Moments`], so
//! that bands of rows can be decoded apart once both are exchanged; activations are f32.

mod attention;
mod blocks;
mod config;
mod conv;
mod group_norm;
mod planes;
mod shapes;

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use self::blocks::{Loader, MidBlock, UpBlock};
use crate::checkpoint::{CheckpointError, Weights};
use crate::error::ModelError;
use crate::kernels::silu;
pub use config::AutoencoderKlConfig;
pub use conv::{Conv2d, Halo};
pub use group_norm::{GroupNorm, Moments};

/// File stem of diffusers' weight files.
const STEM: &str = "diffusion_pytorch_model";

/// A loaded VAE decoder.
#[derive(Debug)]
pub struct VaeDecoder {
    config: AutoencoderKlConfig,
    post_quant_conv: Option<Conv2d>,
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    bytes_read: u64,
}

impl VaeDecoder {
    /// Loads `config.json` and the decoder's tensors from the component folder `dir`.
    ///
    /// The decoder computes in f32 whatever `dtype` says (`force_upcast` of diffusers: its
    /// activations overflow f16), and holds its weights in f32 too, since they are few.
    ///
    /// # Errors
    /// When the configuration is not supported, or a tensor is missing, misshapen or extra.
    pub fn load(dir: &Path, _dtype: DType, device: &Device) -> Result<Self, CheckpointError> {
        let config = AutoencoderKlConfig::load(dir)?;
        let weights = Weights::open(dir, STEM)?;
        weights.check(&shapes::decoder(&config, &weights), &["encoder.", "quant_conv."])?;
        let loader = Loader { weights: &weights, groups: config.norm_num_groups, device };
        let widths = config.widths();
        let latent = config.latent_channels;
        let post_quant_conv = match config.use_post_quant_conv {
            true => Some(loader.conv("post_quant_conv", latent, latent, 1)?),
            false => None,
        };
        let up_blocks = widths.iter().enumerate().map(|(index, &width)| {
            let input = widths[index.saturating_sub(1)];
            let upsample = index + 1 < widths.len();
            UpBlock::load(&loader, index, input, width, config.layers_per_block + 1, upsample)
        });
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        Ok(Self {
            post_quant_conv,
            conv_in: loader.conv("decoder.conv_in", latent, first, 3)?,
            mid_block: MidBlock::load(&loader, first, config.mid_block_add_attention)?,
            up_blocks: up_blocks.collect::<Result<_, _>>()?,
            norm_out: loader.group_norm("decoder.conv_norm_out", last)?,
            conv_out: loader.conv("decoder.conv_out", last, config.out_channels, 3)?,
            bytes_read: weights.bytes_read(),
            config,
        })
    }

    /// Undoes the scaling of the pipeline's latents (`latents / scaling_factor + shift_factor`)
    /// and decodes them, see [`VaeDecoder::decode`].
    ///
    /// # Errors
    /// As [`VaeDecoder::decode`].
    pub fn decode_latents(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        let latents = latents.to_dtype(DType::F32)?;
        let scale = Tensor::new(self.config.scaling_factor as f32, latents.device())?;
        let latents = latents.broadcast_div(&scale)?;
        self.decode(&(latents + self.config.shift_factor.unwrap_or(0.0))?)
    }

    /// Decodes latents that are unscaled already: `[B, C, 1, H, W]` or `[B, C, H, W]`, any float
    /// type, to f32 `[B, 3, H * f, W * f]` of about -1 to 1, not clamped, where `f` is
    /// [`VaeDecoder::scale_factor`].
    ///
    /// # Errors
    /// When the shape is another, or the tensor backend fails.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        let channels = self.config.latent_channels;
        let latents = match latents.dims() {
            [_, c, 1, _, _] if *c == channels => latents.squeeze(2)?,
            [_, c, _, _] if *c == channels => latents.clone(),
            other => {
                return Err(ModelError::Invalid(format!(
                    "latents have shape {other:?}, expected [B, {channels}, 1, H, W] \
                     or [B, {channels}, H, W]"
                )));
            }
        };
        let mut x = latents.to_dtype(DType::F32)?.contiguous()?;
        if let Some(conv) = &self.post_quant_conv {
            x = conv.forward(&x, &Halo::default())?;
        }
        x = self.conv_in.forward(&x, &Halo::default())?;
        x = self.mid_block.forward(x)?;
        for block in &self.up_blocks {
            x = block.forward(x)?;
        }
        x = silu(&self.norm_out.forward(&x)?)?;
        self.conv_out.forward(&x, &Halo::default())
    }

    /// Sizes of this decoder.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// Pixels per latent pixel, on each side.
    pub fn scale_factor(&self) -> usize {
        self.config.scale_factor()
    }

    /// Stored bytes of the weights read.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }
}

/// Pixels of decoded images `[B, 3, H, W]` as 8-bit RGB, row by row, image after image: `B * H * W
/// * 3` bytes, rounded as diffusers does (`((x / 2 + 0.5).clamp(0, 1) * 255).round()`).
///
/// # Errors
/// When the shape is another, or the tensor backend fails.
pub fn to_rgb8(image: &Tensor) -> Result<Vec<u8>, ModelError> {
    let (_, channels, _, _) = image.dims4()?;
    if channels != 3 {
        return Err(ModelError::Invalid(format!("image has {channels} channels, expected 3")));
    }
    let pixels = image.permute((0, 2, 3, 1))?.to_dtype(DType::F32)?.flatten_all()?;
    let to_byte = |x: f32| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    Ok(pixels.to_vec1::<f32>()?.into_iter().map(to_byte).collect())
}

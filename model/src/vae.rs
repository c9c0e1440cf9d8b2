//! The decoder of an AutoencoderKL: from latents to pixels, whole or in bands of rows.
//!
//! Owns the decoder's structure and the conversion to 8-bit pixels. Does not own the encoder (its
//! tensors may be in the file and are not read), nor tiling. Invariants: convolutions see rows
//! beyond a band only as rows of the neighbours, and group norms see a picture only through
//! [`Moments`], so that bands of rows are decoded apart once both are exchanged; activations are
//! f32, so the memory of a member falls with its band.

mod attention;
mod blocks;
mod config;
mod conv;
mod decode;
pub mod exchange;
mod group_norm;
pub mod phase;
mod planes;
mod shapes;
mod spec;

use std::path::Path;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};

use self::attention::PixelAttention;
use self::blocks::{Loader, NormConv, Resnet};
use self::decode::Walk;
use self::exchange::{AloneInBand, BandExchanger};
use self::phase::DecodeShape;
use crate::checkpoint::{Checkpoint, CheckpointError, Weights};
use crate::error::ModelError;
pub use config::AutoencoderKlConfig;
pub use conv::{COLUMN_BYTES_MAX, Conv2d, Halo};
pub use group_norm::{GroupNorm, Moments};
pub use spec::VaeSpec;

/// File stem of diffusers' weight files.
const STEM: &str = "diffusion_pytorch_model";

/// A loaded VAE decoder.
#[derive(Debug)]
pub struct VaeDecoder {
    config: AutoencoderKlConfig,
    spec: VaeSpec,
    post_quant_conv: Option<Conv2d>,
    conv_in: Conv2d,
    /// In order of execution: the middle block's, then level after level.
    resnets: Vec<Resnet>,
    attention: Option<PixelAttention>,
    /// One for each level but the last.
    upsamples: Vec<Conv2d>,
    out: NormConv,
    bytes_read: u64,
}

/// One member's part of a decoding.
#[derive(Clone, Copy, Debug)]
pub struct DecodeTask<'a> {
    /// The bands.
    pub shape: &'a DecodeShape,
    /// Longest single wait for another member.
    pub wait_limit: Duration,
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
        Self::load_with(dir, &Weights::open(dir, STEM)?, device)
    }

    /// The same of an open pipeline.
    ///
    /// # Errors
    /// As [`VaeDecoder::load`].
    pub fn load_from(checkpoint: &Checkpoint, device: &Device) -> Result<Self, CheckpointError> {
        let weights = checkpoint.weights("vae", STEM)?;
        Self::load_with(&checkpoint.component_dir("vae"), &weights, device)
    }

    fn load_with(dir: &Path, weights: &Weights, device: &Device) -> Result<Self, CheckpointError> {
        let config = AutoencoderKlConfig::load(dir)?;
        let spec = config.spec();
        weights.check(&shapes::decoder(&config, weights), &["encoder.", "quant_conv."])?;
        let loader = Loader { weights, groups: spec.groups, device };
        let latent = spec.latent_channels;
        let (first, last) = (spec.widths[0], spec.widths[spec.widths.len() - 1]);
        let post_quant_conv = match config.use_post_quant_conv {
            true => Some(loader.conv("post_quant_conv", latent, latent, 1)?),
            false => None,
        };
        let resnets = spec.resnets().into_iter().enumerate().map(|(index, (input, output))| {
            Resnet::load(&loader, &shapes::resnet_prefix(&spec, index), input, output)
        });
        let upsamples =
            spec.widths[1..].iter().zip(&spec.widths).enumerate().map(|(level, (_, &width))| {
                loader.conv(&shapes::upsample_prefix(level), width, width, 3)
            });
        let names = ["decoder.conv_norm_out", "decoder.conv_out"];
        Ok(Self {
            post_quant_conv,
            conv_in: loader.conv("decoder.conv_in", latent, first, 3)?,
            resnets: resnets.collect::<Result<_, _>>()?,
            attention: match spec.mid_attention {
                true => Some(PixelAttention::load(&loader, shapes::ATTENTION, first)?),
                false => None,
            },
            upsamples: upsamples.collect::<Result<_, _>>()?,
            out: NormConv::load(&loader, names, last, config.out_channels)?,
            bytes_read: weights.bytes_read(),
            spec,
            config,
        })
    }

    /// Undoes the scaling of the pipeline's latents (`latents / scaling_factor + shift_factor`)
    /// and decodes them, see [`VaeDecoder::decode`].
    ///
    /// # Errors
    /// As [`VaeDecoder::decode`].
    pub fn decode_latents(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        self.decode(&self.unscale(latents)?)
    }

    /// Decodes latents that are unscaled already: `[B, C, 1, H, W]` or `[B, C, H, W]`, any float
    /// type, to f32 `[B, 3, H * f, W * f]` of about -1 to 1, not clamped, where `f` is
    /// [`VaeDecoder::scale_factor`].
    ///
    /// # Errors
    /// When the shape is another, or the tensor backend fails.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        let latents = self.image_latents(latents)?;
        let (batch, _, height, width) = latents.dims4()?;
        let shape = DecodeShape::new(batch, height, width, 1, 0);
        let task = DecodeTask { shape: &shape, wait_limit: Duration::ZERO };
        Walk::new(self, &task, latents).run(&mut AloneInBand)
    }

    /// Decodes one member's band. `rows` are scaled latents, as the pipeline has them, of the rows
    /// [`DecodeShape::latent_rows`]: `[B, C, 1, rows, W]` or `[B, C, rows, W]`. The result is the
    /// band's rows of what [`VaeDecoder::decode_latents`] gives for the whole, up to the order of
    /// float additions: f32 `[B, 3, band * f, W * f]`; `None` for a member without rows.
    ///
    /// Method: xDiT's parallel VAE (arXiv 2411.01738, section 4.3), with group norms over the
    /// whole picture.
    ///
    /// # Errors
    /// When shapes differ from the task's, a member is lost, or the run is aborted
    /// ([`ModelError::Aborted`], looked at before every layer).
    pub fn decode_band(
        &self,
        rows: &Tensor,
        task: &DecodeTask<'_>,
        exchanger: &mut dyn BandExchanger,
    ) -> Result<Option<Tensor>, ModelError> {
        let shape = task.shape;
        if shape.band().is_empty() {
            return Ok(None);
        }
        let rows = self.image_latents(&self.unscale(rows)?)?;
        let own = shape.latent_rows(shape.member).len();
        let expected = [shape.batch, self.spec.latent_channels, own, shape.width];
        if rows.dims() != expected {
            return Err(ModelError::Invalid(format!(
                "latents of member {} have shape {:?}, the plan says {expected:?}",
                shape.member,
                rows.dims()
            )));
        }
        Walk::new(self, task, rows).run(exchanger).map(Some)
    }

    fn unscale(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        let latents = latents.to_dtype(DType::F32)?;
        let scale = Tensor::new(self.config.scaling_factor as f32, latents.device())?;
        let latents = latents.broadcast_div(&scale)?;
        Ok((latents + self.config.shift_factor.unwrap_or(0.0))?)
    }

    /// f32 `[B, C, H, W]`, contiguous, without the frame axis.
    fn image_latents(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
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
        Ok(latents.to_dtype(DType::F32)?.contiguous()?)
    }

    fn resnet(&self, index: usize) -> Result<&Resnet, ModelError> {
        let missing = || ModelError::Invalid(format!("the decoder has no resnet {index}"));
        self.resnets.get(index).ok_or_else(missing)
    }

    /// Sizes, as planning needs them.
    pub fn spec(&self) -> &VaeSpec {
        &self.spec
    }

    /// The configuration of this decoder.
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

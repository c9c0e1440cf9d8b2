//! Sizes of a VAE decoder, as far as planning its work needs them.
//!
//! Owns widths and counts. Does not own tensors, nor how a configuration file spells them
//! ([`super::AutoencoderKlConfig`]).

/// Sizes of an AutoencoderKL's decoder. The default is the decoder of Stable Diffusion and PixArt
/// (`block_out_channels` 128, 256, 512, 512).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaeSpec {
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Width of each resolution level, the coarsest first; each level but the last doubles the
    /// resolution.
    pub widths: Vec<usize>,
    /// Resnets of a level.
    pub resnets_per_level: usize,
    /// Groups of every group norm.
    pub groups: usize,
    /// Whether the middle block attends over all latent pixels.
    pub mid_attention: bool,
}

impl Default for VaeSpec {
    fn default() -> Self {
        Self {
            latent_channels: 4,
            widths: vec![512, 512, 256, 128],
            resnets_per_level: 3,
            groups: 32,
            mid_attention: true,
        }
    }
}

/// Resnets of the middle block.
pub(super) const MID_RESNETS: usize = 2;
/// Channels of a picture.
pub(super) const IMAGE_CHANNELS: usize = 3;

impl VaeSpec {
    /// Pixels per latent pixel, on each side.
    pub fn scale_factor(&self) -> usize {
        1 << self.widths.len().saturating_sub(1)
    }

    /// Input and output width of each resnet, in order of execution: those of the middle block,
    /// then level after level.
    pub fn resnets(&self) -> Vec<(usize, usize)> {
        let first = self.widths.first().copied().unwrap_or(0);
        let mut resnets = vec![(first, first); MID_RESNETS];
        let mut input = first;
        for &width in &self.widths {
            for _ in 0..self.resnets_per_level {
                resnets.push((input, width));
                input = width;
            }
        }
        resnets
    }
}

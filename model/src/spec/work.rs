//! How much a model computes and holds, for a planner: multiply-adds and parameters, block by
//! block.
//!
//! Owns counts only. A *weight* here is one parameter of a linear layer; a token that passes the
//! layer costs one multiply-add for each. Self-attention is not counted here, since it depends on
//! which queries meet which keys. Norms, biases and tables are left out of the multiply-adds (they
//! are well under a hundredth) but not of the parameters.

/// One transformer block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockWork {
    /// Weights an image token meets before self-attention.
    pub qkv: u64,
    /// Weights an image token meets after self-attention.
    pub out: u64,
    /// The same of a text token that runs beside the image; 0 without a joint stream.
    pub text_qkv: u64,
    /// The same after self-attention.
    pub text_out: u64,
    /// Whether image tokens attend to fixed text keys and values.
    pub cross_attention: bool,
    /// Parameters held.
    pub parameters: u64,
}

/// The transformer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelWork {
    /// Blocks in order.
    pub blocks: Vec<BlockWork>,
    /// Weights an image token meets in the patch embedding.
    pub embed: u64,
    /// Weights an image token meets in the final projection.
    pub project: u64,
    /// Parameters outside the blocks.
    pub other_parameters: u64,
    /// Latent frames; 1 for pictures.
    pub frames: usize,
}

impl ModelWork {
    /// Parameters of the whole transformer.
    pub fn parameters(&self) -> u64 {
        self.other_parameters + self.blocks.iter().map(|block| block.parameters).sum::<u64>()
    }
}

/// Text encoders, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextEncoderWork {
    /// Parameters, embedding table included.
    pub parameters: u64,
    /// Weights each token meets.
    pub weights: u64,
}

/// The VAE decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecoderWork {
    /// Parameters.
    pub parameters: u64,
    /// Multiply-adds of all convolutions for one pixel of the picture.
    pub macs_per_pixel: u64,
    /// Most elements of activations alive at once for one pixel, without what a convolution
    /// unfolds.
    pub elements_per_pixel: u64,
    /// Elements that the widest convolution would unfold for one pixel.
    pub unfolded_per_pixel: u64,
    /// Width of the attention in the middle, over latent pixels; 0 when there is none.
    pub attention_width: u64,
}

impl DecoderWork {
    /// A decoder of diffusers' `AutoencoderKL`: `widths` of its blocks from the picture inwards, as
    /// `block_out_channels` lists them.
    pub fn of_autoencoder_kl(
        widths: &[usize],
        layers_per_block: usize,
        latent_channels: usize,
        attention: bool,
    ) -> Self {
        let widths: Vec<u64> = widths.iter().map(|&width| width as u64).collect();
        let (Some(&outer), Some(&inner)) = (widths.first(), widths.last()) else {
            return Self::default();
        };
        // Weights of 3x3 convolutions at each resolution, counted from the latent's.
        let mut parameters = 9 * latent_channels as u64 * inner + 4 * 9 * inner * inner;
        if attention {
            parameters += 4 * inner * inner;
        }
        let levels = widths.len() as u32;
        let share = |level: u32| 4u64.pow(levels - 1 - level.min(levels - 1));
        let mut macs_per_pixel = parameters / share(0);
        let mut previous = inner;
        let (mut elements_per_pixel, mut unfolded_per_pixel) = (0, 0);
        for (level, &width) in widths.iter().rev().enumerate() {
            let level = level as u32;
            let mut weights = 9 * (previous * width + width * width);
            if previous != width {
                weights += previous * width;
            }
            weights += layers_per_block as u64 * 18 * width * width;
            // The first half of a resnet holds its input, that normed, and with the edges put on;
            // the second the input for the shortcut beside the same of its own.
            let held = (3 * previous + width).max(previous + 4 * width);
            elements_per_pixel = elements_per_pixel.max(held / share(level));
            unfolded_per_pixel = unfolded_per_pixel.max(9 * previous.max(width) / share(level));
            macs_per_pixel += weights / share(level);
            if level + 1 < levels {
                let upsample = 9 * width * width;
                macs_per_pixel += upsample / share(level + 1);
                let held = 3 * width + width / 4;
                elements_per_pixel = elements_per_pixel.max(held / share(level + 1));
                unfolded_per_pixel = unfolded_per_pixel.max(9 * width / share(level + 1));
                weights += upsample;
            }
            parameters += weights;
            previous = width;
        }
        let last = 9 * outer * 3;
        Self {
            parameters: parameters + last,
            macs_per_pixel: macs_per_pixel + last,
            elements_per_pixel,
            unfolded_per_pixel,
            attention_width: if attention { inner } else { 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decoder_of_stable_diffusion_has_its_published_size() {
        let work = DecoderWork::of_autoencoder_kl(&[128, 256, 512, 512], 2, 4, true);
        // 49,490,179 with biases and norms.
        let published = 49_490_179_f64;
        assert!((work.parameters as f64 / published - 1.0).abs() < 0.01, "{}", work.parameters);
        assert!((3_000_000..7_000_000).contains(&work.macs_per_pixel), "{}", work.macs_per_pixel);
    }
}

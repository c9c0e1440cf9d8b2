//! What the denoiser is told about the picture: text embeddings, masks and the latent's geometry.
//!
//! Owns plain values only; who made them (text encoder, a file of the user) is not known here.

use candle_core::Tensor;

/// The text the transformer attends to, one batch row per guidance branch held by this rank.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// `prompt_embeds`, f32 `[B, L, caption_channels]`. Under guidance on one rank row 0 is the
    /// negative prompt and row 1 the prompt.
    pub embeds: Tensor,
    /// `prompt_attention_mask`, f32 `[B, L]`, 1 for a token and 0 for padding.
    pub mask: Tensor,
    /// Pooled text embedding `[B, pooled]` for the families that use one (SD3, FLUX).
    pub pooled: Option<Tensor>,
}

/// Geometry of one latent: `[B, channels, frames, height, width]` and how it is cut into tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentGrid {
    /// Latent channels.
    pub channels: usize,
    /// Latent frames, 1 for images.
    pub frames: usize,
    /// Latent rows.
    pub height: usize,
    /// Latent columns.
    pub width: usize,
    /// Edge of a transformer patch in latent pixels.
    pub patch_size: usize,
}

impl LatentGrid {
    /// Token rows (the last is padded away by nobody: height must divide by `patch_size`).
    pub fn token_rows(&self) -> usize {
        self.height / self.patch_size
    }

    /// Tokens in one token row over all frames.
    pub fn tokens_per_row(&self) -> usize {
        self.frames * (self.width / self.patch_size)
    }

    /// Tokens of the whole latent.
    pub fn tokens(&self) -> usize {
        self.token_rows() * self.tokens_per_row()
    }

    /// Latent elements in one token row of one batch row.
    pub fn elements_per_row(&self) -> usize {
        self.channels * self.frames * self.patch_size * self.width
    }
}

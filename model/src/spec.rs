//! What a plan needs to know of a model, read from its configuration alone (no weights).
//!
//! Owns sizes and counts. Does not own how a block computes, nor any tensor.

pub mod description;
pub mod work;

use crate::vae::VaeSpec;

/// Which DiT family a model belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// PixArt-alpha and PixArt-Sigma.
    PixArt,
    /// Stable Diffusion 3; can be planned, not run.
    StableDiffusion3,
    /// FLUX.1; can be planned, not run.
    Flux,
    /// CogVideoX; can be planned, not run.
    CogVideoX,
}

/// How text reaches the image tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TextStream {
    /// Cross-attention to fixed keys and values (PixArt, HunyuanDiT).
    Cross,
    /// Text tokens run through the blocks beside the image (SD3, FLUX, CogVideoX).
    Joint,
}

/// Digest of a model's configuration and weight index; names a loaded model on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(pub u64);

/// Sizes of a pipeline: transformer, text encoder and VAE.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Identity of configuration and weights.
    pub id: ModelId,
    /// Family.
    pub family: Family,
    /// How text is attended to.
    pub text_stream: TextStream,
    /// Whether blocks feed their mirror block (HunyuanDiT).
    pub long_skips: bool,
    /// Transformer blocks.
    pub blocks: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Edge of a transformer patch in latent pixels.
    pub patch_size: usize,
    /// Latent channels (also of the model output once learned sigma is dropped).
    pub latent_channels: usize,
    /// Latent edge the model was trained at.
    pub sample_size: usize,
    /// Pixels per latent pixel.
    pub vae_scale_factor: usize,
    /// Sizes of the VAE decoder.
    pub vae: VaeSpec,
    /// Earlier model outputs that the pipeline's noise scheduler keeps, at most.
    pub solver_history: usize,
    /// Width of the text embeddings.
    pub caption_channels: usize,
    /// Text tokens a prompt is padded to (`max_sequence_length` of the diffusers pipeline).
    pub text_tokens: usize,
    /// Stored bytes of one block's weights.
    pub block_bytes: u64,
    /// Stored bytes of the transformer outside its blocks.
    pub other_bytes: u64,
}

impl ModelSpec {
    /// Width of the hidden states, `heads * head_dim`.
    pub fn hidden(&self) -> usize {
        self.heads * self.head_dim
    }
}

//! The encoder half of T5 (Raffel et al. 2020; v1.1 with gated gelu), with a padding mask.
//!
//! Owns embedding, blocks and final norm. Activations are f32; weights keep the type they are
//! loaded in. Does not own tokenization.

mod config;
mod layers;

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use self::layers::{Block, Loader, RelativeBias, RmsNorm};
use crate::checkpoint::{CheckpointError, Weights};
use crate::error::ModelError;
use crate::proceed::Proceed;
pub use config::{FeedForward, T5EncoderConfig};

/// File stem of transformers' weight files.
pub(super) const STEM: &str = "model";
/// The names the embedding goes by: as T5 stores it, and as the encoder alone would.
const EMBEDDINGS: [&str; 2] = ["shared.weight", "encoder.embed_tokens.weight"];

/// A loaded T5 encoder.
#[derive(Debug)]
pub struct T5Encoder {
    config: T5EncoderConfig,
    /// `[vocab, d_model]` in the type it was loaded in.
    embedding: Tensor,
    bias: RelativeBias,
    blocks: Vec<Block>,
    norm: RmsNorm,
    bytes_read: u64,
}

impl T5Encoder {
    /// Loads `config.json` and `model.safetensors` (or its shards) from `dir`. Weight matrices are
    /// held in `dtype` (f32, f16 or bf16), norms in f32. A decoder beside the encoder is ignored.
    ///
    /// `proceed` is asked before each block.
    ///
    /// # Errors
    /// When the configuration is not supported, or a tensor is missing, misshapen or extra; what
    /// `proceed` says.
    pub fn load(
        dir: &Path,
        dtype: DType,
        device: &Device,
        proceed: Proceed<'_>,
    ) -> Result<Self, ModelError> {
        Self::load_with(dir, Weights::open(dir, STEM)?, dtype, device, proceed)
    }

    /// The same with weights that were opened before.
    pub(super) fn load_with(
        dir: &Path,
        weights: Weights,
        dtype: DType,
        device: &Device,
        proceed: Proceed<'_>,
    ) -> Result<Self, ModelError> {
        let (config, embedding) = check(dir, &weights)?;
        let loader = Loader { weights: &weights, config: &config, dtype, device };
        let vocabulary = [config.vocab_size, config.d_model];
        let block = |index| {
            proceed()?;
            Ok(Block::load(&loader, index)?)
        };
        Ok(Self {
            blocks: (0..config.num_layers).map(block).collect::<Result<_, ModelError>>()?,
            embedding: weights.get(embedding, &vocabulary, dtype, device)?,
            bias: RelativeBias::load(&loader)?,
            norm: RmsNorm::load(&loader, "encoder.final_layer_norm")?,
            bytes_read: weights.bytes_read(),
            config,
        })
    }

    /// Checks names and shapes of everything that [`T5Encoder::load`] reads, and reads none of it.
    ///
    /// # Errors
    /// When the configuration is not supported, or a tensor is missing, misshapen or extra.
    pub fn check(dir: &Path) -> Result<T5EncoderConfig, CheckpointError> {
        Self::check_with(dir, &Weights::open(dir, STEM)?)
    }

    /// The same with weights that were opened before.
    pub(super) fn check_with(
        dir: &Path,
        weights: &Weights,
    ) -> Result<T5EncoderConfig, CheckpointError> {
        Ok(check(dir, weights)?.0)
    }

    /// Sizes of this encoder.
    pub fn config(&self) -> &T5EncoderConfig {
        &self.config
    }

    /// Stored bytes of the weights read.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The last hidden states, f32 `[B, L, d_model]`, of token ids u32 `[B, L]`. Keys where `mask`
    /// (any number type, `[B, L]`) is 0 are not attended to; without a mask all are.
    ///
    /// # Errors
    /// When an id is not below the vocabulary's size, shapes differ, or the tensor backend fails;
    /// what `proceed`, which is asked before each block, says.
    pub fn forward(
        &self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        proceed: Proceed<'_>,
    ) -> Result<Tensor, ModelError> {
        let (batch, length) = ids.dims2()?;
        if let Some(mask) = mask.filter(|mask| mask.dims() != ids.dims()) {
            return Err(ModelError::Invalid(format!(
                "attention mask has shape {:?}, token ids have {:?}; expected the same",
                mask.dims(),
                ids.dims()
            )));
        }
        let width = self.config.d_model;
        let rows = self.embedding.index_select(&ids.flatten_all()?, 0)?;
        let mut hidden = rows.to_dtype(DType::F32)?.reshape((batch, length, width))?;
        let mut bias = self.bias.forward(length)?;
        if let Some(mask) = mask {
            // 0 for a token; the lowest f32 for padding, as transformers has it.
            let padding = mask.to_dtype(DType::F32)?.eq(0f32)?.to_dtype(DType::F32)?;
            let padding =
                padding.affine(f64::from(f32::MIN), 0.0)?.reshape((batch, 1, 1, length))?;
            bias = bias.broadcast_add(&padding)?;
        }
        for block in &self.blocks {
            proceed()?;
            hidden = block.forward(&hidden, &bias)?;
        }
        self.norm.forward(&hidden)
    }
}

/// Checks an encoder's folder: its configuration, and the name of the embedding.
fn check(
    dir: &Path,
    weights: &Weights,
) -> Result<(T5EncoderConfig, &'static str), CheckpointError> {
    let config = T5EncoderConfig::load(dir)?;
    let found = EMBEDDINGS.into_iter().find(|name| weights.contains(name));
    let embedding = found.unwrap_or(EMBEDDINGS[0]);
    let mut expected = vec![(embedding.to_owned(), vec![config.vocab_size, config.d_model])];
    expected.extend(layers::shapes(&config));
    let [shared, tied] = EMBEDDINGS;
    weights.check(&expected, &[shared, tied, "decoder.", "lm_head."])?;
    Ok((config, embedding))
}

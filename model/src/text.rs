//! From a prompt to text embeddings: tokenizer and T5 encoder.
//!
//! Owns how the PixArt pipelines of diffusers turn prompts into embeddings and masks. Does not own
//! what the transformer does with them, nor guidance (a negative prompt is a prompt like another).
//! Invariant: every row is padded to the same number of tokens, and padding is masked.

mod prompt_encoder;
mod sentencepiece;
mod t5;
mod tokenizer;

use candle_core::{DType, Device, Tensor};

use crate::checkpoint::Checkpoint;
use crate::error::ModelError;
use crate::proceed::Proceed;
pub use prompt_encoder::{
    PROMPT_CACHE_BYTES_MAX, PROMPT_CACHE_ENTRIES_MAX, PromptEncoder, TextEncoderPolicy,
};
pub use t5::{FeedForward, T5Encoder, T5EncoderConfig};
pub use tokenizer::{TokenIds, Tokenizer};

/// Text embeddings of some prompts.
#[derive(Clone, Debug)]
pub struct TextEmbeddings {
    /// f32 `[n, L, D]`, one row for each prompt.
    pub embeds: Tensor,
    /// f32 `[n, L]`, 1 for a token and 0 for padding.
    pub mask: Tensor,
    /// What the user should know: which part of a prompt was cut off.
    pub warnings: Vec<String>,
}

/// Tokenizer and text encoder of a pipeline.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: Tokenizer,
    encoder: T5Encoder,
    device: Device,
}

impl TextEncoder {
    /// Loads `tokenizer/` and `text_encoder/` of a pipeline. `dtype` is how the weights are held
    /// (f32, f16 or bf16); activations are f32 throughout, because T5 overflows in f16.
    ///
    /// `proceed` is asked before each block that is read.
    ///
    /// # Errors
    /// When a file is missing, broken, or asks for something unsupported; what `proceed` says.
    pub fn load(
        checkpoint: &Checkpoint,
        dtype: DType,
        device: &Device,
        proceed: Proceed<'_>,
    ) -> Result<Self, ModelError> {
        let tokenizer = Tokenizer::load(&checkpoint.component_dir("tokenizer"))?;
        let dir = checkpoint.component_dir("text_encoder");
        let weights = checkpoint.weights("text_encoder", t5::STEM)?;
        let encoder = T5Encoder::load_with(&dir, weights, dtype, device, proceed)?;
        check_vocabulary(&tokenizer, encoder.config())?;
        Ok(Self { tokenizer, encoder, device: device.clone() })
    }

    /// Checks that [`TextEncoder::load`] will find what it needs, without reading weights.
    ///
    /// # Errors
    /// As [`TextEncoder::load`].
    pub fn check(checkpoint: &Checkpoint) -> Result<(), ModelError> {
        let tokenizer = Tokenizer::load(&checkpoint.component_dir("tokenizer"))?;
        let weights = checkpoint.weights("text_encoder", t5::STEM)?;
        let config = T5Encoder::check_with(&checkpoint.component_dir("text_encoder"), &weights)?;
        check_vocabulary(&tokenizer, &config)
    }

    /// Embeds `prompts`, each padded or cut to `max_tokens` tokens (`max_sequence_length` of the
    /// diffusers pipeline).
    ///
    /// Prompts are lower-cased and stripped first: what diffusers does with `clean_caption=False`,
    /// and by default when beautifulsoup4 and ftfy are not installed. Its caption cleaning of web
    /// text is not reproduced.
    ///
    /// # Errors
    /// When `max_tokens` is 0, there is no prompt, or the tensor backend fails; what `proceed`,
    /// which is asked before each block, says.
    pub fn encode(
        &self,
        prompts: &[&str],
        max_tokens: usize,
        proceed: Proceed<'_>,
    ) -> Result<TextEmbeddings, ModelError> {
        let (mut ids, mut mask, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
        for prompt in prompts {
            let tokens = self.tokenizer.encode(&preprocess(prompt), max_tokens)?;
            if let Some(lost) = tokens.truncated {
                warnings.push(format!(
                    "the prompt is longer than the {max_tokens} tokens the model takes; \
                     this part was cut off: {lost:?}"
                ));
            }
            ids.extend(tokens.ids);
            mask.extend(tokens.mask);
        }
        let shape = (prompts.len(), max_tokens);
        let ids = Tensor::from_vec(ids, shape, &self.device)?;
        let mask = Tensor::from_vec(mask, shape, &self.device)?.to_dtype(DType::F32)?;
        let embeds = self.encoder.forward(&ids, Some(&mask), proceed)?;
        Ok(TextEmbeddings { embeds, mask, warnings })
    }

    /// Stored bytes of the weights read.
    pub fn bytes_read(&self) -> u64 {
        self.encoder.bytes_read()
    }
}

fn check_vocabulary(tokenizer: &Tokenizer, config: &T5EncoderConfig) -> Result<(), ModelError> {
    if tokenizer.vocab_size() <= config.vocab_size {
        return Ok(());
    }
    Err(ModelError::Invalid(format!(
        "the tokenizer has {} tokens, the text encoder's vocab_size is {}; \
         they are not of one model",
        tokenizer.vocab_size(),
        config.vocab_size
    )))
}

/// Python's `text.lower().strip()`.
fn preprocess(prompt: &str) -> String {
    // `str.strip` also takes the four separators U+001C..U+001F, which Unicode's White_Space lacks.
    let blank = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    prompt.to_lowercase().trim_matches(blank).to_owned()
}

#[cfg(test)]
mod tests {
    use super::preprocess;

    #[test]
    fn prompts_are_lowered_and_stripped_as_python_does() {
        assert_eq!(preprocess(" \u{3000}A Red\tAPPLE\n\u{1f}"), "a red\tapple");
        assert_eq!(preprocess("ΣΑΣ İ"), "σας i\u{307}");
        assert_eq!(preprocess(""), "");
    }
}

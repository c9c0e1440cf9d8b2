//! The text encoder of a rank over many prompts: when its weights are in memory, what is
//! remembered.
//!
//! Owns the policy and a small cache of embeddings. A T5-XXL is several times the transformer it
//! feeds and idle while that denoises, so by default its weights are dropped as soon as a prompt is
//! encoded, and read again (memory-mapped) for the next prompt that is not remembered.
//!
//! Invariants: prompts are encoded one by one, so a remembered embedding has the bits of a fresh
//! one whatever it was asked together with; the cache never holds more than
//! [`PROMPT_CACHE_ENTRIES_MAX`] prompts and [`PROMPT_CACHE_BYTES_MAX`].

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};

use super::{TextEmbeddings, TextEncoder};
use crate::checkpoint::Checkpoint;
use crate::error::ModelError;
use crate::proceed::{Proceed, always};

/// Prompts remembered.
pub const PROMPT_CACHE_ENTRIES_MAX: usize = 32;
/// Bytes of embeddings remembered; one prompt of PixArt-Sigma (300 tokens of 4096) has 4.9 MB.
pub const PROMPT_CACHE_BYTES_MAX: usize = 64 << 20;

/// When the text encoder's weights are in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TextEncoderPolicy {
    /// Only while a prompt is encoded.
    #[default]
    Release,
    /// Always.
    Resident,
}

/// Encodes prompts and remembers the last ones.
#[derive(Debug)]
pub struct PromptEncoder {
    checkpoint: Checkpoint,
    dtype: DType,
    device: Device,
    policy: TextEncoderPolicy,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    encoder: Option<TextEncoder>,
    /// The latest used last.
    cache: VecDeque<Remembered>,
    bytes_read: u64,
    loads: u64,
}

#[derive(Debug)]
struct Remembered {
    prompt: String,
    max_tokens: usize,
    /// Of this one prompt.
    text: TextEmbeddings,
}

impl PromptEncoder {
    /// An encoder of the pipeline's prompts with weights held in `dtype`. [`Resident`] weights are
    /// loaded here; otherwise names and shapes are checked here and nothing else is read.
    ///
    /// # Errors
    /// When a file is missing, broken, or asks for something unsupported.
    ///
    /// [`Resident`]: TextEncoderPolicy::Resident
    pub fn new(
        checkpoint: Checkpoint,
        dtype: DType,
        device: &Device,
        policy: TextEncoderPolicy,
    ) -> Result<Self, ModelError> {
        let mut held = Held::default();
        match policy {
            TextEncoderPolicy::Resident => {
                held.load(&checkpoint, dtype, device, &mut always)?;
            }
            TextEncoderPolicy::Release => TextEncoder::check(&checkpoint)?,
        }
        let device = device.clone();
        Ok(Self { checkpoint, dtype, device, policy, held: Mutex::new(held) })
    }

    /// As [`TextEncoder::encode`], from memory where a prompt was encoded before. `proceed` is
    /// asked before each layer that is loaded or computed; the weights are released on an error
    /// too.
    ///
    /// # Errors
    /// As [`TextEncoder::encode`] and loading; what `proceed` says.
    pub fn encode(
        &self,
        prompts: &[&str],
        max_tokens: usize,
        proceed: Proceed<'_>,
    ) -> Result<TextEmbeddings, ModelError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = prompts.iter().map(|prompt| self.row(&mut held, prompt, max_tokens, proceed));
        let rows: Result<Vec<_>, _> = rows.collect();
        if self.policy == TextEncoderPolicy::Release {
            held.encoder = None;
        }
        stack(&rows?)
    }

    fn row(
        &self,
        held: &mut Held,
        prompt: &str,
        max_tokens: usize,
        proceed: Proceed<'_>,
    ) -> Result<TextEmbeddings, ModelError> {
        let same = |one: &Remembered| one.prompt == prompt && one.max_tokens == max_tokens;
        if let Some(index) = held.cache.iter().position(same)
            && let Some(found) = held.cache.remove(index)
        {
            let text = found.text.clone();
            held.cache.push_back(found);
            return Ok(text);
        }
        if held.encoder.is_none() {
            held.load(&self.checkpoint, self.dtype, &self.device, proceed)?;
        }
        let missing = || ModelError::Invalid("the text encoder is not loaded".into());
        let encoder = held.encoder.as_ref().ok_or_else(missing)?;
        let text = encoder.encode(&[prompt], max_tokens, proceed)?;
        held.remember(Remembered { prompt: prompt.to_owned(), max_tokens, text: text.clone() });
        Ok(text)
    }

    /// Whether the weights are in memory now.
    pub fn is_loaded(&self) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).encoder.is_some()
    }

    /// How often the weights were loaded so far.
    pub fn loads(&self) -> u64 {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).loads
    }

    /// Stored bytes of the weights, once they were read.
    pub fn bytes_read(&self) -> u64 {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).bytes_read
    }
}

impl Held {
    fn load(
        &mut self,
        checkpoint: &Checkpoint,
        dtype: DType,
        device: &Device,
        proceed: Proceed<'_>,
    ) -> Result<(), ModelError> {
        let encoder = TextEncoder::load(checkpoint, dtype, device, proceed)?;
        self.bytes_read = encoder.bytes_read();
        self.loads += 1;
        self.encoder = Some(encoder);
        Ok(())
    }

    fn remember(&mut self, one: Remembered) {
        self.cache.push_back(one);
        let bytes =
            |cache: &VecDeque<Remembered>| cache.iter().map(Remembered::bytes).sum::<usize>();
        while self.cache.len() > PROMPT_CACHE_ENTRIES_MAX
            || bytes(&self.cache) > PROMPT_CACHE_BYTES_MAX
        {
            self.cache.pop_front();
        }
    }
}

impl Remembered {
    fn bytes(&self) -> usize {
        let of = |x: &Tensor| x.elem_count() * x.dtype().size_in_bytes();
        self.prompt.len() + of(&self.text.embeds) + of(&self.text.mask)
    }
}

/// One row for each prompt.
fn stack(rows: &[TextEmbeddings]) -> Result<TextEmbeddings, ModelError> {
    let embeds: Vec<&Tensor> = rows.iter().map(|row| &row.embeds).collect();
    let mask: Vec<&Tensor> = rows.iter().map(|row| &row.mask).collect();
    if rows.is_empty() {
        return Err(ModelError::Invalid("no prompt to encode".into()));
    }
    Ok(TextEmbeddings {
        embeds: Tensor::cat(&embeds, 0)?,
        mask: Tensor::cat(&mask, 0)?,
        warnings: rows.iter().flat_map(|row| row.warnings.clone()).collect(),
    })
}

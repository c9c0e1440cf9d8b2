//! The keys of a T5 `config.json` that its encoder needs.
//!
//! transformers writes many more keys, different ones in each version; unlike diffusers' they are
//! not refused, because most say nothing about the encoder.

use std::path::Path;

use serde::Deserialize;

use crate::checkpoint::{CheckpointError, partial_config};

/// Layers beyond which a configuration is refused.
const LAYERS_MAX: usize = 1024;

/// The feed-forward layer of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum FeedForward {
    /// `wo(relu(wi(x)))`, the first T5.
    #[serde(rename = "relu")]
    Relu,
    /// `wo(gelu_new(wi_0(x)) * wi_1(x))`, T5 v1.1.
    #[serde(rename = "gated-gelu")]
    GatedGelu,
}

/// Sizes of a T5 encoder, with transformers' defaults.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct T5EncoderConfig {
    /// Tokens the embedding has rows for.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub d_model: usize,
    /// Width of a head.
    pub d_kv: usize,
    /// Width inside the feed-forward layer.
    pub d_ff: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Attention heads; `num_heads * d_kv` need not be `d_model`.
    pub num_heads: usize,
    /// Rows of the relative position bias.
    pub relative_attention_num_buckets: usize,
    /// Distance in tokens from which all positions share a bucket.
    pub relative_attention_max_distance: usize,
    /// Epsilon of the norms.
    pub layer_norm_epsilon: f64,
    /// Feed-forward layer.
    pub feed_forward_proj: FeedForward,
    model_type: String,
}

impl Default for T5EncoderConfig {
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: FeedForward::Relu,
            model_type: "t5".to_owned(),
        }
    }
}

impl T5EncoderConfig {
    /// Reads and checks `config.json` in `dir`.
    ///
    /// # Errors
    /// When it cannot be read or holds a value that is not supported; the error names the key.
    pub fn load(dir: &Path) -> Result<Self, CheckpointError> {
        let config: Self = partial_config(dir)?;
        let bad = |key: &str, expected: &str, found: String| {
            Err(CheckpointError::Config {
                path: dir.join("config.json"),
                key: key.to_owned(),
                expected: expected.to_owned(),
                found,
            })
        };
        if config.model_type != "t5" {
            return bad("model_type", "\"t5\"", format!("{:?}", config.model_type));
        }
        let sizes = [
            ("vocab_size", config.vocab_size),
            ("d_model", config.d_model),
            ("d_kv", config.d_kv),
            ("d_ff", config.d_ff),
            ("num_layers", config.num_layers),
            ("num_heads", config.num_heads),
        ];
        if let Some((key, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return bad(key, "at least 1", "0".to_owned());
        }
        if config.num_layers > LAYERS_MAX {
            return bad("num_layers", "at most 1024", config.num_layers.to_string());
        }
        let buckets = config.relative_attention_num_buckets;
        if buckets < 4 || !buckets.is_multiple_of(2) {
            return bad(
                "relative_attention_num_buckets",
                "an even number from 4",
                buckets.to_string(),
            );
        }
        let distance = config.relative_attention_max_distance;
        if distance <= buckets / 4 {
            return bad(
                "relative_attention_max_distance",
                "more than a quarter of the buckets",
                distance.to_string(),
            );
        }
        Ok(config)
    }
}

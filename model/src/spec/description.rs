//! A model described from its `config.json` alone, so that it can be planned without weights.
//!
//! Owns which keys of diffusers' transformer configurations say how big a model is, for families
//! that run here and for families that do not (yet): PixArt, Stable Diffusion 3, FLUX.1 and
//! CogVideoX. Does not own running them: [`crate::pipeline`] refuses what it cannot run.

mod families;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::DType;
use serde::Deserialize;
use thiserror::Error;

use super::ModelSpec;
use super::work::{DecoderWork, ModelWork, TextEncoderWork};
use crate::checkpoint::Checkpoint;
use crate::pipeline::describe;
use crate::text::T5EncoderConfig;
use crate::vae::AutoencoderKlConfig;

/// Largest configuration read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Blocks, heads and widths beyond which a configuration is taken for broken.
const SIZE_MAX: usize = 1 << 16;

/// Everything a planner knows of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// For people.
    pub name: String,
    /// Sizes for a plan.
    pub spec: ModelSpec,
    /// What the transformer computes.
    pub work: ModelWork,
    /// Text encoders; zero when the configuration says nothing of them.
    pub text_encoder: TextEncoderWork,
    /// VAE decoder; zero when the configuration says nothing of it.
    pub decoder: DecoderWork,
    /// Whether requests have two guidance branches (guidance is distilled into FLUX.1-dev).
    pub guided: bool,
    /// Whether this build runs the family.
    pub runs: bool,
    /// Height and width the model was made for, in pixels.
    pub size: (u32, u32),
}

/// Why a model cannot be described.
#[derive(Debug, Error)]
pub enum DescribeError {
    /// A file cannot be read.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// A key has no sensible value.
    #[error("{path}: `{key}` is {found}, expected {expected}")]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: String,
    },
}

/// The keys of all families; what a family lacks is 0.
#[derive(Deserialize)]
#[serde(default)]
struct Config {
    #[serde(rename = "_class_name")]
    class: String,
    num_attention_heads: usize,
    attention_head_dim: usize,
    num_layers: usize,
    num_single_layers: usize,
    in_channels: usize,
    out_channels: Option<usize>,
    patch_size: usize,
    sample_size: usize,
    caption_channels: usize,
    joint_attention_dim: usize,
    pooled_projection_dim: usize,
    guidance_embeds: bool,
    text_embed_dim: usize,
    time_embed_dim: usize,
    sample_height: usize,
    sample_width: usize,
    sample_frames: usize,
    temporal_compression_ratio: usize,
    max_text_seq_length: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            class: String::new(),
            num_attention_heads: 0,
            attention_head_dim: 0,
            num_layers: 0,
            num_single_layers: 0,
            in_channels: 0,
            out_channels: None,
            patch_size: 1,
            sample_size: 128,
            caption_channels: 4096,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: false,
            text_embed_dim: 4096,
            time_embed_dim: 512,
            sample_height: 60,
            sample_width: 90,
            sample_frames: 49,
            temporal_compression_ratio: 4,
            max_text_seq_length: 226,
        }
    }
}

impl Config {
    fn hidden(&self) -> u64 {
        (self.num_attention_heads * self.attention_head_dim) as u64
    }
}

/// Describes a pipeline folder (with or without weights), a component folder, or a transformer's
/// `config.json`, with weights held in `dtype`.
///
/// # Errors
/// When the configuration cannot be read or is of no family known here.
pub fn describe_any(path: &Path, dtype: DType) -> Result<Description, DescribeError> {
    if path.is_file() {
        return of_config(path, dtype);
    }
    let transformer = path.join("transformer/config.json");
    let config = if transformer.is_file() { transformer } else { path.join("config.json") };
    let mut description = of_config(&config, dtype)?;
    if description.runs && path.join("model_index.json").is_file() {
        let spec = describe(path, dtype).map_err(|error| DescribeError::File {
            path: path.to_owned(),
            cause: error.to_string(),
        })?;
        // The pipeline knows its VAE's scale and its tokens; parameters of tables differ a little.
        description.size = edge(spec.sample_size, spec.vae_scale_factor);
        description.spec = spec;
    }
    if let Ok(checkpoint) = Checkpoint::open(path) {
        if let Ok(config) = T5EncoderConfig::load(&checkpoint.component_dir("text_encoder")) {
            description.text_encoder = t5(&config);
        }
        if let Ok(vae) = AutoencoderKlConfig::load(&checkpoint.component_dir("vae")) {
            description.decoder = DecoderWork::of_autoencoder_kl(
                &vae.block_out_channels,
                vae.layers_per_block,
                vae.latent_channels,
                vae.mid_block_add_attention,
            );
        }
    }
    Ok(description)
}

fn t5(config: &T5EncoderConfig) -> TextEncoderWork {
    let (d, inner) = (config.d_model as u64, (config.num_heads * config.d_kv) as u64);
    let projections = match config.feed_forward_proj {
        crate::text::FeedForward::Relu => 2,
        crate::text::FeedForward::GatedGelu => 3,
    };
    let layer = 4 * d * inner + projections * d * config.d_ff as u64;
    let weights = config.num_layers as u64 * layer;
    TextEncoderWork { parameters: weights + config.vocab_size as u64 * d, weights }
}

/// T5-XXL v1.1's encoder, which all four families use beside others.
fn t5_xxl() -> TextEncoderWork {
    let weights = 24 * (4 * 4096 * 4096 + 3 * 4096 * 10_240);
    TextEncoderWork { parameters: weights + 32_128 * 4096, weights }
}

fn edge(sample_size: usize, scale: usize) -> (u32, u32) {
    let edge = (sample_size * scale) as u32;
    (edge, edge)
}

fn of_config(path: &Path, dtype: DType) -> Result<Description, DescribeError> {
    let file = |cause: String| DescribeError::File { path: path.to_owned(), cause };
    let length = fs::metadata(path).map_err(|error| file(error.to_string()))?.len();
    if length > CONFIG_BYTES_MAX {
        return Err(file(format!("{length} bytes, at most {CONFIG_BYTES_MAX} are read")));
    }
    let text = fs::read_to_string(path).map_err(|error| file(error.to_string()))?;
    let config: Config = serde_json::from_str(&text).map_err(|error| file(error.to_string()))?;
    check(&config, path)?;
    let description = match config.class.as_str() {
        "PixArtTransformer2DModel" | "Transformer2DModel" => families::pixart(&config),
        "SD3Transformer2DModel" => families::sd3(&config),
        "FluxTransformer2DModel" => families::flux(&config),
        "CogVideoXTransformer3DModel" => families::cogvideox(&config),
        other => {
            return Err(DescribeError::Key {
                path: path.to_owned(),
                key: "_class_name",
                found: format!("`{other}`"),
                expected: "PixArtTransformer2DModel, Transformer2DModel, SD3Transformer2DModel, \
                           FluxTransformer2DModel or CogVideoXTransformer3DModel"
                    .into(),
            });
        }
    };
    Ok(held_in(description, dtype))
}

fn check(config: &Config, path: &Path) -> Result<(), DescribeError> {
    let sizes = [
        ("num_attention_heads", config.num_attention_heads),
        ("attention_head_dim", config.attention_head_dim),
        ("num_layers", config.num_layers),
        ("in_channels", config.in_channels),
        ("patch_size", config.patch_size),
        ("sample_size", config.sample_size),
        ("temporal_compression_ratio", config.temporal_compression_ratio),
    ];
    for (key, found) in sizes {
        if !(1..=SIZE_MAX).contains(&found) {
            let (path, found) = (path.to_owned(), found.to_string());
            let expected = format!("1 to {SIZE_MAX}");
            return Err(DescribeError::Key { path, key, found, expected });
        }
    }
    Ok(())
}

/// Sets stored bytes by the precision of the weights.
fn held_in(mut description: Description, dtype: DType) -> Description {
    let bytes = dtype.size_in_bytes() as u64;
    let work = &description.work;
    let of_blocks: u64 = work.blocks.iter().map(|block| block.parameters).sum();
    description.spec.block_bytes = bytes * of_blocks / work.blocks.len().max(1) as u64;
    description.spec.other_bytes = bytes * work.other_parameters;
    description
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn described(json: &str) -> Result<Description, DescribeError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, json).unwrap();
        describe_any(&path, DType::F16)
    }

    #[test]
    fn published_configurations_have_their_published_numbers_of_parameters() {
        let cases = [
            (
                r#"{"_class_name": "PixArtTransformer2DModel", "num_attention_heads": 16,
                "attention_head_dim": 72, "num_layers": 28, "in_channels": 4, "out_channels": 8,
                "patch_size": 2, "sample_size": 128}"#,
                611e6,
            ),
            (
                r#"{"_class_name": "SD3Transformer2DModel", "num_attention_heads": 24,
                "attention_head_dim": 64, "num_layers": 24, "in_channels": 16, "patch_size": 2,
                "pooled_projection_dim": 2048}"#,
                2.03e9,
            ),
            (
                r#"{"_class_name": "FluxTransformer2DModel", "num_attention_heads": 24,
                "attention_head_dim": 128, "num_layers": 19, "num_single_layers": 38,
                "in_channels": 64, "patch_size": 1, "guidance_embeds": true}"#,
                11.9e9,
            ),
            (
                r#"{"_class_name": "CogVideoXTransformer3DModel", "num_attention_heads": 48,
                "attention_head_dim": 64, "num_layers": 42, "in_channels": 16,
                "patch_size": 2}"#,
                5.57e9,
            ),
        ];
        for (json, published) in cases {
            let found = described(json).unwrap();
            let ratio = found.work.parameters() as f64 / published;
            assert!((ratio - 1.0).abs() < 0.03, "{}: {ratio}", found.name);
        }
    }

    #[test]
    fn a_family_that_is_not_known_is_named() {
        let json = r#"{"_class_name": "UNet2DConditionModel", "num_attention_heads": 1,
            "attention_head_dim": 1, "num_layers": 1, "in_channels": 4}"#;
        let error = described(json).unwrap_err().to_string();
        assert!(error.contains("UNet2DConditionModel") && error.contains("Flux"), "{error}");
        let error = described("{}").unwrap_err().to_string();
        assert!(error.contains("num_attention_heads"), "{error}");
    }
}

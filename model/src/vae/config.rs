//! The keys of an AutoencoderKL `config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::spec::VaeSpec;
use crate::checkpoint::{CheckpointError, typed_config};

/// Resolution levels beyond which a configuration is refused.
const LEVELS_MAX: usize = 16;

/// Sizes of an AutoencoderKL, with diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct AutoencoderKlConfig {
    /// Channels of the decoded image; 3 is supported.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Width of each resolution level, the finest first.
    pub block_out_channels: Vec<usize>,
    /// Resnets of a level in the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// What the pipeline multiplies latents with.
    pub scaling_factor: f64,
    /// What the pipeline takes off latents before that.
    pub shift_factor: Option<f64>,
    /// Whether a 1x1 convolution stands before the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the middle block attends.
    pub mid_block_add_attention: bool,
    act_fn: String,
    up_block_types: Vec<String>,
    latents_mean: Option<Vec<f64>>,
    latents_std: Option<Vec<f64>>,
    /// Keys of the encoder and of training, which say nothing about the decoder.
    #[serde(rename = "in_channels")]
    _in_channels: Value,
    #[serde(rename = "down_block_types")]
    _down_block_types: Value,
    #[serde(rename = "sample_size")]
    _sample_size: Value,
    #[serde(rename = "force_upcast")]
    _force_upcast: Value,
    #[serde(rename = "use_quant_conv")]
    _use_quant_conv: Value,
}

impl Default for AutoencoderKlConfig {
    fn default() -> Self {
        Self {
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            layers_per_block: 1,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            act_fn: "silu".to_owned(),
            up_block_types: vec!["UpDecoderBlock2D".to_owned()],
            latents_mean: None,
            latents_std: None,
            _in_channels: Value::Null,
            _down_block_types: Value::Null,
            _sample_size: Value::Null,
            _force_upcast: Value::Null,
            _use_quant_conv: Value::Null,
        }
    }
}

impl AutoencoderKlConfig {
    /// Reads and checks `config.json` in `dir`.
    ///
    /// # Errors
    /// When it cannot be read or holds a value that is not supported; the error names the key.
    pub fn load(dir: &Path) -> Result<Self, CheckpointError> {
        let config: Self = typed_config(dir)?;
        config.check().map_err(|(key, expected, found)| CheckpointError::Config {
            path: dir.join("config.json"),
            key: key.to_owned(),
            expected,
            found,
        })?;
        Ok(config)
    }

    /// Pixels per latent pixel, on each side.
    pub fn scale_factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// What planning needs to know of the decoder.
    pub fn spec(&self) -> VaeSpec {
        VaeSpec {
            latent_channels: self.latent_channels,
            widths: self.block_out_channels.iter().rev().copied().collect(),
            resnets_per_level: self.layers_per_block + 1,
            groups: self.norm_num_groups,
            mid_attention: self.mid_block_add_attention,
        }
    }

    /// The first unsupported value: key, what was expected, what was found.
    fn check(&self) -> Result<(), (&'static str, String, String)> {
        let levels = self.block_out_channels.len();
        let bad = |key, expected: &str, found: String| Err((key, expected.to_owned(), found));
        if self.act_fn != "silu" {
            return bad("act_fn", "\"silu\"", format!("{:?}", self.act_fn));
        }
        if self.out_channels != 3 {
            return bad("out_channels", "3", self.out_channels.to_string());
        }
        if self.latent_channels == 0 {
            return bad("latent_channels", "at least 1", "0".to_owned());
        }
        if !(1..=LEVELS_MAX).contains(&levels) {
            return bad("block_out_channels", "1 to 16 levels", format!("{levels} levels"));
        }
        if self.norm_num_groups == 0 {
            return bad("norm_num_groups", "at least 1", "0".to_owned());
        }
        let misfit = |width: &&usize| **width == 0 || !width.is_multiple_of(self.norm_num_groups);
        if let Some(width) = self.block_out_channels.iter().find(misfit) {
            let expected = format!("multiples of norm_num_groups {}", self.norm_num_groups);
            return Err(("block_out_channels", expected, width.to_string()));
        }
        let plain = self.up_block_types.iter().all(|kind| kind == "UpDecoderBlock2D");
        if !plain || self.up_block_types.len() != levels {
            let expected = format!("{levels} times \"UpDecoderBlock2D\"");
            return Err(("up_block_types", expected, format!("{:?}", self.up_block_types)));
        }
        if self.scaling_factor == 0.0 {
            return bad("scaling_factor", "a number other than 0", "0".to_owned());
        }
        if self.latents_mean.is_some() || self.latents_std.is_some() {
            return bad("latents_mean", "null (and latents_std null)", "numbers".to_owned());
        }
        Ok(())
    }
}

//! `transformer/config.json` of PixArt: every key that published checkpoints have.
//!
//! Owns defaults, the checks of supported values and the sizes derived from them. The keys and
//! defaults are those of diffusers' `PixArtTransformer2DModel` (and of `Transformer2DModel`, under
//! which PixArt-alpha was first published).

use std::path::Path;

use candle_core::DType;
use serde::Deserialize;
use serde_json::Value;

use super::tensors;
use crate::checkpoint::{CheckpointError, typed_config};
use crate::spec::{Family, ModelId, ModelSpec, TextStream};
use crate::vae::VaeSpec;

/// Blocks beyond which a configuration is taken for broken.
const LAYERS_MAX: usize = 1024;
/// Hidden width beyond which a configuration is taken for broken.
const HIDDEN_MAX: usize = 1 << 16;

/// The configuration of a PixArt transformer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct PixArtConfig {
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of a head.
    pub attention_head_dim: usize,
    /// Latent channels.
    pub in_channels: usize,
    /// Channels of the prediction, twice `in_channels` when sigma is learned; none means
    /// `in_channels`.
    pub out_channels: Option<usize>,
    /// Transformer blocks.
    pub num_layers: usize,
    /// Dropout of training; without effect here.
    pub dropout: f64,
    /// Unused by PixArt.
    pub norm_num_groups: usize,
    /// Width that cross-attention takes its keys and values from: the hidden width.
    pub cross_attention_dim: Option<usize>,
    /// Whether q, k and v projections have a bias.
    pub attention_bias: bool,
    /// Latent edge of training; the base of the position embedding.
    pub sample_size: usize,
    /// Edge of a patch in latent pixels.
    pub patch_size: usize,
    /// Feed-forward activation; `gelu-approximate`.
    pub activation_fn: String,
    /// Unused by PixArt but required by diffusers.
    pub num_embeds_ada_norm: Option<usize>,
    /// Attention in f32; always so here.
    pub upcast_attention: bool,
    /// Kind of norm; `ada_norm_single`.
    pub norm_type: String,
    /// Whether norms have weights; false.
    pub norm_elementwise_affine: bool,
    /// Epsilon of the blocks' norms.
    pub norm_eps: f64,
    /// Divisor of positions; none means `max(sample_size / 64, 1)`.
    pub interpolation_scale: Option<f64>,
    /// Conditioning on resolution and aspect ratio; none means at `sample_size` 128.
    pub use_additional_conditions: Option<bool>,
    /// Width of the text embeddings.
    pub caption_channels: Option<usize>,
    /// Kind of attention; `default`.
    pub attention_type: String,
    /// Of `Transformer2DModel`; false.
    pub only_cross_attention: bool,
    /// Of `Transformer2DModel`; false.
    pub double_self_attention: bool,
    /// Of `Transformer2DModel`; null or false.
    pub num_vector_embeds: Value,
    /// Of `Transformer2DModel`; without effect on patch inputs.
    pub use_linear_projection: bool,
}

impl Default for PixArtConfig {
    /// diffusers' defaults; what it requires is 0 here and refused by [`PixArtConfig::check`].
    fn default() -> Self {
        Self {
            num_attention_heads: 16,
            attention_head_dim: 72,
            in_channels: 0,
            out_channels: Some(8),
            num_layers: 28,
            dropout: 0.0,
            norm_num_groups: 32,
            cross_attention_dim: Some(1152),
            attention_bias: true,
            sample_size: 0,
            patch_size: 0,
            activation_fn: "gelu-approximate".to_owned(),
            num_embeds_ada_norm: Some(1000),
            upcast_attention: false,
            norm_type: "ada_norm_single".to_owned(),
            norm_elementwise_affine: false,
            norm_eps: 1e-6,
            interpolation_scale: None,
            use_additional_conditions: None,
            caption_channels: None,
            attention_type: "default".to_owned(),
            only_cross_attention: false,
            double_self_attention: false,
            num_vector_embeds: Value::Null,
            use_linear_projection: false,
        }
    }
}

impl PixArtConfig {
    /// Reads and checks the `config.json` in the component folder `dir`.
    ///
    /// # Errors
    /// When it cannot be read, has an unknown key, or a value is not supported.
    pub fn load(dir: &Path) -> Result<Self, CheckpointError> {
        let config: Self = typed_config(dir)?;
        config.check(&dir.join("config.json"))?;
        Ok(config)
    }

    /// Checks every value; `path` is for the message.
    ///
    /// # Errors
    /// The first key whose value is not supported.
    pub fn check(&self, path: &Path) -> Result<(), CheckpointError> {
        let refuse = |key: &str, expected: String, found: String| {
            Err(CheckpointError::Config {
                path: path.to_owned(),
                key: key.to_owned(),
                expected,
                found,
            })
        };
        let counts = [
            ("num_attention_heads", self.num_attention_heads, HIDDEN_MAX),
            ("attention_head_dim", self.attention_head_dim, HIDDEN_MAX),
            ("in_channels", self.in_channels, HIDDEN_MAX),
            ("num_layers", self.num_layers, LAYERS_MAX),
            ("sample_size", self.sample_size, HIDDEN_MAX),
            ("patch_size", self.patch_size, HIDDEN_MAX),
            ("caption_channels", self.caption_channels.unwrap_or(0), HIDDEN_MAX),
            ("num_attention_heads * attention_head_dim", self.hidden(), HIDDEN_MAX),
        ];
        for (key, found, limit) in counts {
            if found == 0 || found > limit {
                return refuse(key, format!("1 to {limit}"), found.to_string());
            }
        }
        for (key, expected, holds, found) in self.rules() {
            if !holds {
                return refuse(key, expected, found);
            }
        }
        Ok(())
    }

    /// Every rule beyond plain bounds: key, what is expected, whether it holds, what was found.
    fn rules(&self) -> Vec<(&'static str, String, bool, String)> {
        let hidden = self.hidden();
        let off = |key, value: bool| (key, "false".to_owned(), !value, value.to_string());
        let word = |key, expected: &str, found: &str| {
            (key, format!("`{expected}`"), found == expected, format!("`{found}`"))
        };
        let option = |value: Option<usize>| value.map_or("null".to_owned(), |v| v.to_string());
        let scale = self.interpolation_scale();
        let channels = [self.in_channels, 2 * self.in_channels];
        let additional = !self.has_additional_conditions() || hidden.is_multiple_of(3);
        vec![
            word("norm_type", "ada_norm_single", &self.norm_type),
            word("activation_fn", "gelu-approximate", &self.activation_fn),
            word("attention_type", "default", &self.attention_type),
            off("norm_elementwise_affine", self.norm_elementwise_affine),
            off("only_cross_attention", self.only_cross_attention),
            off("double_self_attention", self.double_self_attention),
            (
                "num_vector_embeds",
                "null".to_owned(),
                matches!(self.num_vector_embeds, Value::Null | Value::Bool(false)),
                self.num_vector_embeds.to_string(),
            ),
            (
                "cross_attention_dim",
                format!("{hidden} (num_attention_heads * attention_head_dim)"),
                self.cross_attention_dim == Some(hidden),
                option(self.cross_attention_dim),
            ),
            (
                "out_channels",
                format!("{} or {}", channels[0], channels[1]),
                channels.contains(&self.output_channels()),
                option(self.out_channels),
            ),
            (
                "attention_head_dim",
                "a hidden width that divides by 4".to_owned(),
                hidden.is_multiple_of(4),
                format!("{} (width {hidden})", self.attention_head_dim),
            ),
            (
                "use_additional_conditions",
                "false when the hidden width does not divide by 3".to_owned(),
                additional,
                format!("true (width {hidden})"),
            ),
            (
                "sample_size",
                format!("a multiple of patch_size {}", self.patch_size),
                self.sample_size.is_multiple_of(self.patch_size),
                self.sample_size.to_string(),
            ),
            (
                "interpolation_scale",
                "a positive number".to_owned(),
                scale.is_finite() && scale > 0.0,
                scale.to_string(),
            ),
            (
                "norm_eps",
                "a small positive number".to_owned(),
                self.norm_eps > 0.0 && self.norm_eps < 1.0,
                self.norm_eps.to_string(),
            ),
        ]
    }

    /// Names and shapes of all tensors of a checkpoint.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        tensors::all(self)
    }

    /// Width of the hidden states.
    pub fn hidden(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// Channels of the prediction, learned sigma included.
    pub fn output_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Divisor of positions.
    pub fn interpolation_scale(&self) -> f64 {
        self.interpolation_scale.unwrap_or((self.sample_size / 64).max(1) as f64)
    }

    /// Whether resolution and aspect ratio are part of the conditioning.
    pub fn has_additional_conditions(&self) -> bool {
        self.use_additional_conditions.unwrap_or(self.sample_size == 128)
    }

    /// Sizes of the whole model for a plan. Bytes are those of weights held in `dtype` (vectors
    /// and tables are f32); the rest is what the other components say, but for the sizes of the VAE
    /// and the history of the solver, which are the default ones.
    pub fn spec(
        &self,
        id: ModelId,
        dtype: DType,
        vae_scale_factor: usize,
        text_tokens: usize,
    ) -> ModelSpec {
        ModelSpec {
            id,
            family: Family::PixArt,
            text_stream: TextStream::Cross,
            long_skips: false,
            blocks: self.num_layers,
            heads: self.num_attention_heads,
            head_dim: self.attention_head_dim,
            patch_size: self.patch_size,
            latent_channels: self.in_channels,
            sample_size: self.sample_size,
            vae_scale_factor,
            vae: VaeSpec::default(),
            solver_history: 0,
            caption_channels: self.caption_channels.unwrap_or(0),
            text_tokens,
            block_bytes: held_bytes(&tensors::of_block(self, 0), dtype),
            other_bytes: held_bytes(&tensors::outside_blocks(self), dtype),
        }
    }
}

fn held_bytes(tensors: &[(String, Vec<usize>)], dtype: DType) -> u64 {
    let bytes = |(name, shape): &(String, Vec<usize>)| {
        let held = if name.ends_with(".weight") { dtype } else { DType::F32 };
        (shape.iter().product::<usize>() * held.size_in_bytes()) as u64
    };
    tensors.iter().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> PixArtConfig {
        let json = r#"{"activation_fn": "gelu-approximate", "attention_bias": true,
            "attention_head_dim": 72, "attention_type": "default", "caption_channels": 4096,
            "cross_attention_dim": 1152, "double_self_attention": false, "dropout": 0.0,
            "in_channels": 4, "norm_elementwise_affine": false, "norm_eps": 1e-06,
            "norm_num_groups": 32, "norm_type": "ada_norm_single", "num_attention_heads": 16,
            "num_embeds_ada_norm": 1000, "num_layers": 28, "num_vector_embeds": null,
            "only_cross_attention": false, "out_channels": 8, "patch_size": 2,
            "sample_size": 128, "upcast_attention": false, "use_linear_projection": false}"#;
        serde_json::from_str(json).expect("published configuration")
    }

    #[test]
    fn the_published_configuration_is_taken_with_its_defaults() {
        let config = published();
        config.check(Path::new("config.json")).expect("supported");
        assert_eq!((config.hidden(), config.interpolation_scale()), (1152, 2.0));
        assert!(config.has_additional_conditions());
        let spec = config.spec(ModelId(1), DType::F32, 8, 120);
        assert_eq!((spec.blocks, spec.heads, spec.latent_channels), (28, 16, 4));
        let bytes = spec.blocks as u64 * spec.block_bytes + spec.other_bytes;
        assert_eq!(bytes / 4, 611_349_152, "parameters of PixArt-alpha at 1024");
        let smaller = PixArtConfig { sample_size: 64, ..config.clone() };
        let other = smaller.spec(ModelId(1), DType::F32, 8, 120).other_bytes;
        let bytes = spec.blocks as u64 * spec.block_bytes + other;
        assert_eq!(bytes / 4, 610_856_096, "parameters of PixArt-alpha at 512");
        let half = config.spec(ModelId(1), DType::F16, 8, 120);
        assert!(half.block_bytes > spec.block_bytes / 2 && half.block_bytes < spec.block_bytes);
    }

    #[test]
    fn unsupported_values_name_key_expected_and_found() {
        let check = |change: fn(&mut PixArtConfig)| {
            let mut config = published();
            change(&mut config);
            config.check(Path::new("x/config.json")).expect_err("unsupported").to_string()
        };
        for (message, parts) in [
            (
                check(|c| c.activation_fn = "geglu".into()),
                ["activation_fn", "gelu-approximate", "geglu"],
            ),
            (check(|c| c.cross_attention_dim = Some(9)), ["cross_attention_dim", "1152", "9"]),
            (check(|c| c.norm_type = "layer".into()), ["norm_type", "ada_norm_single", "layer"]),
            (check(|c| c.num_layers = 1 << 40), ["num_layers", "1 to 1024", "1099511627776"]),
            (
                check(|c| c.num_attention_heads = usize::MAX),
                ["num_attention_heads", "65536", "x/config.json"],
            ),
            (check(|c| c.caption_channels = None), ["caption_channels", "1 to", "0"]),
            (check(|c| c.out_channels = Some(5)), ["out_channels", "4 or 8", "5"]),
        ] {
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }
}

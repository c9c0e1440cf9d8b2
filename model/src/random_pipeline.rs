//! A pipeline of any size with random weights: what benchmarks and tests of memory run on.
//!
//! Owns writing the folder: the built-in pipeline, its transformer replaced by one of the size
//! asked for. Does not own the sizes. Invariants: weights are written as they are made, so no more
//! than one tensor is in memory; equal sizes give equal files, and the pictures mean nothing.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::Path;

use safetensors::tensor::{Dtype, View, serialize_to_file};
use serde_json::{Value, json};

use crate::builtin;
use crate::transformer::pixart::PixArtConfig;

/// Spread of everything that is not a matrix: biases and modulation tables.
const VECTOR_SIZE: f32 = 0.1;
/// Width of the built-in text encoder's output.
pub const CAPTION_CHANNELS: usize = 128;

/// Sizes of a random PixArt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomPixArt {
    /// Width of the hidden states; divides by `heads` and by 4.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Transformer blocks.
    pub blocks: usize,
    /// Edge of the latent; patches are 2 by 2, so a picture has `(latent / 2)^2` tokens.
    pub latent: usize,
}

impl RandomPixArt {
    /// The transformer's configuration.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when sizes do not fit each other.
    pub fn config(&self) -> io::Result<PixArtConfig> {
        let refuse = |cause: String| io::Error::new(io::ErrorKind::InvalidInput, cause);
        let Self { hidden, heads, .. } = *self;
        if heads == 0 || !hidden.is_multiple_of(heads) {
            return Err(refuse(format!(
                "hidden width {hidden} does not divide by {heads} heads; {} would",
                hidden.next_multiple_of(heads.max(1))
            )));
        }
        let config = PixArtConfig {
            num_attention_heads: heads,
            attention_head_dim: hidden / heads,
            in_channels: 4,
            num_layers: self.blocks,
            cross_attention_dim: Some(hidden),
            sample_size: self.latent,
            patch_size: 2,
            use_additional_conditions: Some(false),
            caption_channels: Some(CAPTION_CHANNELS),
            ..PixArtConfig::default()
        };
        config.check(Path::new("a random transformer")).map_err(|e| refuse(e.to_string()))?;
        Ok(config)
    }

    /// Writes the pipeline into the folder `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// When sizes do not fit each other or a file cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let config = self.config()?;
        let source = builtin::folder()?;
        fs::create_dir_all(dir)?;
        fs::copy(source.join("model_index.json"), dir.join("model_index.json"))?;
        for component in ["scheduler", "text_encoder", "tokenizer", "vae"] {
            copy_folder(&source.join(component), &dir.join(component))?;
        }
        let transformer = dir.join("transformer");
        fs::create_dir_all(&transformer)?;
        fs::write(transformer.join("config.json"), self.config_json().to_string())?;
        let named = config.tensors().into_iter().enumerate();
        let named = named.map(|(seed, (name, shape))| {
            // A matrix keeps the size of what it is applied to.
            let inputs: usize = shape.iter().skip(1).product();
            let is_matrix = name.ends_with(".weight");
            let size = if is_matrix { (inputs as f32).sqrt().recip() } else { VECTOR_SIZE };
            (name, RandomTensor { seed: seed as u64, shape, size })
        });
        let path = transformer.join("diffusion_pytorch_model.safetensors");
        serialize_to_file(named, None, &path).map_err(io::Error::other)
    }

    /// As [`Self::config`], as diffusers writes it.
    fn config_json(&self) -> Value {
        json!({
            "_class_name": "PixArtTransformer2DModel",
            "num_attention_heads": self.heads,
            "attention_head_dim": self.hidden / self.heads.max(1),
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": self.blocks,
            "cross_attention_dim": self.hidden,
            "sample_size": self.latent,
            "patch_size": 2,
            "use_additional_conditions": false,
            "caption_channels": CAPTION_CHANNELS,
        })
    }
}

/// The files of `from`, which has no folders, to `to`.
fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if let Some(name) = path.file_name() {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// A tensor whose f32 elements are made when it is written.
struct RandomTensor {
    seed: u64,
    shape: Vec<usize>,
    /// Deviation of the elements.
    size: f32,
}

impl View for RandomTensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Uniform numbers of mean 0 (SplitMix64; Steele, Lea and Flood, OOPSLA 2014).
    fn data(&self) -> Cow<'_, [u8]> {
        let edge = self.size * 3f32.sqrt();
        let mut state = self.seed.wrapping_mul(0xD134_2543_DE82_EF95);
        let mut bytes = Vec::with_capacity(self.data_len());
        for _ in 0..self.shape.iter().product::<usize>() {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            // 24 bits are all an f32 in 0..1 can hold.
            let unit = ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1u32 << 24) as f32;
            bytes.extend_from_slice(&((2.0 * unit - 1.0) * edge).to_le_bytes());
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use candle_core::{DType, Device};

    use super::*;
    use crate::pipeline::{LoadedParts, Parts, describe};

    #[test]
    fn what_is_written_loads_and_has_the_size_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let sizes = RandomPixArt { hidden: 48, heads: 4, blocks: 3, latent: 8 };
        sizes.write(dir.path()).unwrap();
        let spec = describe(dir.path(), DType::F32).unwrap();
        assert_eq!((spec.hidden(), spec.heads, spec.blocks, spec.sample_size), (48, 4, 3, 8));
        let parts = Parts {
            blocks: 0..3,
            text_encoder: Some(crate::text::TextEncoderPolicy::Resident),
            vae: true,
        };
        LoadedParts::load(dir.path(), DType::F32, &parts, &Device::Cpu).unwrap();
    }

    #[test]
    fn elements_have_the_deviation_that_keeps_activations_small() {
        let tensor = RandomTensor { seed: 3, shape: vec![64, 100], size: 0.1 };
        let bytes = tensor.data();
        let values: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let square = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.01 && (square.sqrt() - 0.1).abs() < 0.01, "{mean} {square}");
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let sizes = RandomPixArt { hidden: 50, heads: 4, blocks: 1, latent: 8 };
        assert!(sizes.config().unwrap_err().to_string().contains("52 would"));
    }
}

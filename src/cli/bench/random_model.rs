//! The random model that is measured, and the request that is made of it.

use std::path::{Path, PathBuf};

use ditmesh::{FloatTensor, GenerateRequest, OutputKind, PromptEmbeds};
use tempfile::TempDir;

use crate::cli::args::SizeArgs;
use crate::cli::failure::Failure;

/// Text tokens of each prompt: PixArt-alpha's.
pub(crate) const TEXT_TOKENS: usize = 120;
/// Guidance is on.
const GUIDANCE_SCALE: f32 = 4.5;

/// A pipeline with random weights in a folder of its own, which goes with it.
pub(crate) struct RandomModel {
    folder: TempDir,
    caption_channels: usize,
}

impl RandomModel {
    /// Writes it.
    #[cfg(feature = "builtin")]
    pub(crate) fn write(size: &SizeArgs) -> Result<Self, Failure> {
        use ditmesh_model::random_pipeline::{CAPTION_CHANNELS, RandomPixArt};

        let model = RandomPixArt {
            hidden: size.hidden as usize,
            heads: size.heads as usize,
            blocks: size.blocks as usize,
            latent: size.latent as usize,
        };
        model.config().map_err(Failure::usage)?;
        let failed = |error| Failure::failed(format!("cannot write the random model: {error}"));
        let folder = tempfile::tempdir().map_err(failed)?;
        model.write(&folder.path().join("model")).map_err(failed)?;
        Ok(Self { folder, caption_channels: CAPTION_CHANNELS })
    }

    /// Without the built-in model there is no text encoder and no VAE to complete it with.
    #[cfg(not(feature = "builtin"))]
    pub(crate) fn write(_: &SizeArgs) -> Result<Self, Failure> {
        Err(Failure::usage(
            "this ditmesh was built without the feature `builtin`, which bench needs",
        ))
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    /// A folder beside it for files of the measurement.
    pub(crate) fn work_dir(&self) -> &Path {
        self.folder.path()
    }

    /// A guided request for the latents after `steps` steps, at the model's own size.
    pub(crate) fn request(&self, steps: u32) -> GenerateRequest {
        let shape = vec![1, TEXT_TOKENS, self.caption_channels];
        let wave = |phase: f32| FloatTensor {
            shape: shape.clone(),
            data: (0..shape.iter().product::<usize>()).map(|i| (i as f32 + phase).sin()).collect(),
        };
        let mask = || FloatTensor { shape: vec![1, TEXT_TOKENS], data: vec![1.0; TEXT_TOKENS] };
        GenerateRequest {
            num_inference_steps: steps,
            guidance_scale: GUIDANCE_SCALE,
            output: OutputKind::Latent,
            prompt_embeds: Some(PromptEmbeds {
                prompt_embeds: wave(0.0),
                prompt_attention_mask: mask(),
                negative_prompt_embeds: Some(wave(1.0)),
                negative_prompt_attention_mask: Some(mask()),
            }),
            ..GenerateRequest::default()
        }
    }
}

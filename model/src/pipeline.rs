//! A diffusers pipeline folder as the parts one rank needs of it.
//!
//! Owns which components a rank loads: the transformer blocks of its stage always, the text
//! encoder and the VAE only where the plan puts them. Does not know why a rank holds what it holds.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::error::ModelError;
use crate::scheduler::{self, Scheduler};
use crate::spec::ModelSpec;
use crate::text::{PromptEncoder, TextEncoderPolicy};
use crate::transformer::Transformer;
use crate::transformer::pixart::{PixArtConfig, PixArtTransformer2DModel};
use crate::vae::{AutoencoderKlConfig, VaeDecoder};

/// File stem of diffusers' weight files.
const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";

/// Which parts of a pipeline to load.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Parts {
    /// Transformer blocks.
    pub blocks: Range<usize>,
    /// Whether prompts are encoded here, and when the weights for that are in memory.
    pub text_encoder: Option<TextEncoderPolicy>,
    /// Whether to load the VAE decoder at once; a rank that is to decode loads it when it comes to
    /// that.
    pub vae: bool,
}

/// The loaded parts of a pipeline.
pub struct LoadedParts {
    /// Sizes of the whole model.
    pub spec: ModelSpec,
    /// The blocks.
    pub transformer: Arc<dyn Transformer>,
    /// Text encoder, where asked for.
    pub text_encoder: Option<PromptEncoder>,
    vae: OnceLock<VaeDecoder>,
    device: Device,
    checkpoint: Checkpoint,
}

/// What a plan needs to know of the pipeline in `dir`, from its configuration files alone.
/// `dtype` is the precision the weights will be held in.
///
/// # Errors
/// When the folder is not a supported pipeline.
pub fn describe(dir: &Path, dtype: DType) -> Result<ModelSpec, CheckpointError> {
    describe_open(&Checkpoint::open(dir)?, dtype)
}

/// The same of an open pipeline.
///
/// # Errors
/// As [`describe`].
pub fn describe_open(checkpoint: &Checkpoint, dtype: DType) -> Result<ModelSpec, CheckpointError> {
    let config = PixArtConfig::load(&checkpoint.component_dir("transformer"))?;
    let vae = AutoencoderKlConfig::load(&checkpoint.component_dir("vae"))?;
    let id = checkpoint.model_id()?;
    let tokens = checkpoint.class().text_tokens();
    let spec = config.spec(id, dtype, vae.scale_factor(), tokens);
    let solver_history = scheduler::history(&checkpoint.component_dir("scheduler"))?;
    Ok(ModelSpec { vae: vae.spec(), solver_history, ..spec })
}

impl LoadedParts {
    /// Loads `parts` of the pipeline in `dir` onto `device`, with weights in `dtype`.
    ///
    /// # Errors
    /// When a configuration is not supported or a tensor is missing, superfluous or misshapen.
    pub fn load(
        dir: &Path,
        dtype: DType,
        parts: &Parts,
        device: &Device,
    ) -> Result<Self, ModelError> {
        Self::load_from(Checkpoint::open(dir)?, dtype, parts, device)
    }

    /// Loads `parts` of an open pipeline, whose weights may be elsewhere.
    ///
    /// # Errors
    /// As [`LoadedParts::load`], and when a tensor cannot be brought.
    pub fn load_from(
        checkpoint: Checkpoint,
        dtype: DType,
        parts: &Parts,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let spec = describe_open(&checkpoint, dtype)?;
        let transformer_dir = checkpoint.component_dir("transformer");
        let config = PixArtConfig::load(&transformer_dir)?;
        let weights = checkpoint.weights("transformer", DIFFUSERS_STEM)?;
        let blocks = parts.blocks.clone();
        let transformer =
            PixArtTransformer2DModel::load(&weights, &config, spec.clone(), blocks, dtype, device)?;
        let encoder = |policy| PromptEncoder::new(checkpoint.clone(), dtype, device, policy);
        let text_encoder = parts.text_encoder.map(encoder).transpose()?;
        let loaded = Self {
            spec,
            transformer: Arc::new(transformer),
            text_encoder,
            vae: OnceLock::new(),
            device: device.clone(),
            checkpoint,
        };
        if parts.vae {
            loaded.vae()?;
        }
        Ok(loaded)
    }

    /// The VAE decoder, loaded on first use: which ranks decode is decided run by run, and a rank
    /// that never does reads none of it.
    ///
    /// # Errors
    /// When its configuration is not supported or a tensor is missing, superfluous or misshapen.
    pub fn vae(&self) -> Result<&VaeDecoder, ModelError> {
        if let Some(decoder) = self.vae.get() {
            return Ok(decoder);
        }
        let decoder = VaeDecoder::load_from(&self.checkpoint, &self.device)?;
        Ok(self.vae.get_or_init(|| decoder))
    }

    /// The pipeline's noise scheduler for `num_inference_steps` steps.
    ///
    /// # Errors
    /// When its configuration is not supported.
    pub fn scheduler(&self, num_inference_steps: usize) -> Result<Arc<dyn Scheduler>, ModelError> {
        scheduler::load(&self.checkpoint.component_dir("scheduler"), num_inference_steps, None)
    }

    /// Bytes of weights read from disk for these parts.
    pub fn bytes_read(&self) -> u64 {
        let text = self.text_encoder.as_ref().map_or(0, PromptEncoder::bytes_read);
        let vae = self.vae.get().map_or(0, VaeDecoder::bytes_read);
        self.transformer.bytes_read() + text + vae
    }
}

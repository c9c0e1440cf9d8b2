//! The arguments of `generate`, named as diffusers and xDiT name them.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum, ValueHint};
use ditmesh::{Dtype, OutputKind, STEP_CACHE_REUSES_MAX, STEP_CACHE_THRESHOLD};

use super::wire::WireArgs;

/// Pictures of one call, at most.
const PICTURES_MAX: u64 = ditmesh::IMAGES_PER_PROMPT_MAX as u64;
/// Devices of one process, at most; also the greatest degree.
const DEVICES_MAX: u64 = 256;
/// Compute threads of one device, at most.
const THREADS_MAX: u64 = 1024;

/// `generate`.
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Run on this running cluster instead of in this process
    #[arg(long, value_name = "MANIFEST", value_hint = ValueHint::FilePath, help_heading = "Where")]
    pub(crate) cluster: Option<PathBuf>,

    /// Start the cluster if it does not run, and stop it afterwards if this started it
    #[arg(long, requires = "cluster", help_heading = "Where")]
    pub(crate) up: bool,

    /// Devices in this process, each an actor [default: the product of the degrees, or 1]
    #[arg(long, value_name = "N", value_parser = counted(DEVICES_MAX), conflicts_with = "cluster")]
    #[arg(help_heading = "Where")]
    pub(crate) devices: Option<u32>,

    /// Compute threads per device [default: an equal share of the cores]
    #[arg(long, value_name = "N", value_parser = counted(THREADS_MAX), conflicts_with = "cluster")]
    #[arg(help_heading = "Where")]
    pub(crate) threads: Option<u32>,

    /// A diffusers pipeline folder, or `built-in` [default: built-in, or the cluster's]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "cluster")]
    #[arg(help_heading = "What")]
    pub(crate) model: Option<PathBuf>,

    /// Precision of weights and activations [default: f32, or the cluster's]
    #[arg(long, value_enum, conflicts_with = "cluster", help_heading = "What")]
    pub(crate) dtype: Option<DtypeArg>,

    /// What to draw
    #[arg(short, long, value_name = "TEXT", required_unless_present = "prompt_embeds")]
    #[arg(conflicts_with = "prompt_embeds", help_heading = "What")]
    pub(crate) prompt: Option<String>,

    /// What to stay away from
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    #[arg(conflicts_with = "prompt_embeds", help_heading = "What")]
    pub(crate) negative_prompt: String,

    /// Embeddings in place of a prompt: a safetensors file with `prompt_embeds`,
    /// `prompt_attention_mask` and, when guidance is on, their `negative_` counterparts
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "What")]
    pub(crate) prompt_embeds: Option<PathBuf>,

    /// Initial latents in place of seeded noise: a safetensors file with `latents`
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "What")]
    pub(crate) latents: Option<PathBuf>,

    /// Pixels [default: the model's own size]
    #[arg(long, value_name = "PIXELS", value_parser = counted(65_536), help_heading = "What")]
    pub(crate) height: Option<u32>,

    /// Pixels [default: the model's own size]
    #[arg(long, value_name = "PIXELS", value_parser = counted(65_536), help_heading = "What")]
    pub(crate) width: Option<u32>,

    /// Denoising steps
    #[arg(long, visible_alias = "steps", value_name = "N", default_value_t = 20)]
    #[arg(value_parser = counted(1000), help_heading = "What")]
    pub(crate) num_inference_steps: u32,

    /// How closely to follow the prompt; guidance is on above 1
    #[arg(long, value_name = "X", default_value_t = 4.5, value_parser = scale)]
    #[arg(help_heading = "What")]
    pub(crate) guidance_scale: f32,

    /// Seed of the initial noise; picture i of several has SEED + i
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "What")]
    pub(crate) seed: u64,

    /// Pictures; several are written as NAME-0.png, NAME-1.png, ...
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = counted(PICTURES_MAX), help_heading = "What")]
    pub(crate) num_images_per_prompt: u32,

    /// Ranks that share the two branches of guidance, 1 or 2
    #[arg(long, value_name = "N", value_parser = counted(2), help_heading = "How")]
    pub(crate) cfg_degree: Option<u32>,

    /// Stages of the patch pipeline (PipeFusion)
    #[arg(long, value_name = "N", value_parser = counted(DEVICES_MAX), help_heading = "How")]
    pub(crate) pipefusion_degree: Option<u32>,

    /// Ranks that share the heads of a sequence (Ulysses)
    #[arg(long, value_name = "N", value_parser = counted(DEVICES_MAX), help_heading = "How")]
    pub(crate) ulysses_degree: Option<u32>,

    /// Ranks that share the keys of a sequence (ring attention)
    #[arg(long, value_name = "N", value_parser = counted(DEVICES_MAX), help_heading = "How")]
    pub(crate) ring_degree: Option<u32>,

    /// Replicas that draw pictures of their own side by side
    #[arg(long, value_name = "N", value_parser = counted(DEVICES_MAX), help_heading = "How")]
    pub(crate) data_degree: Option<u32>,

    /// When no degree is given: only methods that give the picture of one device
    #[arg(long, conflicts_with = "cluster", help_heading = "How")]
    pub(crate) exact: bool,

    /// Strips that PipeFusion cuts the picture into [default: the pipefusion degree]
    #[arg(long, value_name = "N", value_parser = counted(65_536), help_heading = "How")]
    pub(crate) num_pipeline_patch: Option<u32>,

    /// Synchronous steps before PipeFusion's asynchronous ones
    #[arg(long, visible_alias = "warmup-steps", value_name = "N", default_value_t = 1)]
    #[arg(help_heading = "How")]
    pub(crate) sync_steps: u32,

    /// After those, make every K-th step synchronous again [default: none]
    #[arg(long, value_name = "K", value_parser = counted(1000), help_heading = "How")]
    pub(crate) sync_every: Option<u32>,

    /// Keep a checkpoint every K steps, to go on from when a device is lost; 0 keeps none [default:
    /// 1, or what the manifest says]
    #[arg(long, value_name = "K", help_heading = "How")]
    pub(crate) checkpoint_every: Option<u32>,

    /// Seconds that a picture may wait to be drawn, for others or for a mesh; then it ends with
    /// what it waited for [default: for its turn without end, for a mesh as long as forming one may
    /// take]
    #[arg(long, value_name = "SECONDS", value_parser = counted(86_400), help_heading = "How")]
    pub(crate) deadline: Option<u32>,

    /// Skip blocks where little changes from step to step [default: compute all]
    #[arg(long, value_enum, value_name = "KIND", help_heading = "How")]
    pub(crate) step_cache: Option<StepCacheArg>,

    /// Relative change of the first block's residual below which the other blocks are skipped
    #[arg(long, value_name = "X", default_value_t = STEP_CACHE_THRESHOLD, value_parser = scale)]
    #[arg(requires = "step_cache", help_heading = "How")]
    pub(crate) step_cache_threshold: f32,

    /// Times in a row that the same rows may be skipped
    #[arg(long, value_name = "N", default_value_t = STEP_CACHE_REUSES_MAX)]
    #[arg(value_parser = counted(1000), requires = "step_cache", help_heading = "How")]
    pub(crate) step_cache_reuses_max: u32,

    #[command(flatten)]
    pub(crate) wire: WireArgs,

    /// Whether all ranks decode the picture, each a band of rows [default: where it is faster]
    #[arg(long, value_name = "WHEN", value_enum, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "on", help_heading = "How")]
    pub(crate) use_parallel_vae: Option<SwitchArg>,

    /// File to write [default: ditmesh.png, or ditmesh.safetensors for latents]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,

    /// A picture, or the final latents as safetensors
    #[arg(long, value_enum, default_value = "png", help_heading = "Output")]
    pub(crate) output_type: OutputTypeArg,

    /// Write what each rank did (bytes, seconds, blocks) as JSON
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Output")]
    pub(crate) report: Option<PathBuf>,

    /// Write what each rank did when, as a timeline for https://ui.perfetto.dev
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Output")]
    pub(crate) trace: Option<PathBuf>,
}

pub(super) fn counted(max: u64) -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(1..=max)
}

fn scale(text: &str) -> Result<f32, String> {
    let scale: f32 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if scale.is_finite() { Ok(scale) } else { Err("expected a finite number".to_owned()) }
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeArg {
    /// 32-bit float
    F32,
    /// IEEE half
    F16,
    /// bfloat16
    Bf16,
}

impl From<DtypeArg> for Dtype {
    fn from(arg: DtypeArg) -> Self {
        match arg {
            DtypeArg::F32 => Self::F32,
            DtypeArg::F16 => Self::F16,
            DtypeArg::Bf16 => Self::Bf16,
        }
    }
}

/// `--step-cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StepCacheArg {
    /// Decide by the first block, which always runs
    FirstBlock,
}

/// `--use-parallel-vae`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SwitchArg {
    /// Where it is faster
    Auto,
    /// Always
    On,
    /// Never
    Off,
}

impl SwitchArg {
    /// `None` for auto.
    pub(crate) fn forced(self) -> Option<bool> {
        match self {
            Self::Auto => None,
            Self::On => Some(true),
            Self::Off => Some(false),
        }
    }
}

/// `--output-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputTypeArg {
    /// A PNG with its recipe
    Png,
    /// A safetensors file with `latents`
    Latent,
}

impl From<OutputTypeArg> for OutputKind {
    fn from(arg: OutputTypeArg) -> Self {
        match arg {
            OutputTypeArg::Png => Self::Image,
            OutputTypeArg::Latent => Self::Latent,
        }
    }
}

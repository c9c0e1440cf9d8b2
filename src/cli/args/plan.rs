//! The arguments of `plan`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::generate::{DtypeArg, counted};
use super::wire::WireArgs;

/// Devices of an imagined node or nodes of an imagined cluster, at most.
const DEVICES_MAX: u64 = 4096;

/// `plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The cluster to plan for [default: --devices devices of this machine]
    #[arg(long, value_name = "MANIFEST", value_hint = ValueHint::FilePath, help_heading = "Where")]
    pub(crate) cluster: Option<PathBuf>,

    /// Devices of one node without a manifest
    #[arg(long, value_name = "N", value_parser = counted(DEVICES_MAX), conflicts_with = "cluster")]
    #[arg(default_value_t = 1, help_heading = "Where")]
    pub(crate) devices: u32,

    /// A diffusers pipeline folder, with or without weights, or `built-in` [default: the cluster's,
    /// or built-in]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::AnyPath, conflicts_with = "spec")]
    #[arg(help_heading = "What")]
    pub(crate) model: Option<PathBuf>,

    /// A transformer's config.json: PixArt, Stable Diffusion 3, FLUX.1 or CogVideoX
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "What")]
    pub(crate) spec: Option<PathBuf>,

    /// Precision of the weights [default: f32, or the cluster's]
    #[arg(long, value_enum, help_heading = "What")]
    pub(crate) dtype: Option<DtypeArg>,

    /// Pixels [default: the model's own size]
    #[arg(long, value_name = "PIXELS", value_parser = counted(65_536), help_heading = "What")]
    pub(crate) height: Option<u32>,

    /// Pixels [default: the model's own size]
    #[arg(long, value_name = "PIXELS", value_parser = counted(65_536), help_heading = "What")]
    pub(crate) width: Option<u32>,

    /// Denoising steps
    #[arg(long, visible_alias = "num-inference-steps", value_name = "N", default_value_t = 20)]
    #[arg(value_parser = counted(1000), help_heading = "What")]
    pub(crate) steps: u32,

    /// Plan without classifier-free guidance
    #[arg(long, help_heading = "What")]
    pub(crate) no_guidance: bool,

    /// Synchronous steps before PipeFusion's asynchronous ones
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = counted(1000))]
    #[arg(help_heading = "How")]
    pub(crate) sync_steps: u32,

    /// Only methods that give the picture of one device (no PipeFusion over patches)
    #[arg(long, help_heading = "How")]
    pub(crate) exact: bool,

    #[command(flatten)]
    pub(crate) wire: WireArgs,

    /// Say why the other meshes lost, and what the prediction rests on
    #[arg(long, help_heading = "Output")]
    pub(crate) explain: bool,

    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Draw the predicted run, a lane for each rank
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Output")]
    pub(crate) gantt: Option<PathBuf>,
}

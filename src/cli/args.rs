//! The arguments, as clap reads them.
//!
//! Owns names, defaults, help texts and the checks that need no other knowledge. Does not own what
//! a command does.

mod bench;
mod elastic;
mod generate;
mod launch;
mod plan;
mod wire;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueHint};

pub(crate) use bench::{
    AgainstArg, BenchArgs, BenchCommand, DeviceArgs, OverheadArgs, RecoveryArgs, ScalingArgs,
    ShapedBenchArgs, SizeArgs, TransportArg, TransportBenchArgs,
};
pub(crate) use elastic::{ForceLeaveArgs, JoinArgs, LeaveArgs, TokenArgs};
pub(crate) use generate::{GenerateArgs, OutputTypeArg, StepCacheArg, SwitchArg};
pub(crate) use launch::{
    AgentArgs, KubernetesArgs, ProbeArgs, RenderArgs, RenderCommand, SlurmArgs,
};
pub(crate) use plan::PlanArgs;

use super::outcome::EXIT_CODES;

/// Spreads one image generation of a Diffusion Transformer over the devices of a cluster.
///
/// A cluster is described by one manifest (cluster.toml). Without one, `ditmesh generate` runs on
/// the devices of this process.
#[derive(Debug, Parser)]
#[command(name = "ditmesh", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// What is logged to stderr: error, warn, info, debug, trace, or directives such as
    /// `warn,ditmesh_actors=debug` [env: DITMESH_LOG] [default: warn]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log: Option<String>,

    /// Show errors and results only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Draw a picture from a prompt
    Generate(Box<GenerateArgs>),
    /// Say before anything runs which mesh is the fastest, and what it holds and sends
    Plan(Box<PlanArgs>),
    /// Start the nodes and workers of a manifest
    Up(UpArgs),
    /// Stop a cluster; certificates, caches and pictures stay
    Down(ManifestArgs),
    /// Show nodes, devices, who holds which blocks, and links
    Status(StatusArgs),
    /// Make a token with which a machine can join a running cluster
    Token(TokenArgs),
    /// Make this machine a node of a running cluster
    Join(JoinArgs),
    /// Take a node out of a running cluster without losing a request
    Leave(LeaveArgs),
    /// Declare a node gone that will not come back
    ForceLeave(ForceLeaveArgs),
    /// Show how a picture or a latents file was made
    Inspect(InspectArgs),
    /// Check what makes links slow or broken, and say what fixes it
    Doctor(DoctorArgs),
    /// Measure speed and memory on this machine
    Bench(BenchArgs),
    /// Make the cluster's authority and the certificates of its nodes and clients
    Certs(CertsArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write the pages of all commands into a folder
    Man(ManArgs),
    /// Write what starts a cluster under Slurm or on Kubernetes
    Render(RenderArgs),
    /// Be the process of one host: started by `up`, by srun, in a pod, or by hand
    Agent(AgentArgs),
    /// Say whether this host's agent is well
    Probe(ProbeArgs),
    /// The process of one device; started by its agent
    #[command(hide = true)]
    Worker,
    /// Measures one device; started by its agent
    #[command(hide = true)]
    Measure,
    /// One end of `bench transport`; started by it
    #[command(hide = true)]
    BenchEnd,
    /// The process behind `up --detach`; started by it
    #[command(hide = true)]
    Supervisor,
}

/// Which cluster.
#[derive(Debug, Args)]
pub(crate) struct ManifestArgs {
    /// The cluster's manifest
    #[arg(value_name = "MANIFEST", default_value = "cluster.toml")]
    #[arg(value_hint = ValueHint::FilePath)]
    positional: PathBuf,

    /// The same, spelt as for `generate`
    #[arg(
        long = "cluster",
        value_name = "MANIFEST",
        conflicts_with = "positional",
        value_hint = ValueHint::FilePath
    )]
    flag: Option<PathBuf>,
}

impl ManifestArgs {
    /// The manifest's path.
    pub(crate) fn path(&self) -> &Path {
        self.flag.as_deref().unwrap_or(&self.positional)
    }
}

/// `up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) manifest: ManifestArgs,

    /// Leave the cluster running in the background
    #[arg(long)]
    pub(crate) detach: bool,

    /// Keep a checkpoint every K steps of requests that do not say; 0 keeps none [default: what the
    /// manifest says]
    #[arg(long, value_name = "K")]
    pub(crate) checkpoint_every: Option<u32>,
}

/// `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) manifest: ManifestArgs,

    /// Stay and show what changes, redrawn in place; with --json, one line for each change
    #[arg(long)]
    pub(crate) watch: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Wait so long for the mesh
    #[arg(long, value_name = "SECONDS")]
    pub(crate) wait: Option<u32>,
}

/// `inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A PNG, or a safetensors file with latents
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,

    /// Print the recipe as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Check the nodes of this cluster too, as seen from here
    #[arg(long, value_name = "MANIFEST", value_hint = ValueHint::FilePath)]
    pub(crate) cluster: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `certs`.
#[derive(Debug, Args)]
pub(crate) struct CertsArgs {
    #[command(flatten)]
    pub(crate) manifest: ManifestArgs,

    /// Replace the authority and every certificate, also those that are there
    #[arg(long)]
    pub(crate) force: bool,
}

/// `completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// `man`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Folder to write ditmesh.1, ditmesh-generate.1, ... into
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_manifest_is_named_in_either_way() {
        let path = |args: &[&str]| match Cli::parse_from(args).command {
            Command::Status(args) => args.manifest.path().to_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(path(&["ditmesh", "status"]), Path::new("cluster.toml"));
        assert_eq!(path(&["ditmesh", "status", "a.toml"]), Path::new("a.toml"));
        assert_eq!(path(&["ditmesh", "status", "--cluster", "b.toml"]), Path::new("b.toml"));
    }
}

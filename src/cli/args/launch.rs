//! The arguments of what starts nodes: `agent`, `probe`, `render`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use ditmesh_actors::rank_facts::RankFlags;

use super::ManifestArgs;

/// `agent`.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Be the agent of one node of this manifest until SIGTERM; without it the orders come from
    /// stdin, as `up` sends them
    #[arg(long, value_name = "MANIFEST", value_hint = ValueHint::FilePath)]
    pub(crate) cluster: Option<PathBuf>,

    /// Which node this is, by its name in the manifest
    #[arg(long, value_name = "NAME", requires = "cluster")]
    node: Option<String>,

    /// Which node this is, by its place in the manifest, from 0 [default: SLURM_NODEID,
    /// LWS_WORKER_INDEX]
    #[arg(long, value_name = "RANK", requires = "cluster")]
    node_rank: Option<u32>,

    /// How many nodes are started [default: SLURM_STEP_NUM_NODES, LWS_GROUP_SIZE]
    #[arg(long, value_name = "N", requires = "cluster")]
    nodes: Option<u32>,

    /// Where the coordinator is [default: from SLURM_STEP_NODELIST or LWS_LEADER_ADDRESS, else the
    /// manifest]
    #[arg(long, value_name = "HOST:PORT", requires = "cluster")]
    coordinator: Option<String>,

    /// Host name or address by which other nodes reach this one [default: from
    /// SLURM_STEP_NODELIST, else the manifest]
    #[arg(long, value_name = "HOST", requires = "cluster")]
    address: Option<String>,

    /// Control port of this node and of the coordinator's, in place of the manifest's
    #[arg(long, value_name = "PORT", requires = "cluster")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    control_port: Option<u16>,
}

impl AgentArgs {
    /// What the flags say of this node.
    pub(crate) fn rank_flags(&self) -> RankFlags {
        RankFlags {
            node: self.node.clone(),
            node_rank: self.node_rank,
            nodes: self.nodes,
            coordinator: self.coordinator.clone(),
            address: self.address.clone(),
            control_port: self.control_port,
        }
    }
}

/// `probe`.
#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    #[command(flatten)]
    pub(crate) manifest: ManifestArgs,

    /// Ask whether the agent has joined the cluster, too
    #[arg(long)]
    pub(crate) ready: bool,
}

/// `render`.
#[derive(Debug, Args)]
pub(crate) struct RenderArgs {
    #[command(subcommand)]
    pub(crate) command: RenderCommand,
}

/// What can be rendered.
#[derive(Debug, Subcommand)]
pub(crate) enum RenderCommand {
    /// A job script for `sbatch`: one agent per node, attached with `srun`
    Slurm(SlurmArgs),
    /// Objects for `kubectl apply`: a LeaderWorkerSet, or a StatefulSet, with what it needs
    K8s(KubernetesArgs),
}

/// Port for a coordinator whose manifest leaves it to the system.
pub(crate) const CONTROL_PORT: u16 = 7000;

/// `render slurm`.
#[derive(Debug, Args)]
pub(crate) struct SlurmArgs {
    #[command(flatten)]
    pub(crate) manifest: ManifestArgs,

    /// The program on the nodes [default: this one's path]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) program: Option<PathBuf>,

    /// An option for sbatch, as in --sbatch=--partition=gpu; any number of times
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub(crate) sbatch: Vec<String>,

    /// Control port, where the manifest leaves it to the system
    #[arg(long, value_name = "PORT", default_value_t = CONTROL_PORT)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) control_port: u16,

    /// What the job draws: arguments of `ditmesh generate`; without any the cluster serves until
    /// the job ends
    #[arg(last = true, value_name = "GENERATE_ARGUMENTS")]
    pub(crate) generate: Vec<String>,
}

/// `render k8s`.
#[derive(Debug, Args)]
pub(crate) struct KubernetesArgs {
    #[command(flatten)]
    pub(crate) manifest: ManifestArgs,

    /// Container image with ditmesh in it
    #[arg(long)]
    pub(crate) image: String,

    /// A StatefulSet instead of a LeaderWorkerSet, which needs no operator
    #[arg(long)]
    pub(crate) statefulset: bool,

    /// Name of the objects [default: the cluster's]
    #[arg(long)]
    pub(crate) name: Option<String>,

    /// Namespace of the objects [default: left to kubectl]
    #[arg(long)]
    pub(crate) namespace: Option<String>,

    /// The program in the image
    #[arg(long, value_name = "PATH", default_value = "ditmesh")]
    pub(crate) program: String,

    /// Secret with the certificates [default: NAME-certs]
    #[arg(long, value_name = "SECRET")]
    pub(crate) certs_secret: Option<String>,

    /// PersistentVolumeClaim with the models, mounted read-only at --models-path
    #[arg(long, value_name = "CLAIM", requires = "models_path")]
    pub(crate) models_claim: Option<String>,

    /// Where the claim is mounted; the manifest's models lie below it
    #[arg(long, value_name = "PATH", requires = "models_claim")]
    pub(crate) models_path: Option<String>,

    /// Control port, where the manifest leaves it to the system
    #[arg(long, value_name = "PORT", default_value_t = CONTROL_PORT)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) control_port: u16,
}

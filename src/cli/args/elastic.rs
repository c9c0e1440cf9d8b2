//! The arguments of the commands by which nodes come and go.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::ManifestArgs;

/// `token`.
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(flatten)]
    pub(crate) manifest: ManifestArgs,

    /// The only node name it is good for; any new name by default
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,

    /// Seconds for which it is good
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub(crate) expires: u32,
}

/// `join`.
#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// Where the coordinator listens
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) coordinator: String,

    /// File with the token that `ditmesh token` printed; not needed where this machine has joined
    /// before
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) token_file: Option<PathBuf>,

    /// Name of the node; the host name by default
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Address by which the other nodes reach this machine; the one from which it reaches the
    /// coordinator by default
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) address: Option<String>,

    /// Devices that it brings, one worker process each
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) devices: u32,

    /// They are GPUs, and not shares of the host's cores
    #[arg(long)]
    pub(crate) cuda: bool,

    /// Compute threads of each CPU device
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,

    /// Folder for certificate and runtime files
    #[arg(long, value_name = "DIR", default_value = ".ditmesh", value_hint = ValueHint::DirPath)]
    pub(crate) state_dir: PathBuf,
}

/// `leave`.
#[derive(Debug, Args)]
pub(crate) struct LeaveArgs {
    /// The node; without it, the one that runs on this machine from the state folder
    #[arg(value_name = "NODE")]
    pub(crate) node: Option<String>,

    /// The cluster's manifest, for a node that is named
    #[arg(long, value_name = "MANIFEST", default_value = "cluster.toml")]
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) cluster: PathBuf,

    /// Folder that the agent of this machine was started with
    #[arg(long, value_name = "DIR", default_value = ".ditmesh", value_hint = ValueHint::DirPath)]
    pub(crate) state_dir: PathBuf,

    /// Seconds in which what runs there may end
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) drain: u32,
}

/// `force-leave`.
#[derive(Debug, Args)]
pub(crate) struct ForceLeaveArgs {
    /// The node that is gone
    #[arg(value_name = "NODE")]
    pub(crate) node: String,

    /// The cluster's manifest
    #[arg(long, value_name = "MANIFEST", default_value = "cluster.toml")]
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) cluster: PathBuf,
}

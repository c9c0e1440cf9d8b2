//! Starting and stopping a cluster: `up`, `down` and the supervisor that stays.
//!
//! Owns what a caller sees of it. How a node is started is behind [`Launcher`]; the order of
//! things is the supervisor's. Does not own the mesh (coordinator) or workers (agents).
//!
//! Invariant: when the supervisor ends, in whatever way, no process of the cluster stays, and no
//! file but certificates, caches and outputs.

mod certificates;
mod children;
mod detached;
mod leave;
mod local;
pub(crate) mod lock;
mod notices;
pub mod record;
mod running;
pub mod ssh;
mod stop;
mod supervisor;

use std::time::Duration;

pub use leave::leave_here;

use serde::{Deserialize, Serialize};

use crate::agent::bootstrap::AgentBootstrap;
use crate::manifest::{Manifest, TransportKind};
use crate::status::ClusterStatus;

/// Hidden subcommand under which [`run_supervisor`] is called.
pub const SUPERVISOR_SUBCOMMAND: &str = "supervisor";

/// Variable of the OpenTelemetry specification that names the collector.
pub(crate) const OTLP_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Whether `up` stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpMode {
    /// Supervises in this process until interrupted, or until `down`.
    Foreground,
    /// Leaves a supervisor in the background and returns when the cluster is ready.
    Detached,
}

/// How `up` ended.
#[derive(Clone, Debug, PartialEq)]
pub enum UpOutcome {
    /// The cluster was running already.
    AlreadyRunning(ClusterStatus),
    /// It runs in the background now.
    Detached(ClusterStatus),
    /// It ran in the foreground and is stopped (interrupt or `down`).
    Stopped,
}

/// How `down` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownOutcome {
    /// There was nothing to stop.
    NotRunning,
    /// All processes are gone.
    Stopped {
        /// How many there were on this host; 0 when all were on others.
        processes: usize,
    },
}

/// Why a cluster could not be started or stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum LaunchError {
    /// A file or folder of the cluster could not be used.
    #[error("{path}: {cause}")]
    File {
        /// Which.
        path: String,
        /// What went wrong.
        cause: String,
    },
    /// A node did not come up.
    #[error("node \"{node}\" did not start: {cause}")]
    Node {
        /// Which.
        node: String,
        /// What went wrong; for a taken port it names the port.
        cause: String,
    },
    /// A node's host could not be used over ssh.
    #[error("node \"{node}\" on {host}: {fault} ({cause}); {}", fault.advice())]
    Ssh {
        /// Which.
        node: String,
        /// What ssh was to connect to.
        host: String,
        /// In which way.
        fault: ssh::fault::SshFault,
        /// The words of ssh.
        cause: String,
    },
    /// The mesh did not form.
    #[error("the cluster is not ready: {0}")]
    NotReady(String),
    /// The manifest asks for what this launcher cannot do.
    #[error("{0}")]
    Manifest(String),
    /// Processes that would not end.
    #[error("{0}")]
    Stop(String),
    /// The machine failed us.
    #[error("{0}")]
    System(String),
    /// Told to stop before the cluster was ready.
    #[error("interrupted before the cluster was ready")]
    Interrupted,
}

/// A way to start agents on hosts.
pub(crate) trait Launcher {
    /// Starts a node's agent and waits until it listens; where.
    async fn start(&mut self, orders: AgentBootstrap) -> Result<std::net::SocketAddr, LaunchError>;

    /// Waits for the next agent to end.
    async fn exited(&mut self) -> AgentExit;

    /// Ends all agents, by force after `deadline`.
    async fn stop_all(&mut self, deadline: Duration);
}

/// An agent has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentExit {
    pub(crate) node: String,
    /// Whether the coordinator told it to, or its launcher.
    pub(crate) ordered: bool,
    /// Its own words, or the system's.
    pub(crate) cause: String,
}

/// Starts the cluster of `manifest` and waits until its mesh is formed, then calls `ready` with
/// its status. In the foreground it stays, restarting nodes that die, until SIGINT, SIGTERM or
/// `down`; detached it returns. Blocks this thread; must not be called inside an async runtime.
///
/// # Errors
/// When a node does not start (port taken, certificate), or the mesh does not form in time; all
/// that was started is stopped again.
pub fn up(
    manifest: &Manifest,
    mode: UpMode,
    ready: &mut dyn FnMut(&ClusterStatus),
) -> Result<UpOutcome, LaunchError> {
    if manifest.transport.kind == TransportKind::InProcess {
        return Err(LaunchError::Manifest(
            "transport \"in-process\" stays within one process; a cluster needs \"quic\"".into(),
        ));
    }
    match mode {
        UpMode::Foreground => foreground(manifest, ready),
        UpMode::Detached => {
            let outcome = detached::up(manifest)?;
            if let UpOutcome::Detached(status) = &outcome {
                ready(status);
            }
            Ok(outcome)
        }
    }
}

/// Waits until the mesh of a cluster that somebody else starts is formed. Blocks this thread.
///
/// # Errors
/// [`LaunchError::NotReady`] with the reason, when forming fails or takes longer than `patience`.
pub fn wait_ready(manifest: &Manifest, patience: Duration) -> Result<ClusterStatus, LaunchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| LaunchError::System(format!("no runtime: {error}")))?;
    runtime.block_on(running::wait_ready(manifest, patience))
}

/// Stops the cluster of `manifest` and waits until all its processes are gone.
///
/// # Errors
/// When a process would not end or a file cannot be removed.
pub fn down(manifest: &Manifest) -> Result<DownOutcome, LaunchError> {
    stop::down(manifest)
}

/// The background half of a detached [`up`]: what the hidden subcommand
/// [`SUPERVISOR_SUBCOMMAND`] calls. Reads its orders from stdin.
///
/// # Errors
/// As [`up`].
pub fn run_supervisor() -> Result<(), LaunchError> {
    detached::run()
}

fn foreground(
    manifest: &Manifest,
    ready: &mut dyn FnMut(&ClusterStatus),
) -> Result<UpOutcome, LaunchError> {
    match supervisor::run(manifest, ready)? {
        supervisor::Outcome::AlreadyRunning(status) => Ok(UpOutcome::AlreadyRunning(*status)),
        supervisor::Outcome::Stopped => Ok(UpOutcome::Stopped),
    }
}

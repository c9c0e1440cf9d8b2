//! The supervisor of a cluster: starts its agents in order, keeps them alive, ends them all.
//!
//! Owns the lock and the run folder of the cluster. The agent that hosts the coordinator comes
//! first, because the others need its address.
//!
//! Invariant: whatever happens, it ends only after every agent has, and removes what is left of
//! the run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ditmesh_transport::identity::{Identity, Role as Certificate};
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::local::LocalLauncher;
use super::lock::Lock;
use super::record::{ProcessRecord, Published, Role, RunFolder};
use super::ssh::SshLauncher;
use super::{AgentExit, LaunchError, Launcher, certificates, running, stop};
use crate::agent::bootstrap::AgentBootstrap;
use crate::agent::credentials::Credentials;
use crate::agent::restarts::Restarts;
use crate::manifest::{LauncherKind, Manifest};
use crate::status::ClusterStatus;

/// Time for all agents to end by themselves.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// Restarts that wait for their pause.
const RESTARTS_WAITING_MAX: usize = 1024;

/// How supervision ended.
pub(super) enum Outcome {
    /// Somebody else supervises this cluster.
    AlreadyRunning(Box<ClusterStatus>),
    /// All agents have ended.
    Stopped,
}

/// Supervises a cluster until it is stopped. Blocks this thread.
pub(super) fn run(
    manifest: &Manifest,
    ready: &mut dyn FnMut(&ClusterStatus),
) -> Result<Outcome, LaunchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| LaunchError::System(format!("no runtime: {error}")))?;
    let outcome = runtime.block_on(supervise(manifest, ready));
    runtime.shutdown_background();
    outcome
}

async fn supervise(
    manifest: &Manifest,
    ready: &mut dyn FnMut(&ClusterStatus),
) -> Result<Outcome, LaunchError> {
    let folder = RunFolder::of(manifest);
    let file_error = |error: std::io::Error| LaunchError::File {
        path: folder.path().display().to_string(),
        cause: error.to_string(),
    };
    let Some(lock) = Lock::try_take(&folder).map_err(file_error)? else {
        let status = running::wait_ready(manifest, patience(manifest)).await?;
        return Ok(Outcome::AlreadyRunning(Box::new(status)));
    };
    stop::end_processes(&folder, Signal::SIGTERM).await?;
    let record = folder
        .publish(ProcessRecord::of_self(Role::Launcher, &manifest.cluster.name))
        .map_err(file_error)?;
    let outcome = match manifest.launcher.kind {
        LauncherKind::Local => match std::env::current_exe() {
            Ok(program) => supervise_with(manifest, LocalLauncher::new(program), ready).await,
            Err(error) => Err(LaunchError::System(format!("this program has no path: {error}"))),
        },
        LauncherKind::Ssh => match SshLauncher::new(manifest) {
            Ok(launcher) => supervise_with(manifest, launcher, ready).await,
            Err(error) => Err(error),
        },
    };
    let ended = stop::end_processes(&folder, Signal::SIGKILL).await;
    drop(record);
    let removed = folder.remove().map_err(file_error);
    drop(lock);
    outcome?;
    ended?;
    removed?;
    Ok(Outcome::Stopped)
}

/// Longest wait for all nodes.
fn patience(manifest: &Manifest) -> Duration {
    Duration::from_millis(manifest.launcher.ready_deadline_ms.into())
}

async fn supervise_with(
    manifest: &Manifest,
    launcher: impl Launcher,
    ready: &mut dyn FnMut(&ClusterStatus),
) -> Result<(), LaunchError> {
    let mut supervisor = Supervisor::new(manifest, launcher);
    let outcome = supervisor.live(ready).await;
    supervisor.launcher.stop_all(STOP_DEADLINE).await;
    outcome
}

struct Supervisor<'a, L> {
    manifest: &'a Manifest,
    folder: RunFolder,
    certs_dir: PathBuf,
    launcher: L,
    nodes: BTreeMap<String, Node>,
    coordinator: Option<SocketAddr>,
    /// Where clients of this host find a coordinator that is on another.
    record: Option<Published>,
}

/// One node's agent.
struct Node {
    restarts: Restarts,
    started: Instant,
    alive: bool,
    /// The port it listens on, kept over restarts.
    control_port: u16,
}

/// Why a running cluster stops.
enum Stop {
    Signal,
    Ordered,
}

impl<'a, L: Launcher> Supervisor<'a, L> {
    fn new(manifest: &'a Manifest, launcher: L) -> Self {
        let node = |port| Node {
            restarts: Restarts::new(manifest.launcher.restarts_max),
            started: Instant::now(),
            alive: false,
            control_port: port,
        };
        let nodes = manifest.nodes.iter();
        Self {
            manifest,
            folder: RunFolder::of(manifest),
            certs_dir: PathBuf::new(),
            launcher,
            nodes: nodes
                .map(|section| (section.name.clone(), node(section.control_port)))
                .collect(),
            coordinator: None,
            record: None,
        }
    }

    async fn live(&mut self, ready: &mut dyn FnMut(&ClusterStatus)) -> Result<(), LaunchError> {
        let system = |error: std::io::Error| LaunchError::System(format!("signals: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(system)?;
        let mut signalled = std::pin::pin!(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        self.certs_dir = certificates::ensure(self.manifest)?;
        let status = tokio::select! {
            status = self.start() => status?,
            () = &mut signalled => return Err(LaunchError::Interrupted),
        };
        ready(&status);
        let stop = tokio::select! {
            stop = self.keep_alive() => stop?,
            () = &mut signalled => Stop::Signal,
        };
        match stop {
            Stop::Signal => tracing::info!("told to stop"),
            Stop::Ordered => tracing::info!("the cluster was taken down"),
        }
        Ok(())
    }

    /// Starts all agents, the coordinator's first, and waits for the mesh.
    async fn start(&mut self) -> Result<ClusterStatus, LaunchError> {
        let first = self.manifest.coordinator_node().to_string();
        self.start_agent(&first).await?;
        let others: Vec<String> =
            self.nodes.keys().filter(|name| **name != first).cloned().collect();
        for node in others {
            self.start_agent(&node).await?;
        }
        let manifest = self.manifest;
        tokio::select! {
            status = running::wait_ready(manifest, patience(manifest)) => status,
            AgentExit { node, cause, .. } = self.launcher.exited() => {
                Err(LaunchError::Node { node, cause })
            }
        }
    }

    async fn start_agent(&mut self, name: &str) -> Result<(), LaunchError> {
        let hosts = name == self.manifest.coordinator_node();
        let Some(node) = self.nodes.get_mut(name) else { return Ok(()) };
        let identity = Identity::load(&self.certs_dir, Certificate::Node, name)
            .map_err(|error| LaunchError::Node { node: name.into(), cause: error.to_string() })?;
        let orders = AgentBootstrap {
            manifest: self.manifest.clone(),
            node: name.into(),
            coordinator: self.coordinator.filter(|_| !hosts).map(|address| address.to_string()),
            control_port: node.control_port,
            credentials: Credentials::of(&identity),
            run_dir: Some(self.folder.path().to_path_buf()),
            lease_ms: None,
        };
        let address = self.launcher.start(orders).await?;
        node.started = Instant::now();
        node.alive = true;
        if hosts {
            // The others dial this address, also after a restart.
            node.control_port = address.port();
            self.coordinator = Some(address);
            self.publish(address)?;
        }
        Ok(())
    }

    /// A coordinator on this host writes its record itself.
    fn publish(&mut self, address: SocketAddr) -> Result<(), LaunchError> {
        if self.manifest.launcher.kind == LauncherKind::Local {
            return Ok(());
        }
        let name = self.manifest.coordinator_node();
        let record = ProcessRecord {
            address: Some(address.to_string()),
            ..ProcessRecord::of_self(Role::Coordinator, name)
        };
        let published = self.folder.publish(record).map_err(|error| LaunchError::File {
            path: self.folder.path().display().to_string(),
            cause: error.to_string(),
        })?;
        self.record = Some(published);
        Ok(())
    }

    /// Restarts agents that die; ends when the cluster was taken down or cannot go on.
    async fn keep_alive(&mut self) -> Result<Stop, LaunchError> {
        let (due, mut restarts) = mpsc::channel::<String>(RESTARTS_WAITING_MAX);
        loop {
            let dead = tokio::select! {
                exit = self.launcher.exited() => exit,
                Some(node) = restarts.recv() => match self.start_agent(&node).await {
                    Ok(()) => continue,
                    Err(error) => AgentExit { node, ordered: false, cause: error.to_string() },
                },
            };
            let hosts = dead.node == self.manifest.coordinator_node();
            let Some(node) = self.nodes.get_mut(&dead.node) else { continue };
            node.alive = false;
            if dead.ordered {
                if hosts || self.nodes.values().all(|node| !node.alive) {
                    return Ok(Stop::Ordered);
                }
                continue;
            }
            tracing::warn!(node = dead.node, cause = dead.cause, "agent ended");
            match node.restarts.died(node.started.elapsed()) {
                Some(pause) => {
                    let due = due.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(pause).await;
                        // A supervisor that has ended restarts nobody.
                        let _ = due.send(dead.node).await;
                    });
                }
                None if hosts => {
                    let cause = format!("it died too often; last: {}", dead.cause);
                    return Err(LaunchError::Node { node: dead.node, cause });
                }
                None => tracing::error!(node = dead.node, "it died too often and stays dead"),
            }
        }
    }
}

//! Agents as child processes on this host.
//!
//! Owns the children: an agent lives as long as its stdin is open here. Each is in a process group
//! of its own, so that an interrupt at the terminal reaches only the supervisor.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::children::{Children, Watch};
use super::notices::Notices;
use super::{AgentExit, LaunchError, Launcher, OTLP_ENDPOINT};
use crate::agent::SUBCOMMAND;
use crate::agent::bootstrap::{AgentBootstrap, AgentNotice};
use crate::agent::worker_home::describe;
use crate::manifest::TelemetrySection;
use crate::worker_process::bootstrap;

/// Longest time for an agent to listen.
const LISTEN_DEADLINE: Duration = Duration::from_secs(20);

/// Starts agents on this host.
pub(super) struct LocalLauncher {
    program: PathBuf,
    /// Each lives as long as its stdin is open.
    agents: Children<ChildStdin>,
}

impl LocalLauncher {
    /// `program` is what has the agent subcommand.
    pub(super) fn new(program: PathBuf) -> Self {
        Self { program, agents: Children::new() }
    }

    fn spawn(&self, telemetry: &TelemetrySection) -> std::io::Result<Child> {
        let mut command = Command::new(&self.program);
        if let Some(endpoint) = &telemetry.otlp_endpoint
            && std::env::var_os(OTLP_ENDPOINT).is_none()
        {
            // Inherited by its workers; what is there already is the user's word and stays.
            command.env(OTLP_ENDPOINT, endpoint);
        }
        command
            .arg(SUBCOMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

impl Launcher for LocalLauncher {
    async fn start(&mut self, orders: AgentBootstrap) -> Result<SocketAddr, LaunchError> {
        let node = orders.node.clone();
        let failed = |cause: String| LaunchError::Node { node: node.clone(), cause };
        let mut child = self
            .spawn(&orders.manifest.telemetry)
            .map_err(|error| failed(format!("cannot start {}: {error}", self.program.display())))?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("it has no stdin or stdout".into()));
        };
        let line = bootstrap::line(&orders).map_err(failed)?;
        stdin.write_all(&line).await.map_err(|error| failed(error.to_string()))?;
        let mut notices = Notices::of(stdout);
        let notice = timeout(LISTEN_DEADLINE, notices.next()).await;
        let address = match notice {
            Ok(Some(AgentNotice::Listening(address))) => address,
            Ok(Some(AgentNotice::Failed(cause))) => return Err(failed(cause)),
            Ok(None) => {
                let status = timeout(LISTEN_DEADLINE, child.wait()).await;
                let status = status.map_or_else(|_| "it is stuck".into(), describe);
                return Err(failed(format!("it ended at once ({status})")));
            }
            Err(_) => {
                let seconds = LISTEN_DEADLINE.as_secs();
                return Err(failed(format!("it does not listen after {seconds} s")));
            }
        };
        let ends = self.agents.hold(node.clone(), stdin);
        tokio::spawn(watch(node, child, notices, ends));
        Ok(address)
    }

    async fn exited(&mut self) -> AgentExit {
        self.agents.exited().await
    }

    async fn stop_all(&mut self, deadline: Duration) {
        let stuck = self.agents.end_all(deadline).await;
        for node in &stuck {
            tracing::warn!(node, "its agent does not end and is killed");
        }
        self.agents.reap(stuck.len()).await;
    }
}

/// Waits for an agent's end, keeping the last cause it named.
async fn watch(
    node: String,
    mut child: Child,
    mut notices: Notices<ChildStdout>,
    Watch { killed, exited }: Watch,
) {
    let status = tokio::select! {
        status = child.wait() => status,
        _ = killed => {
            // It may have ended this very moment.
            let _ = child.start_kill();
            child.wait().await
        }
    };
    let ordered = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    let cause = match timeout(Duration::from_secs(1), notices.next()).await {
        Ok(Some(AgentNotice::Failed(cause))) => cause,
        _ => describe(status),
    };
    // A supervisor that has ended does not care.
    let _ = exited.send(AgentExit { node, ordered, cause }).await;
}

//! Agents as child processes on this host.
//!
//! Owns the children: an agent lives as long as its stdin is open here. Each is in a process group
//! of its own, so that an interrupt at the terminal reaches only the supervisor.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::notices::Notices;
use super::{AgentExit, LaunchError, Launcher, OTLP_ENDPOINT};
use crate::agent::SUBCOMMAND;
use crate::agent::bootstrap::{AgentBootstrap, AgentNotice};
use crate::agent::worker_home::describe;
use crate::manifest::TelemetrySection;
use crate::worker_process::bootstrap;

/// Longest time for an agent to listen.
const LISTEN_DEADLINE: Duration = Duration::from_secs(20);

/// Exits that wait to be seen.
const EXITS_MAX: usize = 1024;

/// Starts agents on this host.
pub(super) struct LocalLauncher {
    program: PathBuf,
    agents: BTreeMap<String, Agent>,
    exits: mpsc::Receiver<AgentExit>,
    exited: mpsc::Sender<AgentExit>,
}

struct Agent {
    /// Open for as long as the agent is to live.
    stdin: ChildStdin,
    /// Dropped to kill it.
    kill: oneshot::Sender<()>,
}

impl LocalLauncher {
    /// `program` is what has the agent subcommand.
    pub(super) fn new(program: PathBuf) -> Self {
        let (exited, exits) = mpsc::channel(EXITS_MAX);
        Self { program, agents: BTreeMap::new(), exits, exited }
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
        let (kill, killed) = oneshot::channel();
        tokio::spawn(watch(node.clone(), child, notices, killed, self.exited.clone()));
        self.agents.insert(node, Agent { stdin, kill });
        Ok(address)
    }

    async fn exited(&mut self) -> AgentExit {
        match self.exits.recv().await {
            Some(exit) => {
                self.agents.remove(&exit.node);
                exit
            }
            // This launcher holds a sender itself.
            None => std::future::pending().await,
        }
    }

    async fn stop_all(&mut self, deadline: Duration) {
        let mut kills = Vec::new();
        for (node, agent) in std::mem::take(&mut self.agents) {
            drop(agent.stdin);
            kills.push((node, agent.kill));
        }
        let deadline = Instant::now() + deadline;
        while !kills.is_empty() {
            match timeout_at(deadline, self.exits.recv()).await {
                Ok(Some(exit)) => kills.retain(|(node, _)| *node != exit.node),
                Ok(None) | Err(_) => break,
            }
        }
        for (node, kill) in kills {
            tracing::warn!(node, "its agent does not end and is killed");
            drop(kill);
            // Its watcher kills and waits for it.
            let _ = timeout(Duration::from_secs(1), self.exits.recv()).await;
        }
    }
}

/// Waits for an agent's end, keeping the last cause it named.
async fn watch(
    node: String,
    mut child: Child,
    mut notices: Notices<ChildStdout>,
    killed: oneshot::Receiver<()>,
    exited: mpsc::Sender<AgentExit>,
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

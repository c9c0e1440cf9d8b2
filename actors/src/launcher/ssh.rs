//! Agents on other hosts, started by the user's own OpenSSH.
//!
//! Owns one connection and one remote process per node. Who may log in, as whom and by which way is
//! `ssh`'s own business (`~/.ssh/config`, keys, the agent of keys). Orders and keys go down the
//! remote process's stdin; its arguments hold nothing.
//!
//! Invariant: an agent ends when its stdin closes, or when nothing came down it for [`LEASE`]. So a
//! launcher that is killed, stopped or cut off leaves no agent; the local `ssh` that held the
//! connection ends [`IDLE_SECONDS`] after its last use.

mod connection;
pub mod fault;
mod folder;

use std::net::SocketAddr;
use std::time::Duration;

use openssh::{ChildStderr, ChildStdin};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::oneshot;
use tokio::time::timeout;

use self::connection::{Connection, Remote, RemoteChild};
use self::fault::SshFault;
use self::folder::ControlFolder;
use super::children::{Children, Watch};
use super::notices::Notices;
use super::record::RunFolder;
use super::{AgentExit, LaunchError, Launcher};
use crate::agent::bootstrap::{AgentBootstrap, AgentNotice};
use crate::manifest::{LauncherSection, Manifest};
use crate::worker_process::bootstrap;

/// Longest time for an agent to listen once its process is there.
const LISTEN_DEADLINE: Duration = Duration::from_secs(20);

/// Silence on its stdin after which an agent ends.
const LEASE: Duration = Duration::from_secs(15);

/// Between signs of life.
const BEAT_PAUSE: Duration = Duration::from_secs(3);

/// Bytes of one line of an agent's log; longer ones are cut into several.
const LOG_LINE_BYTES_MAX: u64 = 16 << 10;

/// Seconds that a connection outlives its last use.
const IDLE_SECONDS: usize = 5;

/// Starts agents over ssh.
pub(super) struct SshLauncher {
    settings: LauncherSection,
    folder: ControlFolder,
    /// What is held for each is dropped to let its stdin close.
    agents: Children<oneshot::Sender<()>>,
}

impl SshLauncher {
    /// For the cluster of `manifest`, whose lock is held.
    ///
    /// # Errors
    /// When there is no safe folder for the connections' sockets.
    pub(super) fn new(manifest: &Manifest) -> Result<Self, LaunchError> {
        let folder = ControlFolder::of(&RunFolder::of(manifest))?;
        Ok(Self { settings: manifest.launcher.clone(), folder, agents: Children::new() })
    }

    /// Waits until the agent says where it listens; otherwise its reason, if it gave one.
    async fn listening(remote: &mut Remote) -> Result<SocketAddr, Option<String>> {
        match timeout(LISTEN_DEADLINE, remote.notices.next()).await {
            Ok(Some(AgentNotice::Listening(address))) => Ok(address),
            Ok(Some(AgentNotice::Failed(cause))) => Err(Some(cause)),
            Ok(None) => Err(None),
            Err(_) => {
                let seconds = LISTEN_DEADLINE.as_secs();
                Err(Some(format!("it does not listen after {seconds} s")))
            }
        }
    }
}

impl Launcher for SshLauncher {
    async fn start(&mut self, orders: AgentBootstrap) -> Result<SocketAddr, LaunchError> {
        let node = orders.node.clone();
        let host = connection::host_of(&orders.manifest, &node);
        let failed = |(fault, cause): (SshFault, String)| LaunchError::Ssh {
            node: node.clone(),
            host: host.clone(),
            fault,
            cause,
        };
        let orders =
            AgentBootstrap { run_dir: None, lease_ms: Some(LEASE.as_millis() as u32), ..orders };
        let line = bootstrap::line(&orders)
            .map_err(|cause| LaunchError::Node { node: node.clone(), cause })?;
        let connection = Connection::open(&self.settings, self.folder.path(), &host);
        let connection = connection.await.map_err(failed)?;
        let mut remote =
            connection.start(&self.settings, &orders.manifest).await.map_err(failed)?;
        stream_log(node.clone(), remote.stderr.take());
        // A process that is gone already says why below.
        let _ = remote.stdin.write_all(&line).await;
        let address = match Self::listening(&mut remote).await {
            Ok(address) => address,
            Err(Some(cause)) => return Err(LaunchError::Node { node, cause }),
            Err(None) => return Err(failed(remote.why_it_ended(&self.settings).await)),
        };
        let (life, over) = oneshot::channel();
        let Remote { stdin, notices, child, .. } = remote;
        tokio::spawn(keep(stdin, over));
        let ends = self.agents.hold(node.clone(), life);
        tokio::spawn(watch(node, child, notices, ends));
        Ok(address)
    }

    async fn exited(&mut self) -> AgentExit {
        self.agents.exited().await
    }

    async fn stop_all(&mut self, deadline: Duration) {
        for node in self.agents.end_all(deadline).await {
            tracing::warn!(node, "its agent does not end; its lease ends it");
        }
    }
}

/// Holds an agent's stdin open, and shows on it that this launcher lives.
async fn keep(mut stdin: ChildStdin, mut over: oneshot::Receiver<()>) {
    loop {
        let beat = async {
            tokio::time::sleep(BEAT_PAUSE).await;
            stdin.write_all(b"\n").await
        };
        tokio::select! {
            _ = &mut over => return,
            beat = beat => if beat.is_err() { return },
        }
    }
}

/// Waits for an agent's end, keeping the last cause it named.
async fn watch(
    node: String,
    child: RemoteChild,
    mut notices: Notices<openssh::ChildStdout>,
    Watch { killed, exited }: Watch,
) {
    let status = tokio::select! {
        status = child.wait() => status,
        _ = killed => return,
    };
    let ordered = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    let cause = match timeout(Duration::from_secs(1), notices.next()).await {
        Ok(Some(AgentNotice::Failed(cause))) => cause,
        _ => match status {
            Ok(status) => status.to_string(),
            Err(error) => fault::words(&error),
        },
    };
    // A supervisor that has ended does not care.
    let _ = exited.send(AgentExit { node, ordered, cause }).await;
}

/// Copies an agent's log to this process's, each line with the node's name.
fn stream_log(node: String, stderr: Option<ChildStderr>) {
    let Some(stderr) = stderr else { return };
    tokio::spawn(async move {
        let mut log = BufReader::new(stderr);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut log).take(LOG_LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
            if !read.is_ok_and(|bytes| bytes > 0) {
                return;
            }
            let text = String::from_utf8_lossy(&line);
            let mut stderr = std::io::stderr().lock();
            // Where nobody reads the log, it is lost and the cluster goes on.
            let _ = std::io::Write::write_fmt(
                &mut stderr,
                format_args!("[{node}] {}\n", text.trim_end()),
            );
        }
    });
}

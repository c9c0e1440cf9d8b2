//! One connection to a host, and the process on it.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openssh::{
    Child, ChildStderr, ChildStdin, ChildStdout, ControlPersist, KnownHosts, Session,
    SessionBuilder, Stdio,
};
use tokio::time::timeout;

use super::super::OTLP_ENDPOINT;
use super::super::notices::Notices;
use super::IDLE_SECONDS;
use super::fault::{SshFault, words};
use crate::agent::SUBCOMMAND;
use crate::manifest::{HostKeys, LauncherSection, Manifest};

/// Longest time to be let in.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);

/// Between looks whether the other host still answers; three without an answer end a connection.
const ALIVE_PAUSE: Duration = Duration::from_secs(5);

/// Longest wait for how a process that has said nothing ended.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// Exit codes of a shell for a program that it cannot run, and for one that is not there.
const NOT_RUN: [i32; 2] = [126, 127];

/// Variable that says what is logged.
const LOG_VARIABLE: &str = "DITMESH_LOG";

/// A process on another host.
pub(super) type RemoteChild = Child<Arc<Session>>;

type Failed = (SshFault, String);

/// What `ssh` is told to connect to: the node's address, an alias in its configuration or not.
pub(super) fn host_of(manifest: &Manifest, node: &str) -> String {
    let mut nodes = manifest.nodes.iter();
    nodes.find(|section| section.name == node).map_or_else(String::new, |node| node.address.clone())
}

/// One host.
pub(super) struct Connection(Arc<Session>);

impl Connection {
    /// Connects, as the user's own configuration says.
    pub(super) async fn open(
        settings: &LauncherSection,
        sockets: &Path,
        host: &str,
    ) -> Result<Self, Failed> {
        let mut builder = SessionBuilder::default();
        builder
            .control_directory(sockets)
            .connect_timeout(CONNECT_DEADLINE)
            .server_alive_interval(ALIVE_PAUSE)
            .known_hosts_check(match settings.ssh_host_keys {
                HostKeys::Strict => KnownHosts::Strict,
                HostKeys::AcceptNew => KnownHosts::Add,
            });
        if let Some(idle) = NonZeroUsize::new(IDLE_SECONDS) {
            builder.control_persist(ControlPersist::IdleFor(idle));
        }
        if let Some(config) = &settings.ssh_config {
            builder.config_file(config);
        }
        match timeout(2 * CONNECT_DEADLINE, builder.connect(host)).await {
            Ok(Ok(session)) => Ok(Self(Arc::new(session))),
            Ok(Err(error)) => Err((SshFault::of(&error), words(&error))),
            Err(_) => {
                let seconds = 2 * CONNECT_DEADLINE.as_secs();
                Err((SshFault::Unreachable, format!("no connection after {seconds} s")))
            }
        }
    }

    /// Starts an agent, which waits for its orders.
    pub(super) async fn start(
        self,
        settings: &LauncherSection,
        manifest: &Manifest,
    ) -> Result<Remote, Failed> {
        let program = settings.program.display().to_string();
        let mut environment = Vec::new();
        if let Some(level) = std::env::var(LOG_VARIABLE).ok().filter(|level| !level.is_empty()) {
            environment.push(format!("{LOG_VARIABLE}={level}"));
        }
        if let Some(endpoint) = &manifest.telemetry.otlp_endpoint {
            environment.push(format!("{OTLP_ENDPOINT}={endpoint}"));
        }
        let mut command = match environment.is_empty() {
            true => self.0.clone().arc_command(program),
            false => {
                let mut command = self.0.clone().arc_command("env");
                command.args(environment).arg(program);
                command
            }
        };
        command.arg(SUBCOMMAND);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |error: &openssh::Error| (SshFault::of(error), words(error));
        let mut child = piped.spawn().await.map_err(|error| failed(&error))?;
        let (stdin, stdout) = (child.stdin().take(), child.stdout().take());
        let stderr = child.stderr().take();
        let (Some(stdin), Some(stdout)) = (stdin, stdout) else {
            return Err((SshFault::Other, "it has no stdin or stdout".into()));
        };
        Ok(Remote { child, stdin, notices: Notices::of(stdout), stderr })
    }
}

/// An agent's process on its host.
pub(super) struct Remote {
    pub(super) child: RemoteChild,
    pub(super) stdin: ChildStdin,
    pub(super) notices: Notices<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
}

impl Remote {
    /// Why a process that said nothing has ended.
    pub(super) async fn why_it_ended(self, settings: &LauncherSection) -> Failed {
        let program = settings.program.display();
        match timeout(END_DEADLINE, self.child.wait()).await {
            Ok(Ok(status)) if status.code().is_some_and(|code| NOT_RUN.contains(&code)) => {
                (SshFault::NoProgram, format!("{program}: {status}"))
            }
            Ok(Ok(status)) => (SshFault::Other, format!("{program} ended at once: {status}")),
            Ok(Err(error)) => match SshFault::of(&error) {
                SshFault::NoProgram => (SshFault::NoProgram, format!("{program} is not there")),
                fault => (fault, words(&error)),
            },
            Err(_) => (SshFault::Other, format!("{program} said nothing")),
        }
    }
}

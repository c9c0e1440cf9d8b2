//! What a launcher tells an agent on its stdin, and what the agent tells back on its stdout.
//!
//! One line of JSON each way; stdin then stays open for as long as the launcher lives.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::credentials::Credentials;
use crate::manifest::Manifest;

/// One node's agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AgentBootstrap {
    pub(crate) manifest: Manifest,
    pub(crate) node: String,
    /// Where the coordinator is, `HOST:PORT`; absent for the agent that hosts it.
    pub(crate) coordinator: Option<String>,
    /// The control port, when it was chosen by an earlier life of this agent.
    pub(crate) control_port: u16,
    pub(crate) credentials: Credentials,
    /// Folder of the cluster's records; absent where the launcher is on another host.
    pub(crate) run_dir: Option<PathBuf>,
    /// Milliseconds of silence on stdin after which the launcher counts as gone; absent where its
    /// end is certain to close stdin.
    pub(crate) lease_ms: Option<u32>,
}

/// From an agent to its launcher, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AgentNotice {
    /// Its control endpoint is there; for the coordinator's agent, the coordinator's.
    Listening(SocketAddr),
    /// It cannot start.
    Failed(String),
}

impl AgentNotice {
    /// Says it on stdout.
    pub(crate) fn say(&self) {
        if let Ok(mut line) = serde_json::to_vec(self) {
            line.push(b'\n');
            let mut stdout = std::io::stdout().lock();
            // A launcher that has gone is noticed on stdin.
            let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
        }
    }
}

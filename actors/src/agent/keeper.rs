//! Who keeps an agent: tells it to end, and is told that it listens.
//!
//! Owns the two ways: a launcher at the other end of stdin and stdout, or the system (Slurm's step,
//! a pod, a shell), which sends SIGTERM and looks at the agent's health.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::GRACE;
use super::bootstrap::AgentNotice;
use crate::worker_process::bootstrap as stdin;

/// Resolves when the agent is to end.
pub(super) type Told = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Who keeps an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeper {
    /// Who holds stdin open.
    Launcher,
    /// Whoever signals.
    System,
}

impl Keeper {
    /// Begins to listen for the end. A launcher that says nothing for `lease` has gone.
    pub(super) fn listen(self, lease: Option<Duration>) -> std::io::Result<Told> {
        match self {
            Self::Launcher => {
                let (closed, stdin_closed) = oneshot::channel::<()>();
                stdin::watch_stdin(GRACE, lease, move || drop(closed))?;
                Ok(Box::pin(async move {
                    // Dropped, not sent.
                    let _ = stdin_closed.await;
                }))
            }
            Self::System => {
                let mut interrupt = signal(SignalKind::interrupt())?;
                let mut terminate = signal(SignalKind::terminate())?;
                Ok(Box::pin(async move {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    tracing::info!("told to end by a signal");
                }))
            }
        }
    }

    /// Says where the agent listens.
    pub(super) fn tell(self, node: &str, address: SocketAddr) {
        match self {
            Self::Launcher => AgentNotice::Listening(address).say(),
            Self::System => tracing::info!(node, %address, "agent listens"),
        }
    }
}

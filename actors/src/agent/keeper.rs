//! Who keeps an agent: tells it to end, and is told that it listens.
//!
//! Owns the two ways: a launcher at the other end of stdin and stdout, or the system (Slurm's step,
//! a pod, a shell), which looks at the agent's health. Either may send SIGTERM, which takes the
//! node out without losing what runs there; a launcher that has gone, and a second signal, end it
//! at once.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::GRACE;
use super::bootstrap::AgentNotice;
use crate::worker_process::bootstrap as stdin;

/// What an agent is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// End in order: leave the cluster first.
    Leave,
    /// End now.
    Now,
}

/// Resolves when the agent is to end.
pub(super) type Told = Pin<Box<dyn Future<Output = End> + Send>>;

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
        let mut terminate = signal(SignalKind::terminate())?;
        match self {
            Self::Launcher => {
                let (closed, stdin_closed) = oneshot::channel::<()>();
                stdin::watch_stdin(GRACE, lease, move || drop(closed))?;
                Ok(Box::pin(async move {
                    tokio::select! {
                        // Dropped, not sent.
                        _ = stdin_closed => End::Now,
                        _ = terminate.recv() => End::Leave,
                    }
                }))
            }
            Self::System => {
                let mut interrupt = signal(SignalKind::interrupt())?;
                Ok(Box::pin(async move {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    tracing::info!("told to end by a signal");
                    End::Leave
                }))
            }
        }
    }

    /// Resolves when an agent that leaves is told to end at once.
    pub(super) async fn patience() {
        let signals = signal(SignalKind::interrupt())
            .and_then(|interrupt| Ok((interrupt, signal(SignalKind::terminate())?)));
        match signals {
            Ok((mut interrupt, mut terminate)) => {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            }
            // Its own deadline ends the leaving.
            Err(_) => std::future::pending().await,
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

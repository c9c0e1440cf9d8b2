//! The agents that a launcher started, from their start to their end.
//!
//! Owns what keeps each alive and the news of their ends. `Life` is whatever an agent lives by:
//! dropping it asks for its end. Invariant: an agent is held until its exit was reported, or it
//! was given up.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::AgentExit;

/// Exits that wait to be seen.
const EXITS_MAX: usize = 1024;

/// Longest time for killed agents to be gone.
const KILLED_DEADLINE: Duration = Duration::from_secs(1);

/// The agents of one launcher.
pub(super) struct Children<Life> {
    held: BTreeMap<String, Child<Life>>,
    exits: mpsc::Receiver<AgentExit>,
    exited: mpsc::Sender<AgentExit>,
}

struct Child<Life> {
    life: Life,
    /// Dropped to end its watch, by force.
    kill: oneshot::Sender<()>,
}

/// What the watcher of an agent works with.
pub(super) struct Watch {
    /// Resolves when the agent is not to be waited for any longer.
    pub(super) killed: oneshot::Receiver<()>,
    /// Where its end is told.
    pub(super) exited: mpsc::Sender<AgentExit>,
}

impl<Life> Children<Life> {
    pub(super) fn new() -> Self {
        let (exited, exits) = mpsc::channel(EXITS_MAX);
        Self { held: BTreeMap::new(), exits, exited }
    }

    /// Holds the agent of `node`; somebody has to watch it.
    pub(super) fn hold(&mut self, node: String, life: Life) -> Watch {
        let (kill, killed) = oneshot::channel();
        self.held.insert(node, Child { life, kill });
        Watch { killed, exited: self.exited.clone() }
    }

    /// Waits for the next agent to end.
    pub(super) async fn exited(&mut self) -> AgentExit {
        match self.exits.recv().await {
            Some(exit) => {
                self.held.remove(&exit.node);
                exit
            }
            // A sender is held here.
            None => std::future::pending().await,
        }
    }

    /// Asks all agents to end, and ends the watch of those that have not after `deadline`; their
    /// nodes.
    pub(super) async fn end_all(&mut self, deadline: Duration) -> Vec<String> {
        let mut kills = BTreeMap::new();
        for (node, child) in std::mem::take(&mut self.held) {
            drop(child.life);
            kills.insert(node, child.kill);
        }
        let deadline = Instant::now() + deadline;
        while !kills.is_empty() {
            match timeout_at(deadline, self.exits.recv()).await {
                Ok(Some(exit)) => drop(kills.remove(&exit.node)),
                Ok(None) | Err(_) => break,
            }
        }
        kills.into_keys().collect()
    }

    /// Waits a moment for `count` agents whose watchers were told to kill them.
    pub(super) async fn reap(&mut self, count: usize) {
        let deadline = Instant::now() + KILLED_DEADLINE;
        for _ in 0..count {
            if timeout_at(deadline, self.exits.recv()).await.is_err() {
                return;
            }
        }
    }
}

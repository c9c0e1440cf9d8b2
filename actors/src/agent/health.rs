//! What a probe outside sees of an agent: a small file in the run folder, written anew every second
//! by the agent's own thread, so that an agent that hangs grows old.
//!
//! Owns the file's form and what it proves. No socket: a probe runs beside the agent and reads it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::node_agent::unix_ms;
use crate::launcher::record::{ProcessRecord, Role, RunFolder};

/// Between two writes.
const BEAT_PAUSE: Duration = Duration::from_secs(1);

/// Age at which an agent counts as stuck.
const BEAT_AGE_MAX: Duration = Duration::from_secs(5);

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Beat {
    process: ProcessRecord,
    /// When, in milliseconds since 1970.
    at_ms: u64,
    /// Whether the coordinator has welcomed it.
    joined: bool,
}

/// An agent that shows its health, until this is dropped.
pub(crate) struct Health {
    beating: JoinHandle<()>,
    path: PathBuf,
}

impl Health {
    /// Begins; `joined` tells whether there is a session with the coordinator.
    pub(crate) fn show(folder: &RunFolder, node: &str, joined: watch::Receiver<bool>) -> Self {
        let (folder, node) = (folder.clone(), node.to_owned());
        let path = path_of(&folder, &node);
        let beating = tokio::spawn(async move {
            let mut joined = joined;
            loop {
                let process = ProcessRecord::of_self(Role::Agent, &node);
                let joined_now = *joined.borrow_and_update();
                let beat = Beat { process, at_ms: unix_ms(), joined: joined_now };
                if let Err(error) = write(&folder, &node, &beat) {
                    tracing::warn!(%error, "the agent's health cannot be shown");
                }
                // Whatever comes first; a sender that has gone leaves the pause.
                let _ = tokio::time::timeout(BEAT_PAUSE, async {
                    if joined.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                })
                .await;
            }
        });
        Self { beating, path }
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.beating.abort();
        // Whoever cleaned up before us did our work.
        let _ = fs::remove_file(&self.path);
    }
}

/// Why a probe finds no healthy agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unhealthy {
    /// No agent of this host has shown itself.
    #[error("no agent of this host runs: nothing in {folder}")]
    Absent {
        /// The run folder.
        folder: String,
    },
    /// Its process has ended.
    #[error("the agent of node \"{node}\" has ended")]
    Ended {
        /// Node name.
        node: String,
    },
    /// It has not written for too long.
    #[error("the agent of node \"{node}\" has not moved for {seconds} s")]
    Stuck {
        /// Node name.
        node: String,
        /// For how long.
        seconds: u64,
    },
    /// It has no session with the coordinator.
    #[error("the agent of node \"{node}\" runs and has not joined the cluster")]
    Apart {
        /// Node name.
        node: String,
    },
}

/// Whether the agents of this host that show their health in `folder` are well; with `ready`, also
/// whether the coordinator has welcomed each.
///
/// # Errors
/// [`Unhealthy`], of the first that is not.
pub fn probe(folder: &RunFolder, ready: bool) -> Result<(), Unhealthy> {
    let entries = fs::read_dir(folder.path()).into_iter().flatten().flatten();
    let is_health = |name: &str| name.starts_with("health-") && name.ends_with(".json");
    let beats = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_health))
        .filter_map(|entry| serde_json::from_slice::<Beat>(&fs::read(entry.path()).ok()?).ok())
        .filter(|beat| beat.process.is_local());
    let mut seen = false;
    for beat in beats {
        seen = true;
        judge(&beat, unix_ms(), beat.process.is_alive(), ready)?;
    }
    if seen {
        return Ok(());
    }
    Err(Unhealthy::Absent { folder: folder.path().display().to_string() })
}

fn judge(beat: &Beat, now_ms: u64, alive: bool, ready: bool) -> Result<(), Unhealthy> {
    let node = beat.process.name.clone();
    let age = Duration::from_millis(now_ms.saturating_sub(beat.at_ms));
    if !alive {
        return Err(Unhealthy::Ended { node });
    }
    if age > BEAT_AGE_MAX {
        return Err(Unhealthy::Stuck { node, seconds: age.as_secs() });
    }
    if ready && !beat.joined {
        return Err(Unhealthy::Apart { node });
    }
    Ok(())
}

fn path_of(folder: &RunFolder, node: &str) -> PathBuf {
    folder.path().join(format!("health-{node}.json"))
}

/// The file appears whole or not at all.
fn write(folder: &RunFolder, node: &str, beat: &Beat) -> std::io::Result<()> {
    let path = path_of(folder, node);
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    fs::write(&partial, serde_json::to_vec(beat)?)?;
    fs::rename(&partial, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_is_judged_by_life_age_and_welcome() {
        let process = ProcessRecord::of_self(Role::Agent, "a");
        let beat = Beat { process, at_ms: 5_000, joined: false };
        let node = || "a".to_owned();
        assert_eq!(judge(&beat, 5_000, true, false), Ok(()));
        assert_eq!(judge(&beat, 10_000, true, false), Ok(()), "as old as it may be");
        assert_eq!(judge(&beat, 4_000, true, false), Ok(()), "the clock was set back");
        let stuck = Unhealthy::Stuck { node: node(), seconds: 6 };
        assert_eq!(judge(&beat, 11_000, true, false), Err(stuck));
        let ended = Unhealthy::Ended { node: node() };
        assert_eq!(judge(&beat, 5_000, false, false), Err(ended));
        assert_eq!(judge(&beat, 5_000, true, true), Err(Unhealthy::Apart { node: node() }));
        assert_eq!(judge(&Beat { joined: true, ..beat }, 5_000, true, true), Ok(()));
    }

    #[tokio::test]
    async fn a_probe_sees_an_agent_as_long_as_it_shows_itself() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = RunFolder::at(dir.path().to_owned());
        assert!(matches!(probe(&folder, false), Err(Unhealthy::Absent { .. })));
        let (joined, joins) = watch::channel(false);
        let health = Health::show(&folder, "a", joins);
        let until = async |expected: fn(&Result<(), Unhealthy>) -> bool, ready| {
            let found = async {
                while !expected(&probe(&folder, ready)) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), found).await.expect("in time");
        };
        until(Result::is_ok, false).await;
        assert_eq!(probe(&folder, true), Err(Unhealthy::Apart { node: "a".into() }));
        joined.send(true).expect("it listens");
        until(Result::is_ok, true).await;
        drop(health);
        until(|found| matches!(found, Err(Unhealthy::Absent { .. })), false).await;
    }
}

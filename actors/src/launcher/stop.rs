//! Ending a cluster: politely through its coordinator, then by signals.
//!
//! Invariant: only processes that the records name, by id and start time, are ever signalled.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use super::lock::Lock;
use super::record::RunFolder;
use super::{DownOutcome, LaunchError};
use crate::client::ClusterClient;
use crate::manifest::Manifest;

/// Time for a cluster to end after it was told to.
const DOWN_DEADLINE: Duration = Duration::from_secs(20);

/// Time for processes to end after a signal.
const SIGNAL_DEADLINE: Duration = Duration::from_secs(10);

/// Between looks.
const LOOK_PAUSE: Duration = Duration::from_millis(25);

/// Stops the cluster of `manifest`. Blocks this thread.
pub(super) fn down(manifest: &Manifest) -> Result<DownOutcome, LaunchError> {
    let folder = RunFolder::of(manifest);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| LaunchError::System(format!("no runtime: {error}")))?;
    let processes = folder.others_alive().len();
    let asked = ClusterClient::connect(manifest).and_then(|client| client.blocking_down());
    if asked.is_err() && !folder.path().exists() {
        return Ok(DownOutcome::NotRunning);
    }
    let ended = runtime.block_on(async {
        if let Err(error) = &asked {
            tracing::debug!(%error, "the coordinator was not told; the launcher is");
            if let Some(launcher) = folder.launcher() {
                launcher.signal(Signal::SIGTERM);
            }
        }
        if processes > 0 && wait_for_end(&folder, DOWN_DEADLINE).await {
            return Ok(());
        }
        if asked.is_ok() {
            wait_for_silence(&folder).await;
        }
        end_processes(&folder, Signal::SIGTERM).await
    });
    ended?;
    remove(&folder)?;
    Ok(match processes {
        0 if asked.is_err() => DownOutcome::NotRunning,
        processes => DownOutcome::Stopped { processes },
    })
}

/// Removes what a killed launcher left, unless somebody starts the cluster right now.
pub(super) fn remove(folder: &RunFolder) -> Result<(), LaunchError> {
    let failed = |error: std::io::Error| LaunchError::File {
        path: folder.path().display().to_string(),
        cause: error.to_string(),
    };
    if !folder.path().exists() {
        return Ok(());
    }
    match Lock::try_take(folder).map_err(failed)? {
        Some(_lock) => folder.remove().map_err(failed),
        None => Ok(()),
    }
}

/// Ends what is left of an earlier run: with `signal`, then by force.
pub(super) async fn end_processes(folder: &RunFolder, signal: Signal) -> Result<(), LaunchError> {
    for signal in [signal, Signal::SIGKILL] {
        let left = folder.others_alive();
        if left.is_empty() {
            return Ok(());
        }
        for record in left {
            tracing::warn!(pid = record.pid, name = record.name, %signal, "ending a process");
            record.signal(signal);
        }
        if wait_for_end(folder, SIGNAL_DEADLINE).await {
            return Ok(());
        }
    }
    let left: Vec<String> =
        folder.others_alive().iter().map(|record| record.pid.to_string()).collect();
    Err(LaunchError::Stop(format!("processes {} do not end", left.join(", "))))
}

/// Waits until a coordinator of another host, which has agreed to end, withdraws its record; one
/// whose folder is not shared is taken at its word.
async fn wait_for_silence(folder: &RunFolder) {
    let deadline = Instant::now() + DOWN_DEADLINE;
    while folder.coordinator().is_some() && Instant::now() < deadline {
        sleep(LOOK_PAUSE).await;
    }
}

async fn wait_for_end(folder: &RunFolder, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while !folder.others_alive().is_empty() {
        if Instant::now() > deadline {
            return false;
        }
        sleep(LOOK_PAUSE).await;
    }
    true
}

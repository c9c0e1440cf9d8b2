//! Takes the node of this machine out of its cluster: the agent is told by a signal, as a system
//! would, and waited for.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::LaunchError;
use super::record::{ProcessRecord, Role, RunFolder};

/// Time beyond the draining for the agent to end.
const MARGIN: Duration = Duration::from_secs(30);

/// Between looks.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Makes the agents that run from `state_dir` leave, each within `drain`; their names. Blocks this
/// thread until they have.
///
/// # Errors
/// [`LaunchError::Stop`] when none runs, or one does not end.
pub fn leave_here(state_dir: &Path, drain: Duration) -> Result<Vec<String>, LaunchError> {
    let folders = std::fs::read_dir(state_dir.join("run")).into_iter().flatten().flatten();
    let folders: Vec<RunFolder> = folders.map(|entry| RunFolder::at(entry.path())).collect();
    let agents: Vec<(RunFolder, ProcessRecord)> = folders
        .into_iter()
        .flat_map(|folder| {
            let records = folder.records().into_iter();
            let alive = records.filter(|record| record.role == Role::Agent && record.is_alive());
            alive.map(move |record| (folder.clone(), record)).collect::<Vec<_>>()
        })
        .collect();
    if agents.is_empty() {
        let folder = state_dir.display();
        return Err(LaunchError::Stop(format!("no agent runs from {folder}")));
    }
    for (folder, record) in &agents {
        folder.set_drain(drain).map_err(|error| LaunchError::File {
            path: folder.path().display().to_string(),
            cause: error.to_string(),
        })?;
        record.signal(Signal::SIGTERM);
    }
    let deadline = Instant::now() + drain + MARGIN;
    while let Some((_, record)) = agents.iter().find(|(_, record)| record.is_alive()) {
        if Instant::now() > deadline {
            let ProcessRecord { name, pid, .. } = record;
            let seconds = (drain + MARGIN).as_secs();
            let cause = format!("the agent of node {name} (process {pid}) runs after {seconds} s");
            return Err(LaunchError::Stop(cause));
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    Ok(agents.into_iter().map(|(_, record)| record.name).collect())
}

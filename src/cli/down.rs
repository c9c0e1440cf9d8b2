//! `down`: stops a cluster.

use ditmesh::manifest;
use ditmesh_actors::launcher::{self, DownOutcome};

use super::args::ManifestArgs;
use super::failure::Failure;
use super::terminal::Terminal;

/// Stops the cluster and waits until its processes are gone. Nothing to stop is no failure.
pub(crate) fn run(args: &ManifestArgs, terminal: &Terminal) -> Result<(), Failure> {
    let manifest = manifest::parse::load(args.path())?;
    let name = &manifest.cluster.name;
    match launcher::down(&manifest)? {
        DownOutcome::NotRunning => terminal.note(&format!("cluster {name} does not run")),
        DownOutcome::Stopped { processes: 0 } => {
            terminal.note(&format!("cluster {name}, on other hosts, is told to stop"));
        }
        DownOutcome::Stopped { processes } => {
            terminal.note(&format!("cluster {name} is stopped: {processes} processes ended"));
        }
    }
    Ok(())
}

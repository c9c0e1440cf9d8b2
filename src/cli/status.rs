//! `status`: shows a running cluster.

use std::time::Duration;

use ditmesh::{ClusterClient, manifest};
use ditmesh_actors::launcher;

use super::args::StatusArgs;
use super::failure::Failure;
use super::mesh_text;
use super::terminal::Terminal;
use super::watch;

/// Asks the coordinator and prints what it says.
pub(crate) fn run(args: &StatusArgs, terminal: &Terminal) -> Result<(), Failure> {
    let manifest = manifest::parse::load(args.manifest.path())?;
    let status = match args.wait {
        Some(seconds) => launcher::wait_ready(&manifest, Duration::from_secs(seconds.into()))?,
        None => ClusterClient::connect(&manifest)?.blocking_status()?,
    };
    if args.watch {
        return watch::run(&manifest, args.json);
    }
    if args.json {
        return terminal.result(&serde_json::to_string_pretty(&status).map_err(Failure::failed)?);
    }
    terminal.result(&mesh_text::describe(&status))
}

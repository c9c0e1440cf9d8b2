//! `leave` and `force-leave`: take nodes out of a running cluster.

use std::path::Path;
use std::time::{Duration, Instant};

use ditmesh::{ClusterClient, ClusterStatus, manifest};
use ditmesh_actors::launcher;

use super::args::{ForceLeaveArgs, LeaveArgs};
use super::failure::Failure;
use super::terminal::Terminal;

/// Time beyond the draining until the node must be out.
const MARGIN: Duration = Duration::from_secs(30);

/// Between looks.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Takes a node out and waits until it is.
pub(crate) fn run(args: &LeaveArgs, terminal: &Terminal) -> Result<(), Failure> {
    let drain = Duration::from_secs(args.drain.into());
    let Some(node) = &args.node else {
        let left = launcher::leave_here(&args.state_dir, drain)?;
        terminal.note(&format!("node {} has left", left.join(", ")));
        return Ok(());
    };
    let client = connect(&args.cluster)?;
    terminal.note(&client.blocking_leave(node, drain)?);
    let deadline = Instant::now() + drain + MARGIN;
    loop {
        match client.blocking_status() {
            Ok(status) if is_out(&status, node) => break,
            Ok(_) => {}
            // The last node takes the coordinator along.
            Err(_) => break,
        }
        if Instant::now() > deadline {
            return Err(Failure::failed(format!("node {node} is still there")));
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    terminal.note(&format!("node {node} has left"));
    Ok(())
}

/// Declares a node gone.
pub(crate) fn force(args: &ForceLeaveArgs, terminal: &Terminal) -> Result<(), Failure> {
    let answer = connect(&args.cluster)?.blocking_force_leave(&args.node)?;
    terminal.note(&answer);
    Ok(())
}

fn connect(path: &Path) -> Result<ClusterClient, Failure> {
    Ok(ClusterClient::connect(&manifest::parse::load(path)?)?)
}

/// Whether a node has left: it is not in the cluster, or says so.
fn is_out(status: &ClusterStatus, name: &str) -> bool {
    let node = status.nodes.iter().find(|node| node.name == name);
    node.is_none_or(|node| node.state.starts_with("left") || node.state.starts_with("dead"))
}

//! The hidden `agent`: the process of one host.

use super::failure::Failure;

/// Lives until the cluster goes down or its launcher does.
pub(crate) fn run() -> Result<(), Failure> {
    Ok(ditmesh_actors::agent::run_process()?)
}

//! The hidden `worker`: the process of one device.

use super::failure::Failure;

/// Lives until its agent's end of stdin closes.
pub(crate) fn run() -> Result<(), Failure> {
    Ok(ditmesh_actors::worker_process::run()?)
}

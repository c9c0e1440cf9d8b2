//! The hidden `worker` and `measure`: the process of one device, and what measures it before.

use super::failure::Failure;

/// Lives until its agent's end of stdin closes.
pub(crate) fn run() -> Result<(), Failure> {
    Ok(ditmesh_actors::worker_process::run()?)
}

/// Measures a device for its agent.
pub(crate) fn measure() -> Result<(), Failure> {
    ditmesh_actors::device_bench::run_process().map_err(Failure::failed)
}

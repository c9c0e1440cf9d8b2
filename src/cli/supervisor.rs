//! The hidden `supervisor`: what stays behind `up --detach`.

use super::failure::Failure;

/// Lives until `down`.
pub(crate) fn run() -> Result<(), Failure> {
    Ok(ditmesh_actors::launcher::run_supervisor()?)
}

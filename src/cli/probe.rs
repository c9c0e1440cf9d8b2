//! `probe`: whether the agent of this host is well, for Kubernetes and for people.

use ditmesh::manifest;
use ditmesh_actors::agent::health;
use ditmesh_actors::launcher::record::RunFolder;

use super::args::ProbeArgs;
use super::failure::Failure;

/// Looks at what the agent shows; asks nobody over the network.
pub(crate) fn run(args: &ProbeArgs) -> Result<(), Failure> {
    let manifest = manifest::parse::load(args.manifest.path())?;
    health::probe(&RunFolder::of(&manifest), args.ready).map_err(Failure::failed)
}

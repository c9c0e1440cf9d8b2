//! `agent`: the process of one host, whoever starts it.

use ditmesh::manifest;
use ditmesh_actors::agent;
use ditmesh_actors::rank_facts::RankFacts;

use super::args::AgentArgs;
use super::failure::Failure;

/// Lives until the cluster goes down, its launcher does, or a signal ends it.
pub(crate) fn run(args: &AgentArgs) -> Result<(), Failure> {
    let Some(path) = &args.cluster else { return Ok(agent::run_process()?) };
    let manifest = manifest::parse::load(path)?;
    let variable = |name: &str| std::env::var(name).ok();
    let facts =
        RankFacts::find(&args.rank_flags(), &variable, &manifest).map_err(Failure::usage)?;
    Ok(agent::run_standalone(manifest, &facts)?)
}

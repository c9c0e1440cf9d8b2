//! `bench transport`: what every way from one process to another carries, and at what price.
//!
//! Owns the rounds: each measures every way once, one after the other, so that what is compared saw
//! the same machine. Two processes are pinned to a core each and do what [`end`] is told; programs
//! of others run on the same two cores. Of a cluster every pair of nodes is measured ([`cluster`]).
//! Does not own what a way is.

mod cluster;
mod datagram_wire;
pub(crate) mod end;
mod frame_cost;
mod gloo;
mod link_wire;
mod pair;
mod perftest;
mod quinn_wire;
mod report;
mod rounds;
mod shaped;
mod stream_wire;
mod subject;
mod wait;
mod wire;

use std::net::{IpAddr, Ipv4Addr};

use ditmesh::manifest;
use ditmesh_transport::{ClusterCa, Role};
use tempfile::TempDir;

use super::cores;
use crate::cli::args::TransportBenchArgs;
use crate::cli::failure::Failure;
use crate::cli::terminal::Terminal;
use pair::{At, Place};

/// What may be posted ahead, in bytes.
const POSTED_BYTES_MAX: usize = 256 << 20;

/// The cluster's name in the certificates of the two ends.
const CLUSTER: &str = "bench";

/// Measures and prints.
pub(super) fn run(args: &TransportBenchArgs, terminal: &Terminal) -> Result<(), Failure> {
    if args.shaped.is_some() {
        return shaped::run(args, terminal);
    }
    let cores = cores::two(args.cores.as_deref())?;
    let identities = identities()?;
    if let Some(path) = &args.cluster {
        let manifest = manifest::parse::load(path)?;
        return cluster::run(&manifest, args, cores, &identities, terminal);
    }
    let place =
        |core| Place { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), core: Some(core), at: At::Here };
    let ends = ["process on core", "process on core"];
    let link = [format!("{} {}", ends[0], cores[0]), format!("{} {}", ends[1], cores[1])];
    let report = rounds::measure(args, link, &cores.map(place), None, &identities, terminal);
    let report = report.map_err(Failure::failed)?;
    if args.json {
        let json = serde_json::to_string_pretty(&report).map_err(Failure::failed)?;
        return terminal.result(&json);
    }
    terminal.result(&report.text())
}

/// Certificates of the two ends, made for this measurement.
fn identities() -> Result<TempDir, Failure> {
    let folder = tempfile::tempdir().map_err(Failure::failed)?;
    let authority = ClusterCa::generate(CLUSTER)?;
    for name in ["n0", "n1"] {
        authority.issue(Role::Node, name)?.save(folder.path())?;
    }
    Ok(folder)
}

//! `bench transport`: what every way from one process to another carries, and at what price.
//!
//! Owns the rounds: each measures every way once, one after the other, so that what is compared saw
//! the same machine. Two processes are pinned to a core each and do what [`end`] is told; programs
//! of others run on the same two cores. Does not own what a way is.

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

use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};

use ditmesh::manifest;
use ditmesh_transport::{ClusterCa, Role};
use serde::Serialize;
use tempfile::TempDir;

use super::cores;
use crate::cli::args::TransportBenchArgs;
use crate::cli::failure::Failure;
use crate::cli::terminal::Terminal;
use end::Settings;
use pair::Place;
use report::Report;

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
        let links = of_cluster(&manifest, args, cores, &identities, terminal)?;
        return print(args.json, &links, terminal);
    }
    let place =
        |core| Place { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), core: Some(core), namespace: None };
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

#[derive(Serialize)]
struct Links {
    links: Vec<Report>,
}

/// Every pair of nodes, with the manifest's transport settings.
fn of_cluster(
    manifest: &manifest::Manifest,
    args: &TransportBenchArgs,
    cores: [usize; 2],
    identities: &TempDir,
    terminal: &Terminal,
) -> Result<Vec<Report>, Failure> {
    let nodes = &manifest.nodes;
    if nodes.len() < 2 {
        let message = "a cluster of one node has no links; without --cluster two processes of this \
                       host are measured";
        return Err(Failure::usage(message));
    }
    let settings = Settings::of(&manifest.transport);
    let mut links = Vec::new();
    for (at, one) in nodes.iter().enumerate() {
        for other in nodes.iter().skip(at + 1) {
            let place = |address: &str, core| -> Result<Place, Failure> {
                let ip = resolve(address)?;
                let here = std::net::UdpSocket::bind((ip, 0));
                here.map_err(|error| {
                    Failure::usage(format!(
                        "{address} is no address of this host ({error}); links are measured from \
                         the host that has both nodes' addresses, as `up` starts them"
                    ))
                })?;
                Ok(Place { ip, core: Some(core), namespace: None })
            };
            let places = [place(&one.address, cores[0])?, place(&other.address, cores[1])?];
            let link = [format!("node {}", one.name), format!("node {}", other.name)];
            let report = rounds::measure(args, link, &places, Some(settings), identities, terminal);
            links.push(report.map_err(Failure::failed)?);
        }
    }
    Ok(links)
}

fn resolve(host: &str) -> Result<IpAddr, Failure> {
    let unknown = |cause: String| Failure::usage(format!("address {host}: {cause}"));
    let found = (host, 0).to_socket_addrs().map_err(|error| unknown(error.to_string()))?;
    found.map(|address| address.ip()).next().ok_or_else(|| unknown("it is unknown".into()))
}

fn print(json: bool, links: &[Report], terminal: &Terminal) -> Result<(), Failure> {
    if json {
        let links = Links { links: links.to_vec() };
        return terminal.result(&serde_json::to_string_pretty(&links).map_err(Failure::failed)?);
    }
    let texts: Vec<_> = links.iter().map(Report::text).collect();
    terminal.result(&texts.join("\n"))
}

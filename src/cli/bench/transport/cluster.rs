//! The links between the nodes of a cluster: every pair, one after the other.
//!
//! Owns where the ends run: where the manifest's launcher would start an agent, on this host or by
//! ssh. The cluster itself need not run, and is not touched. Invariant: a pair that cannot be
//! measured is named with its cause, and the others are measured all the same.

use std::net::{IpAddr, UdpSocket};

use ditmesh::Manifest;
use ditmesh::manifest::{HostKeys, LauncherKind, NodeSection};
use ditmesh_actors::examine::resolve;
use serde::Serialize;
use tempfile::TempDir;

use super::end::Settings;
use super::pair::{At, Place, Remote};
use super::report::{self, Report};
use super::rounds;
use crate::cli::args::TransportBenchArgs;
use crate::cli::failure::Failure;
use crate::cli::terminal::Terminal;

/// All of them.
#[derive(Serialize)]
struct Links {
    links: Vec<Report>,
    not_measured: Vec<PairNotMeasured>,
}

/// A pair without figures, and why.
#[derive(Clone, Debug, Serialize)]
struct PairNotMeasured {
    link: [String; 2],
    cause: String,
}

/// Measures every pair of nodes, with the manifest's transport settings, and prints.
pub(super) fn run(
    manifest: &Manifest,
    args: &TransportBenchArgs,
    cores: [usize; 2],
    identities: &TempDir,
    terminal: &Terminal,
) -> Result<(), Failure> {
    let nodes = &manifest.nodes;
    if nodes.len() < 2 {
        let message = "a cluster of one node has no links; without --cluster two processes of this \
                       host are measured";
        return Err(Failure::usage(message));
    }
    let settings = Settings::of(&manifest.transport);
    let mut measured = Links { links: Vec::new(), not_measured: Vec::new() };
    for (one, other) in pairs(nodes) {
        let link = [format!("node {}", one.name), format!("node {}", other.name)];
        terminal.note(&format!("{} and {}", link[0], link[1]));
        let report = places(manifest, [one, other], cores).and_then(|places| {
            rounds::measure(args, link.clone(), &places, Some(settings), identities, terminal)
        });
        match report {
            Ok(report) => measured.links.push(report),
            Err(cause) => measured.not_measured.push(PairNotMeasured { link, cause }),
        }
    }
    if measured.links.is_empty() {
        let causes: Vec<_> = measured.not_measured.iter().map(PairNotMeasured::text).collect();
        return Err(Failure::failed(causes.join("; ")));
    }
    terminal.result(&match args.json {
        true => serde_json::to_string_pretty(&measured).map_err(Failure::failed)?,
        false => measured.text(),
    })
}

/// Each node with each that comes after it.
fn pairs(nodes: &[NodeSection]) -> impl Iterator<Item = (&NodeSection, &NodeSection)> {
    let later = |at: usize| nodes.iter().skip(at + 1);
    nodes.iter().enumerate().flat_map(move |(at, one)| later(at).map(move |other| (one, other)))
}

/// Where the two ends run.
fn places(
    manifest: &Manifest,
    ends: [&NodeSection; 2],
    cores: [usize; 2],
) -> Result<[Place; 2], String> {
    let [one, other] = ends;
    Ok([place(manifest, one, cores[0])?, place(manifest, other, cores[1])?])
}

fn place(manifest: &Manifest, node: &NodeSection, core: usize) -> Result<Place, String> {
    let address = &node.address;
    let ip = resolve(address).map_err(|cause| format!("address {address}: {cause}"))?;
    let launcher = &manifest.launcher;
    if launcher.kind == LauncherKind::Ssh {
        let remote = Remote {
            host: address.clone(),
            config: launcher.ssh_config.clone(),
            accept_new: launcher.ssh_host_keys == HostKeys::AcceptNew,
            program: launcher.program.clone(),
        };
        return Ok(Place { ip, core: None, at: At::Remote(remote) });
    }
    is_here(ip).map_err(|error| {
        format!(
            "{address} is no address of this host ({error}); ends on other hosts are started with \
             launcher.kind = \"ssh\""
        )
    })?;
    Ok(Place { ip, core: Some(core), at: At::Here })
}

fn is_here(ip: IpAddr) -> std::io::Result<()> {
    UdpSocket::bind((ip, 0)).map(drop)
}

impl PairNotMeasured {
    fn text(&self) -> String {
        let Self { link: [one, other], cause } = self;
        format!("{one} and {other} are not measured: {cause}")
    }
}

impl Links {
    /// Each link with all its figures, then all links beside each other.
    fn text(&self) -> String {
        let mut parts: Vec<_> = self.links.iter().map(Report::text).collect();
        parts.push(report::beside(&self.links));
        parts.extend(self.not_measured.iter().map(PairNotMeasured::text));
        parts.join("\n")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ditmesh::manifest::parse;

    use super::*;

    fn cluster(more: &str) -> Manifest {
        let node = |(name, last): (&str, u8)| {
            format!("[[node]]\nname = \"{name}\"\naddress = \"127.0.0.{last}\"\n[[node.device]]\n")
        };
        let nodes: String = [("a", 1), ("b", 2), ("c", 3), ("d", 4)].map(node).concat();
        let text = format!("schema = 1\n[cluster]\nname = \"t\"\n{nodes}{more}");
        parse::from_str(&text, "t.toml").unwrap()
    }

    #[test]
    fn every_pair_is_named_once() {
        let manifest = cluster("");
        let named: Vec<_> = pairs(&manifest.nodes)
            .map(|(one, other)| format!("{}{}", one.name, other.name))
            .collect();
        assert_eq!(named, ["ab", "ac", "ad", "bc", "bd", "cd"]);
    }

    #[test]
    fn ends_run_where_agents_would() {
        let here = cluster("");
        let [one, other] = places(&here, [&here.nodes[1], &here.nodes[2]], [4, 5]).unwrap();
        assert!(matches!((&one.at, one.core, &other.at), (At::Here, Some(4), At::Here)));
        assert_eq!(other.ip.to_string(), "127.0.0.3");
        let there = cluster("[launcher]\nkind = \"ssh\"\nprogram = \"/opt/ditmesh\"\n");
        let place = place(&there, &there.nodes[3], 4).unwrap();
        let At::Remote(remote) = place.at else { panic!("{place:?}") };
        assert_eq!((remote.host.as_str(), place.core), ("127.0.0.4", None));
        assert!(!remote.accept_new);
    }

    #[test]
    fn an_address_of_another_host_is_told() {
        let mut far = cluster("");
        far.nodes[0].address = "192.0.2.1".into();
        let error = place(&far, &far.nodes[0], 0).unwrap_err();
        assert!(error.contains("192.0.2.1") && error.contains("ssh"), "{error}");
    }
}

//! A cluster: what this host sees of its nodes, and what their agents see of each other.
//!
//! Owns who is asked: the ports of the manifest and certificates from here, and, where the cluster
//! runs, every agent through the coordinator. What nobody could look at is said, not left out. Does
//! not own the judgement on paths, devices and clocks.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use ditmesh::ClusterClient;
use ditmesh::manifest::{Manifest, NodeSection};
use ditmesh_actors::examine::clock::Skew;
use ditmesh_actors::examine::{ports, resolve};
use ditmesh_actors::protocol::examine::{Examined, Finding, Level, Seen, Target};
use ditmesh_transport::{Identity, Role};

use super::{clocks, nics, paths};

/// Certificates that end sooner are told of.
const SOON: Duration = Duration::from_secs(30 * 86_400);

/// How long ports are asked from here.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// What one host saw of the ports of others.
pub(super) struct View<'a> {
    /// Whose host; `None` for this one.
    pub(super) node: Option<&'a str>,
    pub(super) seen: &'a [Seen],
}

/// Every check of every node.
pub(super) fn check(manifest: &Manifest, path: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in &manifest.nodes {
        if let Err(cause) = resolve(&node.address) {
            let found = format!("node {}: address {}: {cause}", node.name, node.address);
            let fix = format!("getent hosts {}", node.address);
            findings.push(Finding::amiss("address", Level::Problem, found, fix));
        }
    }
    let examined = ClusterClient::connect(manifest).and_then(|client| client.blocking_examine());
    let (examined, coordinator) = match examined {
        Ok((examined, coordinator)) => (Some(examined), coordinator),
        Err(error) => {
            findings.extend(not_looked_at(manifest, path, &error.to_string()));
            (None, None)
        }
    };
    let targets = targets(manifest, examined.as_ref());
    findings.extend(not_asked(manifest, &targets, path));
    let wanted = manifest.transport.mtu_bytes.into();
    let seen = ports::look(&targets, wanted, Instant::now() + LOOK_MAX);
    let mut views = vec![View { node: None, seen: &seen }];
    if let Some(examined) = &examined {
        findings.extend(of_agents(examined, coordinator, path));
        views.extend(examined.nodes.iter().filter_map(|node| {
            let seen = &node.outcome.as_ref().ok()?.seen;
            Some(View { node: Some(&node.node), seen })
        }));
    }
    findings.extend(paths::judge(manifest, &views));
    findings.extend(nics::judge(&views));
    let dir = super::super::certs::certs_dir(manifest);
    findings.extend(manifest.nodes.iter().map(|node| certificate(&dir, node, SystemTime::now())));
    findings
}

/// What takes somebody at the other end.
fn not_looked_at(manifest: &Manifest, path: &Path, why: &str) -> Vec<Finding> {
    let nodes: Vec<_> = manifest.nodes.iter().map(|node| node.name.as_str()).collect();
    let nodes = nodes.join(", ");
    let fix = format!("ditmesh up {} --detach   # and look again", path.display());
    let what = [
        ("clock skew", "clocks"),
        ("path MTU", "packets that they can send, to here and to each other"),
        ("reachability", "ports of workers, and what these nodes reach of each other"),
        ("host", "their buffers, offloads, open files and UCX"),
    ];
    let unknown = what.map(|(check, what)| {
        let found = format!("nodes {nodes}: {what} take a running cluster to look at: {why}");
        Finding::amiss(check, Level::Unknown, found, fix.clone())
    });
    unknown.into()
}

/// The ports to ask from here: those that somebody listens at, and the manifest's.
fn targets(manifest: &Manifest, examined: Option<&Examined>) -> Vec<Target> {
    let mut targets = examined.map_or(Vec::new(), |examined| examined.ports.clone());
    let place = |target: &Target| (target.node.clone(), port_of(&target.address));
    let known: BTreeSet<_> = targets.iter().map(place).collect();
    let named = manifest.nodes.iter().flat_map(|node| {
        let control = (node.control_port != 0).then_some((node.control_port, "agent"));
        let range = node.bulk_ports.map(|(first, last)| [(first, "first"), (last, "last")]);
        let bulk = range.into_iter().flatten();
        let bulk = bulk.map(|(port, which)| (port, format!("{which} of bulk_ports")));
        control.map(|(port, what)| (port, what.to_owned())).into_iter().chain(bulk).map(
            move |(port, what)| Target {
                node: node.name.clone(),
                address: format!("{}:{port}", node.address),
                what,
                listening: false,
            },
        )
    });
    targets.extend(named.filter(|target| !known.contains(&place(target))));
    targets
}

fn port_of(address: &str) -> Option<u16> {
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok())
}

/// Nodes of which nobody knows a port.
fn not_asked(manifest: &Manifest, targets: &[Target], path: &Path) -> Vec<Finding> {
    let unknown = |node: &&NodeSection| targets.iter().all(|target| target.node != node.name);
    let nodes = manifest.nodes.iter().filter(unknown);
    let findings = nodes.map(|node| {
        let found = format!(
            "node {}: the system chooses its ports, so nobody knows them while it is not up",
            node.name
        );
        let fix = format!("ditmesh up {} --detach   # and look again", path.display());
        Finding::amiss("reachability", Level::Unknown, found, fix)
    });
    findings.collect()
}

/// What agents say of their hosts, and of their clocks.
fn of_agents(examined: &Examined, coordinator: Option<Skew>, path: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in &examined.nodes {
        match &node.outcome {
            Err(cause) => {
                let found = format!("node {}: not looked at: {cause}", node.node);
                let fix = format!("ditmesh status {}", path.display());
                for check in ["host", "clock skew"] {
                    let finding = Finding::amiss(check, Level::Unknown, &found, &fix);
                    findings.push(finding);
                }
            }
            Ok(examination) => {
                findings.extend(of_host(&node.node, &examination.findings));
                findings.push(clocks::judge(node, examination, coordinator));
            }
        }
    }
    findings
}

/// A host that is as it should be has one line.
fn of_host(node: &str, findings: &[Finding]) -> Vec<Finding> {
    let (well, amiss): (Vec<_>, Vec<_>) =
        findings.iter().cloned().partition(|finding| finding.level == Level::Ok);
    let well: Vec<_> = well.into_iter().map(|finding| finding.check).collect();
    let found = format!("as it should be: {}", well.join(", "));
    let first = (!well.is_empty()).then(|| Finding::ok("host", found));
    first.into_iter().chain(amiss).map(|finding| finding.on(Some(node))).collect()
}

fn certificate(dir: &Path, node: &NodeSection, now: SystemTime) -> Finding {
    let name = &node.name;
    let fix = "ditmesh certs --force   # then restart the cluster";
    let amiss = |level, cause: String| {
        Finding::amiss("certificate", level, format!("node {name}: {cause}"), fix)
    };
    if !dir.join(format!("node-{name}.pem")).exists() {
        let found = format!("node {name} has none in {}; `up` makes them", dir.display());
        return Finding::amiss("certificate", Level::Unknown, found, "ditmesh certs");
    }
    let identity = match Identity::load(dir, Role::Node, name) {
        Ok(identity) => identity,
        Err(error) => return amiss(Level::Problem, error.to_string()),
    };
    match (identity.verify_at(now), identity.verify_at(now + SOON)) {
        (Err(error), _) => amiss(Level::Problem, error.to_string()),
        (Ok(()), Err(error)) => amiss(Level::Slow, format!("in 30 days: {error}")),
        (Ok(()), Ok(())) => {
            Finding::ok("certificate", format!("node {name}: good for 30 days and more"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ditmesh::manifest;

    use super::*;

    fn cluster(more: &str) -> Manifest {
        let text = format!(
            "schema = 1\n[cluster]\nname = \"t\"\n[[node]]\nname = \"a\"\n{more}\n[[node.device]]\n"
        );
        manifest::parse::from_str(&text, "t.toml").unwrap()
    }

    #[test]
    fn without_a_cluster_that_runs_the_manifests_ports_are_asked_and_the_rest_is_said() {
        let with = cluster("control_port = 7100\nbulk_ports = [7101, 7116]");
        let found = targets(&with, None);
        let ports: Vec<_> = found.iter().map(|port| port.address.as_str()).collect();
        assert_eq!(ports, ["127.0.0.1:7100", "127.0.0.1:7101", "127.0.0.1:7116"]);
        assert!(found.iter().all(|port| !port.listening));
        assert!(not_asked(&with, &found, Path::new("t.toml")).is_empty());
        let without = cluster("");
        let said = not_asked(&without, &targets(&without, None), Path::new("t.toml"));
        assert_eq!((said.len(), said[0].level), (1, Level::Unknown));
        let said = not_looked_at(&without, Path::new("t.toml"), "it is not running");
        let checks: Vec<_> = said.iter().map(|finding| finding.check.as_str()).collect();
        assert_eq!(checks, ["clock skew", "path MTU", "reachability", "host"]);
        assert!(said.iter().all(|finding| finding.fix.is_some()), "{said:?}");
    }

    #[test]
    fn a_port_that_somebody_says_he_listens_at_is_asked_once() {
        let node = "a".to_owned();
        let (address, what) = ("127.0.0.1:7100".to_owned(), "coordinator".to_owned());
        let ports = vec![Target { node, address, what, listening: true }];
        let examined = Examined { received_us: 0, sent_us: 0, nodes: Vec::new(), ports };
        let found = targets(&cluster("control_port = 7100"), Some(&examined));
        assert_eq!(found, examined.ports);
    }

    #[test]
    fn a_host_that_is_well_has_one_line_and_what_is_amiss_keeps_its_own() {
        let well = ["UDP receive", "UCX"].map(|check| Finding::ok(check, "good"));
        let said = of_host("b", &well);
        assert_eq!(said[0].found, "as it should be: UDP receive, UCX");
        assert_eq!((said.len(), said[0].node.as_deref()), (1, Some("b")));
        let amiss = [Finding::amiss("open files", Level::Slow, "few", "ulimit -n 65536")];
        let said = of_host("b", &amiss);
        assert_eq!((said.len(), said[0].check.as_str()), (1, "open files"));
    }
}

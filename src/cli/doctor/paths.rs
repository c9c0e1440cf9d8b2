//! The ways between hosts: whether ports are open, and how large packets get through.
//!
//! Owns the judgement that takes more than one host: which end limits a path, and whether a port
//! that refuses is closed or behind a firewall. Pure.

use ditmesh::manifest::{Manifest, NodeSection};
use ditmesh_actors::examine::ports::payload_within;
use ditmesh_actors::protocol::examine::{Finding, Level, Nic, PortAnswer, Seen};

use super::cluster::View;

/// Payloads from here on count as jumbo, in bytes.
const JUMBO_BYTES: u32 = 8000;

/// How exactly payloads are measured, in bytes.
const EXACT_BYTES: u32 = 16;

/// Every way from everybody who looked to everybody else.
pub(super) fn judge(manifest: &Manifest, views: &[View<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for view in views {
        for node in &manifest.nodes {
            let seen: Vec<_> =
                view.seen.iter().filter(|seen| seen.target.node == node.name).collect();
            let back = view.node.and_then(|from| nic_towards(views, &node.name, from));
            let ports = ports(node, &seen);
            let size = packet_size(node, &seen, back, manifest.transport.mtu_bytes.into());
            findings.extend(ports.into_iter().chain(size).map(|finding| finding.on(view.node)));
        }
    }
    findings
}

/// The device of `node` through which it reaches `other`, if its agent has told.
fn nic_towards<'a>(views: &[View<'a>], node: &str, other: &str) -> Option<&'a Nic> {
    let view = views.iter().find(|view| view.node == Some(node))?;
    view.seen.iter().filter(|seen| seen.target.node == other).find_map(|seen| seen.nic.as_ref())
}

/// Those that are open in one line, and each that is not.
fn ports(node: &NodeSection, seen: &[&Seen]) -> Vec<Finding> {
    let (open, closed): (Vec<&Seen>, Vec<&Seen>) =
        seen.iter().copied().partition(|seen| seen.answer == PortAnswer::Listens);
    let mut findings = Vec::new();
    if !open.is_empty() {
        let what: Vec<_> = open.iter().map(|seen| seen.target.what.as_str()).collect();
        let found = format!("node {} answers: {}", node.name, what.join("; "));
        findings.push(Finding::ok("reachability", found));
    }
    findings.extend(closed.into_iter().map(|seen| closed_port(node, seen)));
    findings
}

fn closed_port(node: &NodeSection, seen: &Seen) -> Finding {
    let Seen { target, answer, .. } = seen;
    let name = &node.name;
    let place = format!("node {name}, {} ({})", target.what, target.address);
    let port = target.address.rsplit_once(':').map_or("", |(_, port)| port);
    let range = node.bulk_ports.filter(|(first, last)| {
        port.parse().is_ok_and(|port: u16| (*first..=*last).contains(&port))
    });
    let ports = range.map_or(port.to_owned(), |(first, last)| format!("{first}:{last}"));
    let open = format!("iptables -I INPUT -p udp --dport {ports} -j ACCEPT   # on node {name}");
    let amiss = |level, cause: &str, fix: String| {
        Finding::amiss("reachability", level, format!("{place}: {cause}"), fix)
    };
    match answer {
        PortAnswer::Listens => Finding::ok("reachability", place),
        PortAnswer::NobodyListens if target.listening => {
            let cause = "blocked: it is refused although a process listens there, so a firewall \
                         rejects it";
            amiss(Level::Problem, cause, open)
        }
        PortAnswer::NobodyListens if range.is_some() => {
            let found = format!("{place}: nobody listens yet, and nothing blocks the way");
            Finding::ok("reachability", found)
        }
        PortAnswer::NobodyListens => {
            let cause = "nobody listens, though nothing blocks the way: it is not up";
            amiss(Level::Problem, cause, "ditmesh up".into())
        }
        PortAnswer::Rejected(words) => {
            let cause = format!("blocked on the way: {words}");
            let host = target.address.rsplit_once(':').map_or("", |(host, _)| host);
            amiss(Level::Problem, &cause, format!("ip route get {host}   # then: {open}"))
        }
        PortAnswer::Silent { host_answers } if *host_answers || target.listening => {
            let why = if target.listening { "a process listens there" } else { "the host answers" };
            let cause = format!("blocked: no answer although {why}, so a firewall drops UDP");
            amiss(Level::Problem, &cause, open)
        }
        PortAnswer::Silent { .. } => {
            let cause = "no answer, neither there nor at other ports: its host is down, or a \
                         firewall drops all of UDP";
            amiss(Level::Problem, cause, format!("ditmesh up   # or: {open}"))
        }
        PortAnswer::NotAsked(why) => {
            let fix = "ditmesh doctor --cluster FILE   # on that node's host".into();
            amiss(Level::Unknown, &format!("not asked: {why}"), fix)
        }
    }
}

/// How large packets get from the host of the view to `node`, and what keeps them from being
/// larger; `back` is the device through which they would be answered.
fn packet_size(
    node: &NodeSection,
    seen: &[&Seen],
    back: Option<&Nic>,
    wanted: u32,
) -> Option<Finding> {
    let name = &node.name;
    let host = |seen: &Seen| {
        seen.target.address.rsplit_once(':').map_or(String::new(), |(host, _)| host.to_owned())
    };
    let Some(measured) = seen.iter().find(|seen| seen.payload_bytes.is_some()) else {
        let first = seen.first()?;
        let device = first.nic.as_ref().map_or(String::new(), |nic| {
            format!("; frames of {} leave here for it, of up to {} bytes", nic.name, nic.mtu_bytes)
        });
        let found = format!("to node {name}: not measured, for none of its ports answers{device}");
        let fix = format!("tracepath -n {}", host(first));
        return Some(Finding::amiss("path MTU", Level::Unknown, found, fix));
    };
    let payload = measured.payload_bytes?;
    let is_ipv4 = !measured.target.address.starts_with('[');
    let found = format!("to node {name}: packets of up to {payload} bytes pass whole");
    if payload >= wanted.min(JUMBO_BYTES) {
        return Some(Finding::ok("path MTU", found));
    }
    let limits = |nic: &Nic| payload_within(nic.mtu_bytes, is_ipv4) <= payload + EXACT_BYTES;
    let raise = |nic: &Nic, whose: &str| {
        format!("ip link set dev {} mtu 9000   # {whose}, and on every switch between", nic.name)
    };
    let (cause, fix) = match (&measured.nic, back) {
        (Some(nic), _) if limits(nic) => {
            let cause = format!("limited by this end: {} has {}", nic.name, nic.mtu_bytes);
            (cause, raise(nic, "on this end"))
        }
        (_, Some(nic)) if limits(nic) => {
            let cause = format!("limited by the other end: {} has {}", nic.name, nic.mtu_bytes);
            (cause, raise(nic, &format!("on node {name}")))
        }
        (_, Some(_)) => {
            let cause = "limited between the ends, whose devices take more".to_owned();
            (cause, format!("tracepath -n {}   # the MTU of that switch or bridge", host(measured)))
        }
        (_, None) => {
            let cause = "limited behind this end: by the path or by the other end, whose device \
                         nobody could ask"
                .to_owned();
            (cause, format!("tracepath -n {}", host(measured)))
        }
    };
    Some(Finding::amiss("path MTU", Level::Slow, format!("{found}; {cause}"), fix))
}

#[cfg(test)]
mod tests;

//! Rules about hosts, their ports and their devices.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::super::error::nearest;
use super::super::{DeviceKind, DeviceSection, Manifest, NodeSection};
use super::{Violation, label, unique};

/// Devices of one node, at most.
const DEVICES_MAX: usize = 256;
/// Compute threads of one device, at most.
const THREADS_MAX: usize = 1024;

pub(super) fn check(manifest: &Manifest) -> Result<(), Violation> {
    if manifest.nodes.is_empty() {
        let advice = "add [[node]] with a name and at least one [[node.device]]";
        return Err(Violation::new("node", "the manifest has no node").advise(advice));
    }
    let mut names = HashMap::new();
    for (index, node) in manifest.nodes.iter().enumerate() {
        let at = format!("node[{index}]");
        label(&format!("{at}.name"), "node name", &node.name)?;
        unique(&mut names, format!("{at}.name"), "node", &node.name, index)?;
        address(&at, node)?;
        devices(&at, node)?;
        bulk_ports(&at, node, manifest.transport.bulk_connections)?;
        for (earlier, other) in manifest.nodes[..index].iter().enumerate() {
            ports_apart(&at, node, earlier, other)?;
        }
    }
    coordinator(manifest)
}

fn coordinator(manifest: &Manifest) -> Result<(), Violation> {
    let Some(section) = &manifest.coordinator else { return Ok(()) };
    let mut names = manifest.nodes.iter().map(|node| node.name.as_str());
    if names.any(|name| name == section.node) {
        return Ok(());
    }
    let message = format!("the coordinator's node `{}` is no node of this cluster", section.node);
    let names = manifest.nodes.iter().map(|node| node.name.as_str());
    Err(Violation::new("coordinator.node", message).advise(nearest(&section.node, names)))
}

fn address(at: &str, node: &NodeSection) -> Result<(), Violation> {
    let at = format!("{at}.address");
    let name = &node.name;
    if node.address.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
        let message = format!("address {} of node `{name}` reaches no host", node.address);
        return Err(Violation::new(at, message).advise("write the address other nodes reach it by"));
    }
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '[' | ']' | '@');
    if node.address.is_empty() || node.address.starts_with('-') || node.address.contains(odd) {
        let message = format!("address {:?} of node `{name}` is no host name", node.address);
        return Err(Violation::new(at, message).advise("write a host name or an ip address alone"));
    }
    let is_v6 = node.address.parse::<std::net::Ipv6Addr>().is_ok();
    if node.address.contains(':') && !is_v6 {
        let message = format!("address {:?} of node `{name}` holds a port", node.address);
        return Err(Violation::new(at, message).advise("write the port as `control_port = ...`"));
    }
    Ok(())
}

fn devices(at: &str, node: &NodeSection) -> Result<(), Violation> {
    let (name, count) = (&node.name, node.devices.len());
    if count == 0 {
        let message = format!("node `{name}` has no device");
        let advice = "add [[node.device]] below it, one for each worker process";
        return Err(Violation::new(format!("{at}.name"), message).advise(advice));
    }
    if count > DEVICES_MAX {
        let message =
            format!("node `{name}` has {count} devices, at most {DEVICES_MAX} are allowed");
        return Err(Violation::new(format!("{at}.name"), message));
    }
    let mut devices = node.devices.iter().enumerate();
    devices.try_for_each(|(index, one)| device(&format!("{at}.device[{index}]"), one))
}

fn device(at: &str, device: &DeviceSection) -> Result<(), Violation> {
    if let (DeviceKind::Cpu, Some(index)) = (device.kind, device.index) {
        let message = format!("index {index} is for gpus, and this device is a cpu");
        let advice = "write kind = \"cuda\", or leave index out";
        return Err(Violation::new(format!("{at}.index"), message).advise(advice));
    }
    let threads = device.threads.unwrap_or(1);
    if !(1..=THREADS_MAX).contains(&threads) {
        let message = format!("threads is {threads}, expected 1 to {THREADS_MAX}");
        return Err(Violation::new(format!("{at}.threads"), message));
    }
    let mut seen = HashSet::new();
    if let Some(core) = device.cores.iter().find(|core| !seen.insert(**core)) {
        let message = format!("core {core} is listed twice in one device");
        return Err(Violation::new(format!("{at}.cores"), message));
    }
    if !device.cores.is_empty() && threads > device.cores.len() {
        let cores = device.cores.len();
        let message = format!("{threads} threads cannot each have one of {cores} cores");
        let advice = format!("list {threads} cores, or write threads = {cores}");
        return Err(Violation::new(format!("{at}.cores"), message).advise(advice));
    }
    Ok(())
}

fn bulk_ports(at: &str, node: &NodeSection, bulk_connections: u8) -> Result<(), Violation> {
    let Some((first, last)) = node.bulk_ports else { return Ok(()) };
    let at = format!("{at}.bulk_ports");
    if first == 0 || last < first {
        let message = format!("bulk_ports [{first}, {last}] is no range");
        return Err(Violation::new(at, message).advise("write the first and the last port"));
    }
    let each = 1 + usize::from(bulk_connections);
    let (ports, needed) = (usize::from(last - first) + 1, node.devices.len() * each);
    if ports < needed {
        let message = format!(
            "bulk_ports [{first}, {last}] holds {ports} ports, and node `{}` needs {needed}: {each} \
             for each of its {} devices",
            node.name,
            node.devices.len()
        );
        let advice = match u16::try_from(usize::from(first) + needed - 1) {
            Ok(fitting) => format!("[{first}, {fitting}] is enough"),
            Err(_) => "start the range lower".to_owned(),
        };
        return Err(Violation::new(at, message).advise(advice));
    }
    if (first..=last).contains(&node.control_port) {
        let message = format!("control_port {} lies within bulk_ports", node.control_port);
        return Err(Violation::new(at, message).advise("give control a port of its own"));
    }
    Ok(())
}

/// Two nodes on one address must not share a port.
fn ports_apart(
    at: &str,
    node: &NodeSection,
    earlier: usize,
    other: &NodeSection,
) -> Result<(), Violation> {
    if node.address != other.address {
        return Ok(());
    }
    let (ours, theirs, address) = (&node.name, &other.name, &node.address);
    if node.control_port != 0 && node.control_port == other.control_port {
        let port = node.control_port;
        let message =
            format!("nodes `{theirs}` and `{ours}` both have control_port {port} on {address}");
        return Err(Violation::new(format!("{at}.control_port"), message));
    }
    let contains = |range: Option<(u16, u16)>, port: u16| {
        range.is_some_and(|(first, last)| (first..=last).contains(&port))
    };
    if let (Some((first, last)), Some((from, to))) = (node.bulk_ports, other.bulk_ports)
        && first <= to
        && from <= last
    {
        let message = format!(
            "bulk_ports [{first}, {last}] of node `{ours}` overlap [{from}, {to}] of `{theirs}` \
             on {address}"
        );
        return Err(Violation::new(format!("{at}.bulk_ports"), message));
    }
    if contains(other.bulk_ports, node.control_port) {
        let message =
            format!("control_port {} lies in bulk_ports of `{theirs}`", node.control_port);
        return Err(Violation::new(format!("{at}.control_port"), message));
    }
    if contains(node.bulk_ports, other.control_port) {
        let message = format!("control_port {} lies in bulk_ports of `{ours}`", other.control_port);
        return Err(Violation::new(format!("node[{earlier}].control_port"), message));
    }
    Ok(())
}

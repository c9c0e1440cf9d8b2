//! The nodes of a manifest: names, packet size, ports, certificates.
//!
//! Owns the probes. A port is asked without a certificate: whoever speaks QUIC answers a packet of
//! a version it does not know with those it knows (RFC 9000, section 6), so an answer shows that
//! the way there and back is open, and costs the other side no memory.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::Path;
use std::time::{Duration, SystemTime};

use ditmesh::manifest::{Manifest, NodeSection};
use ditmesh_transport::{Identity, Role};
use nix::sys::socket::{getsockopt, sockopt};

use super::finding::{Finding, Level};

/// How long an answer may take, and how often is asked.
const ANSWER_MAX: Duration = Duration::from_millis(500);
const ASKS_MAX: usize = 3;
/// A version that no QUIC speaks: servers must answer it.
const NO_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];
/// The least packet that is answered, in bytes.
const PROBE_BYTES: usize = 1200;
/// Frames from here on count as jumbo, in bytes.
const JUMBO_BYTES: i32 = 8000;
/// IPv4 and UDP in front of a packet, in bytes.
const HEADERS_BYTES: i32 = 28;
/// Certificates that end sooner are told of.
const SOON: Duration = Duration::from_secs(30 * 86_400);

/// Every check of every node.
pub(super) fn check(manifest: &Manifest) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in &manifest.nodes {
        match resolve(&node.address) {
            Ok(ip) => {
                findings.push(packet_size(node, ip, manifest.transport.mtu_bytes));
                findings.push(port(node, ip));
            }
            Err(cause) => {
                let found = format!("node {}: address {}: {cause}", node.name, node.address);
                let fix = format!("getent hosts {}", node.address);
                findings.push(Finding::new("address", Level::Problem, found).fix(fix));
            }
        }
    }
    let dir = super::super::certs::certs_dir(manifest);
    findings.extend(manifest.nodes.iter().map(|node| certificate(&dir, node, SystemTime::now())));
    findings
}

fn resolve(host: &str) -> Result<IpAddr, String> {
    let mut found = (host, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    found.next().map(|address| address.ip()).ok_or_else(|| "it is unknown".to_owned())
}

/// What the kernel knows of the path from here; the other end knows the way back, so run it there.
fn packet_size(node: &NodeSection, ip: IpAddr, wanted: u16) -> Finding {
    let any: IpAddr = if ip.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let asked = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        Ok(getsockopt(&socket, sockopt::IpMtu)?)
    });
    match asked {
        Err(error) => {
            let found = format!("towards node {}: {error}", node.name);
            Finding::new("path MTU", Level::Unknown, found)
        }
        Ok(mtu) => judged_mtu(&node.name, mtu, wanted),
    }
}

fn judged_mtu(node: &str, mtu: i32, wanted: u16) -> Finding {
    let payload = (mtu - HEADERS_BYTES).min(i32::from(wanted));
    let found = format!("towards node {node}: {mtu} bytes, packets of {payload}");
    if mtu >= JUMBO_BYTES {
        return Finding::new("path MTU", Level::Ok, found);
    }
    Finding::new("path MTU", Level::Slow, format!("{found}; no jumbo frames"))
        .fix("ip link set dev DEVICE mtu 9000   # on both ends and every switch between")
}

fn port(node: &NodeSection, ip: IpAddr) -> Finding {
    let name = &node.name;
    if node.control_port == 0 {
        let found = format!("node {name}: the system chooses its port, so it cannot be asked");
        return Finding::new("reachability", Level::Unknown, found);
    }
    let address = SocketAddr::new(ip, node.control_port);
    match ask(address) {
        Ok(true) => {
            let found = format!("node {name} answers at {address}");
            Finding::new("reachability", Level::Ok, found)
        }
        Ok(false) => {
            let found = format!(
                "node {name} does not answer at {address}: it is not up, or a firewall drops UDP"
            );
            let port = node.control_port;
            let fix =
                format!("ditmesh up   # or: iptables -I INPUT -p udp --dport {port} -j ACCEPT");
            Finding::new("reachability", Level::Problem, found).fix(fix)
        }
        Err(error) => {
            let found = format!("node {name} at {address}: {error}");
            Finding::new("reachability", Level::Problem, found)
                .fix("ditmesh up   # when the port is closed, nobody listens there")
        }
    }
}

/// Whether somebody who speaks QUIC is at `address`.
fn ask(address: SocketAddr) -> std::io::Result<bool> {
    let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(ANSWER_MAX))?;
    let mut probe = vec![0; PROBE_BYTES];
    let front = [&[0xc0][..], &NO_VERSION, &[8], b"ditmesh?", &[8], b"ditmesh!"].concat();
    probe.iter_mut().zip(&front).for_each(|(to, from)| *to = *from);
    for _ in 0..ASKS_MAX {
        socket.send(&probe)?;
        let mut answer = [0; 256];
        match socket.recv(&mut answer) {
            // Version negotiation: a long header of version 0.
            Ok(len) => return Ok(len > 5 && answer[0] & 0x80 != 0 && answer[1..5] == [0; 4]),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

fn certificate(dir: &Path, node: &NodeSection, now: SystemTime) -> Finding {
    let name = &node.name;
    let fix = "ditmesh certs --force   # then restart the cluster";
    let problem = |cause: String| {
        Finding::new("certificate", Level::Problem, format!("node {name}: {cause}")).fix(fix)
    };
    if !dir.join(format!("node-{name}.pem")).exists() {
        let found = format!("node {name} has none in {}; `up` makes them", dir.display());
        return Finding::new("certificate", Level::Unknown, found).fix("ditmesh certs");
    }
    let identity = match Identity::load(dir, Role::Node, name) {
        Ok(identity) => identity,
        Err(error) => return problem(error.to_string()),
    };
    match (identity.verify_at(now), identity.verify_at(now + SOON)) {
        (Err(error), _) => problem(error.to_string()),
        (Ok(()), Err(error)) => {
            let found = format!("node {name}: in 30 days: {error}");
            Finding::new("certificate", Level::Slow, found).fix(fix)
        }
        (Ok(()), Ok(())) => {
            let found = format!("node {name}: good for 30 days and more");
            Finding::new("certificate", Level::Ok, found)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_frames_are_slow_and_jumbo_frames_are_not() {
        assert_eq!(judged_mtu("a", 1500, 8952).level, Level::Slow);
        assert_eq!(judged_mtu("a", 9000, 8952).level, Level::Ok);
        assert!(judged_mtu("a", 1500, 8952).found.contains("packets of 1472"));
    }

    #[test]
    fn only_who_speaks_quic_answers() {
        let mute = UdpSocket::bind("127.0.0.1:0").and_then(|socket| {
            let address = socket.local_addr()?;
            Ok((socket, address))
        });
        let Ok((mute, address)) = mute else { return };
        assert!(matches!(ask(address), Ok(false)));
        drop(mute);
    }
}

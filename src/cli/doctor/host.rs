//! This host: buffers, offloads, files, clock, UCX.
//!
//! Owns what is looked at and the bounds. Reads `/proc` and `/sys`, opens a socket, changes
//! nothing.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;

use ditmesh_transport::ucx;
use nix::sys::resource::{Resource, getrlimit};

use super::finding::{Finding, Level};

/// What a bulk socket asks for, in bytes.
const SOCKET_BUFFER_BYTES: u64 = 4 << 20;
/// Files a process of a mesh of a few hundred peers may have open.
const OPEN_FILES_MIN: u64 = 4096;

/// Every check.
pub(super) fn check() -> Vec<Finding> {
    let mut findings = vec![buffer("rmem_max"), buffer("wmem_max")];
    findings.extend(offloads());
    findings.push(open_files());
    findings.push(clock());
    findings.extend(ucx_found());
    findings
}

fn buffer(name: &'static str) -> Finding {
    let check = if name == "rmem_max" { "UDP receive" } else { "UDP send" };
    let text = std::fs::read_to_string(format!("/proc/sys/net/core/{name}"));
    match text.ok().and_then(|text| text.trim().parse::<u64>().ok()) {
        None => Finding::new(check, Level::Unknown, format!("net.core.{name} cannot be read")),
        Some(limit) => judged_buffer(check, name, limit),
    }
}

fn judged_buffer(check: &'static str, name: &str, limit: u64) -> Finding {
    let found = format!("net.core.{name} is {limit}, a bulk socket asks for {SOCKET_BUFFER_BYTES}");
    if limit >= SOCKET_BUFFER_BYTES {
        return Finding::new(check, Level::Ok, found);
    }
    Finding::new(check, Level::Slow, found)
        .fix(format!("sysctl -w net.core.{name}={SOCKET_BUFFER_BYTES}"))
}

fn offloads() -> Vec<Finding> {
    let opened = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|socket| quinn::udp::UdpSocketState::new((&socket).into()));
    let state = match opened {
        Ok(state) => state,
        Err(error) => return vec![Finding::new("offloads", Level::Problem, error.to_string())],
    };
    let judged = |check, what: &str, segments: usize| {
        let found = format!("{what}: up to {segments} packets in one system call");
        if segments > 1 {
            return Finding::new(check, Level::Ok, found);
        }
        Finding::new(check, Level::Slow, format!("{found}; a kernel from 5.0 on has it"))
            .fix("uname -r")
    };
    vec![
        judged("send offload", "UDP GSO", state.max_gso_segments()),
        judged("recv offload", "UDP GRO", state.gro_segments()),
    ]
}

fn open_files() -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Err(error) => Finding::new("open files", Level::Unknown, error.to_string()),
        Ok((soft, hard)) => {
            let found = format!("{soft} may be open (hard limit {hard})");
            if soft >= OPEN_FILES_MIN {
                return Finding::new("open files", Level::Ok, found);
            }
            Finding::new("open files", Level::Slow, found).fix("ulimit -n 65536")
        }
    }
}

/// Whether something keeps this host's clock right; clocks of peers are not asked.
fn clock() -> Finding {
    let asked =
        Command::new("timedatectl").args(["show", "-p", "NTPSynchronized", "--value"]).output();
    let answer = asked.ok().filter(|output| output.status.success());
    match answer.as_ref().map(|output| output.stdout.trim_ascii()) {
        Some(b"yes") => Finding::new("clock", Level::Ok, "synchronised over NTP"),
        Some(b"no") => {
            let found = "not synchronised; certificates and timelines need clocks that agree";
            Finding::new("clock", Level::Slow, found).fix("timedatectl set-ntp true")
        }
        _ => Finding::new("clock", Level::Unknown, "nothing here tells whether it is synchronised"),
    }
}

fn ucx_found() -> Vec<Finding> {
    let version = match ucx::version() {
        Ok(version) => version,
        Err(error) => {
            let found = format!("{error}; frames stay on QUIC");
            let finding = Finding::new("UCX", Level::Slow, found);
            return vec![finding.fix("apt-get install libucx0")];
        }
    };
    let devices = std::fs::read_dir("/sys/class/infiniband").map(|devices| {
        let names = devices.flatten().map(|device| device.file_name());
        names.map(|name| name.to_string_lossy().into_owned()).collect::<Vec<_>>()
    });
    let devices = match devices {
        Ok(devices) if !devices.is_empty() => format!("RDMA devices {}", devices.join(", ")),
        _ => "no RDMA device: shared memory and TCP".to_owned(),
    };
    vec![Finding::new("UCX", Level::Ok, format!("version {version}, {devices}"))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clamped_buffer_comes_with_its_command() {
        let small = judged_buffer("UDP receive", "rmem_max", 212_992);
        assert_eq!(small.level, Level::Slow);
        assert_eq!(small.fix.as_deref(), Some("sysctl -w net.core.rmem_max=4194304"));
        assert_eq!(judged_buffer("UDP receive", "rmem_max", 4 << 20).level, Level::Ok);
    }
}

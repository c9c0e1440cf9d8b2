//! This host: buffers, offloads, files, clock, UCX.
//!
//! Owns what is looked at and the bounds. Reads `/proc` and `/sys`, opens a socket, changes
//! nothing.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ditmesh_transport::{interface, ucx};
use nix::sys::resource::{Resource, getrlimit};

use crate::protocol::examine::{Finding, Level};

/// What a bulk socket asks for, in bytes.
const SOCKET_BUFFER_BYTES: u64 = 4 << 20;
/// How long another program may take to say something.
const PROGRAM_MAX: Duration = Duration::from_secs(2);
/// Between looks whether it has ended.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// Files a process of a mesh of a few hundred peers may have open.
const OPEN_FILES_MIN: u64 = 4096;

/// Every check.
pub fn check() -> Vec<Finding> {
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
        None => {
            let found = format!("net.core.{name} cannot be read");
            Finding::amiss(check, Level::Unknown, found, format!("sysctl net.core.{name}"))
        }
        Some(limit) => judged_buffer(check, name, limit),
    }
}

fn judged_buffer(check: &'static str, name: &str, limit: u64) -> Finding {
    let found = format!("net.core.{name} is {limit}, a bulk socket asks for {SOCKET_BUFFER_BYTES}");
    if limit >= SOCKET_BUFFER_BYTES {
        return Finding::ok(check, found);
    }
    let fix = format!("sysctl -w net.core.{name}={SOCKET_BUFFER_BYTES}");
    Finding::amiss(check, Level::Slow, found, fix)
}

fn offloads() -> Vec<Finding> {
    let segments = match interface::udp_segments() {
        Ok(segments) => segments,
        Err(error) => {
            let found = format!("no UDP socket can be opened: {error}");
            return vec![Finding::amiss("offloads", Level::Problem, found, "ulimit -n 65536")];
        }
    };
    let judged = |check, what: &str, segments: usize| {
        let found = format!("{what}: up to {segments} packets in one system call");
        if segments > 1 {
            return Finding::ok(check, found);
        }
        let found = format!("{found}; a kernel from 5.0 on has it");
        Finding::amiss(check, Level::Slow, found, "uname -r")
    };
    vec![
        judged("send offload", "UDP GSO", segments.sent_at_once),
        judged("recv offload", "UDP GRO", segments.received_at_once),
    ]
}

fn open_files() -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Err(error) => Finding::amiss("open files", Level::Unknown, error.to_string(), "ulimit -n"),
        Ok((soft, hard)) => {
            let found = format!("{soft} may be open (hard limit {hard})");
            if soft >= OPEN_FILES_MIN {
                return Finding::ok("open files", found);
            }
            Finding::amiss("open files", Level::Slow, found, "ulimit -n 65536")
        }
    }
}

/// Whether something keeps this host's clock right; what the clocks of peers say takes two ends.
fn clock() -> Finding {
    match said("timedatectl", &["show", "-p", "NTPSynchronized", "--value"]).as_deref() {
        Some("yes") => Finding::ok("clock", "synchronised over NTP"),
        Some("no") => {
            let found = "not synchronised; certificates and timelines need clocks that agree";
            Finding::amiss("clock", Level::Slow, found, "timedatectl set-ntp true")
        }
        _ => {
            let found = "nothing here tells whether it is synchronised";
            Finding::amiss("clock", Level::Unknown, found, "chronyc tracking   # or: ntpq -p")
        }
    }
}

/// What a program has to say that ends well and in time.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let deadline = Instant::now() + PROGRAM_MAX;
    while child.try_wait().ok()?.is_none() {
        if Instant::now() >= deadline {
            // It may end this very moment.
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    let output = child.wait_with_output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(output.stdout.trim_ascii()).into_owned())
}

fn ucx_found() -> Vec<Finding> {
    let version = match ucx::version() {
        Ok(version) => version,
        Err(error) => {
            let found = format!("{error}; frames stay on QUIC");
            let fix = "apt-get install libucx0";
            return vec![Finding::amiss("UCX", Level::Slow, found, fix)];
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
    vec![Finding::ok("UCX", format!("version {version}, {devices}"))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_fail_or_hang_say_nothing() {
        assert_eq!(said("echo", &["yes"]).as_deref(), Some("yes"));
        assert_eq!(said("false", &[]), None);
        assert_eq!(said("no-such-program", &[]), None);
        let begun = Instant::now();
        assert_eq!(said("sleep", &["600"]), None);
        assert!(begun.elapsed() < 10 * PROGRAM_MAX);
    }

    #[test]
    fn a_clamped_buffer_comes_with_its_command() {
        let small = judged_buffer("UDP receive", "rmem_max", 212_992);
        assert_eq!(small.level, Level::Slow);
        assert_eq!(small.fix.as_deref(), Some("sysctl -w net.core.rmem_max=4194304"));
        assert_eq!(judged_buffer("UDP receive", "rmem_max", 4 << 20).level, Level::Ok);
    }
}

//! A link of a given rate, frame size, queue, loss and delay between two network namespaces.
//!
//! Owns the namespaces, which go when it is dropped. Needs root, `ip`, `tc`, and `iptables` where
//! packets are to be lost or held. Loss is of single packets (segmentation is off) and is counted.
//! Delay is all on the way to the first end, which is the one that sends in measurements: what is
//! held is few and small packets.

mod delay;

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde::Serialize;

use crate::cli::failure::Failure;
use delay::{Delay, QUEUE};

/// How the link is.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Shape {
    pub(crate) mbit_per_s: u32,
    /// Largest frame, bytes.
    pub(crate) mtu: u32,
    /// Of a million packets, how many are lost.
    pub(crate) loss_ppm: u32,
    /// How long the queue gets before packets are dropped.
    pub(crate) queue_ms: u32,
    /// What is added to every round trip.
    pub(crate) delay_ms: u32,
}

/// What the link lost by intention.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Lost {
    pub(crate) lost: u64,
    /// Packets that came.
    pub(crate) of: u64,
}

/// The two namespaces and the link between them.
pub(crate) struct ShapedLink {
    namespaces: [String; 2],
    shape: Shape,
    delay: Option<Delay>,
}

impl ShapedLink {
    /// Makes them.
    pub(crate) fn set_up(shape: Shape) -> Result<Self, Failure> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Failure::usage("a shaped link needs network namespaces, which need root"));
        }
        let id = std::process::id();
        let namespaces = [format!("ditmesh-{id}-0"), format!("ditmesh-{id}-1")];
        let mut link = Self { namespaces, shape, delay: None };
        link.build().map_err(Failure::failed)?;
        link.delay = link.delayed().map_err(Failure::failed)?;
        Ok(link)
    }

    /// The namespace of an end, 0 or 1.
    pub(crate) fn namespace(&self, end: usize) -> &str {
        self.namespaces.get(end).map_or("", String::as_str)
    }

    /// The address of an end, 0 or 1.
    pub(crate) fn address(&self, end: usize) -> IpAddr {
        let last = u8::try_from(end + 1).unwrap_or(u8::MAX);
        IpAddr::V4(Ipv4Addr::new(10, 99, 0, last))
    }

    /// Moves the calling thread, and threads and processes that it starts, into an end's namespace.
    pub(crate) fn enter(&self, end: usize) -> Result<(), String> {
        enter(self.namespace(end))
    }

    /// Holds what comes to the first end, where it is to be held.
    fn delayed(&self) -> Result<Option<Delay>, String> {
        if self.shape.delay_ms == 0 {
            return Ok(None);
        }
        let first = self.namespace(0).to_owned();
        within(
            &first,
            &format!("iptables -A INPUT -i dm0 -j NFQUEUE --queue-num {QUEUE} --queue-bypass"),
        )?;
        let delay = Duration::from_millis(self.shape.delay_ms.into());
        Delay::start(delay, move || enter(&first)).map(Some)
    }

    /// Takes the limit of the rate away, or puts it back.
    pub(crate) fn limit(&self, limited: bool) -> Result<(), String> {
        for (index, namespace) in self.namespaces.iter().enumerate() {
            let device = format!("dm{index}");
            match limited {
                true => self.limit_one(namespace, &device)?,
                false => drop(within(namespace, &format!("tc qdisc del dev {device} root"))?),
            }
        }
        Ok(())
    }

    /// What was lost by intention so far; `None` where nothing is to be.
    pub(crate) fn lost(&self) -> Result<Option<Lost>, String> {
        if self.shape.loss_ppm == 0 {
            return Ok(None);
        }
        let mut sum = Lost { lost: 0, of: 0 };
        for namespace in &self.namespaces {
            let table = within(namespace, "iptables -nvxL INPUT")?;
            let numbers = |line: &str| line.split_whitespace().find_map(|word| word.parse().ok());
            // The rule that counts everything comes before the one that drops.
            for line in table.lines().filter(|line| line.contains("dm")) {
                let packets: u64 = numbers(line).unwrap_or(0);
                if line.contains("DROP") {
                    sum.lost += packets;
                } else {
                    sum.of += packets;
                }
            }
        }
        Ok(Some(sum))
    }

    fn build(&self) -> Result<(), String> {
        let [one, other] = &self.namespaces;
        for namespace in &self.namespaces {
            ip(&format!("netns add {namespace}"))?;
        }
        let mtu = self.shape.mtu;
        ip(&format!(
            "link add dm0 netns {one} mtu {mtu} type veth peer name dm1 netns {other} mtu {mtu}"
        ))?;
        for (index, namespace) in self.namespaces.iter().enumerate() {
            let device = format!("dm{index}");
            ip(&format!("-n {namespace} addr add {}/24 dev {device}", self.address(index)))?;
            ip(&format!("-n {namespace} link set lo up"))?;
            ip(&format!("-n {namespace} link set {device} up"))?;
            if self.shape.loss_ppm > 0 {
                // What a sender hands over as one is lost packet by packet.
                ip(&format!("-n {namespace} link set dev {device} gso_max_segs 1"))?;
                let share = f64::from(self.shape.loss_ppm) / 1e6;
                within(namespace, &format!("iptables -A INPUT -i {device}"))?;
                within(
                    namespace,
                    &format!(
                        "iptables -A INPUT -i {device} -m statistic --mode random --probability {share:.6} -j DROP"
                    ),
                )?;
            }
            self.limit_one(namespace, &device)?;
        }
        Ok(())
    }

    fn limit_one(&self, namespace: &str, device: &str) -> Result<(), String> {
        let Shape { mbit_per_s: rate, mtu, queue_ms: queue, .. } = self.shape;
        // A burst of a millisecond, but never less than a few of the largest packets.
        let burst = (u64::from(rate) * 125).max(4 * u64::from(mtu)).max(70_000);
        let shape = format!("tbf rate {rate}mbit burst {burst} latency {queue}ms");
        within(namespace, &format!("tc qdisc replace dev {device} root {shape}")).map(drop)
    }
}

impl Drop for ShapedLink {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            // The devices go with it; what cannot be removed is found by `ip netns`.
            let _ = ip(&format!("netns del {namespace}"));
        }
    }
}

fn enter(namespace: &str) -> Result<(), String> {
    let path = Path::new("/run/netns").join(namespace);
    let file = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .map_err(|error| format!("cannot enter {}: {error}", path.display()))
}

fn ip(arguments: &str) -> Result<(), String> {
    command("ip", arguments).map(drop)
}

fn within(namespace: &str, line: &str) -> Result<String, String> {
    command("ip", &format!("netns exec {namespace} {line}"))
}

fn command(program: &str, arguments: &str) -> Result<String, String> {
    let output = Command::new(program).args(arguments.split_whitespace()).output();
    let output = output.map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let cause = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("`{program} {arguments}` failed: {cause}"))
}

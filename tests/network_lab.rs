//! A cluster for a test whose nodes live in network namespaces of their own, on one switch, so that
//! the network between any two of them can lose frames, be slow, or be cut.
//!
//! Where namespaces are not permitted the reason is printed and nothing is tested (cuts cannot be
//! made on loopback without disturbing everybody else on it), unless `DITMESH_TEST_NAMESPACES` says
//! that they are required. Names and addresses are this process's own: several labs may exist at a
//! time.

use std::fmt::Write;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use delay::{Delay, QUEUE};
use ditmesh::{ClusterClient, ClusterStatus, GenerateRequest, Generation, Manifest, manifest};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::cli_process::{Ended, ditmesh};
use crate::cluster_harness::{model, wait_until};

/// The product's own, of its benchmarks: kernels are built without `netem`.
#[path = "../src/cli/bench/shaped_link/delay.rs"]
mod delay;

const CONTROL_PORT: u16 = 7431;

/// How long a frame takes over a link that is [`Network::Far`].
pub(crate) const DELAY: Duration = Duration::from_millis(40);

/// Labs of this process so far.
static LABS: AtomicU32 = AtomicU32::new(0);

fn ip(line: &str) -> Result<String, String> {
    let output = Command::new("ip").args(line.split_whitespace()).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("ip {line}: {}", said.trim())),
    }
}

/// Hosts on one switch, which is in our namespace; all is removed with the value.
struct Switch {
    /// Of every name here.
    prefix: String,
    /// The third part of every address.
    net: u8,
    hosts: &'static [&'static str],
}

impl Switch {
    fn new(hosts: &'static [&'static str]) -> Result<Self, String> {
        let (process, lab) = (std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        // Others may run these tests at the same time.
        let mut nets = (0..250).map(|at| ((process + 17 * lab + at) % 250) as u8);
        let is_free = |net: &u8| {
            ip(&format!("-o addr show to 10.231.{net}.0/24")).is_ok_and(|found| found.is_empty())
        };
        let net = nets.find(is_free).ok_or("no free network below 10.231.0.0/16")?;
        let switch = Self { prefix: format!("dm{process}{lab}"), net, hosts };
        let bridge = format!("{}br", switch.prefix);
        ip(&format!("link add {bridge} type bridge"))?;
        ip(&format!("addr add 10.231.{net}.254/24 dev {bridge}"))?;
        ip(&format!("link set {bridge} up"))?;
        for host in hosts {
            let (space, port) = (switch.space(host), switch.port(host));
            ip(&format!("netns add {space}"))?;
            ip(&format!("link add {port} type veth peer name eth0 netns {space}"))?;
            ip(&format!("link set {port} master {bridge} up"))?;
            ip(&format!("-n {space} addr add {}/24 dev eth0", switch.address(host)))?;
            ip(&format!("-n {space} link set eth0 up"))?;
            ip(&format!("-n {space} link set lo up"))?;
            switch.on(host, "iptables -F")?;
        }
        Ok(switch)
    }

    fn space(&self, host: &str) -> String {
        format!("{}{host}", self.prefix)
    }

    /// The switch's end of a host's cable.
    fn port(&self, host: &str) -> String {
        format!("{}p{host}", self.prefix)
    }

    fn address(&self, host: &str) -> String {
        let place = self.hosts.iter().position(|name| *name == host).unwrap() + 1;
        format!("10.231.{}.{place}", self.net)
    }

    /// Holds what the rules of a host hand over.
    fn delay(&self, host: &str) -> Delay {
        let space = format!("/run/netns/{}", self.space(host));
        let enter = move || {
            let space = File::open(space).map_err(|error| error.to_string())?;
            setns(space, CloneFlags::CLONE_NEWNET).map_err(|error| error.to_string())
        };
        Delay::start(DELAY, enter).unwrap()
    }

    /// A command on a host.
    fn on(&self, host: &str, line: &str) -> Result<(), String> {
        ip(&format!("netns exec {} {line}", self.space(host))).map(drop)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for host in self.hosts {
            // What is not there needs no removing.
            let _ = ip(&format!("netns del {}", self.space(host)));
        }
        let _ = ip(&format!("link del {}br", self.prefix));
    }
}

/// What the network of one host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Well,
    /// One frame of twenty is lost, each way.
    Lossy,
    /// 5 Mbit/s from the host, with a queue of 400 ms.
    Slow,
    /// The same, and every frame takes 40 ms more, each way.
    Far,
    /// Nothing comes from the host.
    Mute,
    /// Nothing goes to the host.
    Deaf,
    /// Nothing goes either way.
    Cut,
    /// Nothing goes either way between the host and this one.
    CutFrom(&'static str),
}

/// An agent in its namespace; ended by force.
struct Agent(&'static str, Child);

/// A cluster whose first host has the coordinator; the client is on the switch.
pub(crate) struct Lab {
    delays: Vec<(&'static str, Delay)>,
    agents: Vec<Agent>,
    pub(crate) manifest: Manifest,
    switch: Switch,
    folder: TempDir,
}

impl Lab {
    /// One node per host with so many devices, nobody started; `None`, with the reason printed,
    /// where there are no namespaces and none are required.
    pub(crate) fn new(
        hosts: &'static [&'static str],
        devices: usize,
        degrees: &str,
        more: &str,
    ) -> Option<Self> {
        let switch = match Switch::new(hosts) {
            Ok(switch) => switch,
            Err(reason) => {
                let required = std::env::var_os("DITMESH_TEST_NAMESPACES").is_some();
                assert!(!required, "network namespaces are required: {reason}");
                eprintln!("skipped: no network namespaces here: {reason}");
                return None;
            }
        };
        let folder = tempfile::tempdir().unwrap();
        let mut text = String::from("schema = 1\n[cluster]\nname = \"lab\"\n");
        text.push_str("[launcher]\nmeasure_devices = false\n");
        for host in hosts {
            let address = switch.address(host);
            writeln!(text, "[[node]]\nname = \"{host}\"\naddress = \"{address}\"").unwrap();
            writeln!(text, "control_port = {CONTROL_PORT}").unwrap();
            text.push_str(&"[[node.device]]\n".repeat(devices));
        }
        writeln!(text, "[[model]]\nname = \"m\"\npath = {:?}", model().display()).unwrap();
        writeln!(text, "[[group]]\nmodel = \"m\"\ndegrees = {{ {degrees} }}\n{more}").unwrap();
        let path = folder.path().join("cluster.toml");
        std::fs::write(&path, text).unwrap();
        ditmesh(folder.path(), &["certs", "-q"]).done();
        let manifest = manifest::parse::load(&path).unwrap();
        Some(Self { delays: Vec::new(), agents: Vec::new(), manifest, switch, folder })
    }

    /// The same with all nodes in the mesh.
    pub(crate) fn start(
        hosts: &'static [&'static str],
        devices: usize,
        degrees: &str,
    ) -> Option<Self> {
        let mut lab = Self::new(hosts, devices, degrees, "")?;
        hosts.iter().for_each(|host| lab.agent(host, false));
        lab.whole(hosts.len() * devices);
        Some(lab)
    }

    /// Starts the agent of a host; over its model's folder an empty one may lie.
    pub(crate) fn agent(&mut self, host: &'static str, lacks_model: bool) {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.switch.space(host)]);
        if lacks_model {
            // `ip netns exec` gives mounts of their own as well.
            let hide = "mount -t tmpfs none \"$0\" && exec \"$@\"";
            command.args(["sh", "-c", hide]).arg(model());
        }
        command.arg(env!("CARGO_BIN_EXE_ditmesh")).args(["agent", "--node", host, "--cluster"]);
        command.arg(self.folder.path().join("cluster.toml"));
        command.env("DITMESH_CACHE_DIR", self.cache(host));
        command.stdin(Stdio::null()).stderr(Stdio::null());
        self.agents.push(Agent(host, command.spawn().unwrap()));
    }

    /// Kills every process of a host at once.
    pub(crate) fn kill(&mut self, host: &str) {
        let processes = ip(&format!("netns pids {}", self.switch.space(host))).unwrap();
        for process in processes.split_whitespace() {
            // One may have ended with another.
            let _ = kill(Pid::from_raw(process.parse().unwrap()), Signal::SIGKILL);
        }
        for Agent(_, child) in self.agents.extract_if(.., |agent| agent.0 == host) {
            end(child);
        }
    }

    /// The cache of a host.
    pub(crate) fn cache(&self, host: &str) -> PathBuf {
        self.folder.path().join(format!("cache-{host}"))
    }

    pub(crate) fn client(&self) -> ClusterClient {
        ClusterClient::connect(&self.manifest).unwrap()
    }

    pub(crate) fn status(&self) -> ClusterStatus {
        self.client().blocking_status().unwrap()
    }

    /// Waits until so many devices are in the mesh and nothing runs.
    pub(crate) fn whole(&self, devices: usize) {
        wait_until(&format!("{devices} devices in the mesh"), || {
            let status =
                ClusterClient::connect(&self.manifest).and_then(|client| client.blocking_status());
            status.is_ok_and(|status| {
                status.running == 0 && status.mesh.is_some_and(|mesh| mesh.ranks.len() == devices)
            })
        });
    }

    /// Makes the network of a host so.
    pub(crate) fn network(&mut self, host: &'static str, network: Network) {
        let on = |line: &str| self.switch.on(host, line);
        on("iptables -F").unwrap();
        self.delays.retain(|(of, _)| *of != host);
        // There may be none.
        let _ = on("tc qdisc del dev eth0 root");
        let slow = "tc qdisc add dev eth0 root tbf rate 5mbit burst 16k latency 400ms";
        let lose = "-m statistic --mode random --probability 0.05 -j DROP";
        let lines = match network {
            Network::Well => Vec::new(),
            Network::Lossy => {
                ["INPUT", "OUTPUT"].map(|to| format!("iptables -A {to} {lose}")).into()
            }
            Network::Slow => vec![slow.into()],
            Network::Far => {
                self.delays.push((host, self.switch.delay(host)));
                let hold = format!("NFQUEUE --queue-num {QUEUE} --queue-bypass");
                let ways = ["INPUT -i", "OUTPUT -o"];
                let ways = ways.map(|way| format!("iptables -A {way} eth0 -j {hold}"));
                ways.into_iter().chain([slow.into()]).collect()
            }
            Network::Mute => vec!["iptables -A OUTPUT -j DROP".into()],
            Network::Deaf => vec!["iptables -A INPUT -j DROP".into()],
            Network::Cut => {
                ["INPUT", "OUTPUT"].map(|to| format!("iptables -A {to} -j DROP")).into()
            }
            Network::CutFrom(other) => {
                let other = self.switch.address(other);
                let ways = [("INPUT", "-s"), ("OUTPUT", "-d")];
                ways.map(|(to, by)| format!("iptables -A {to} {by} {other} -j DROP")).into()
            }
        };
        lines.iter().for_each(|line| on(line).unwrap());
    }

    /// Frames of a host and of the switch's end of its cable, in bytes.
    pub(crate) fn frames(&self, host: &str, own: u32, switch: u32) {
        self.switch.on(host, &format!("ip link set eth0 mtu {own}")).unwrap();
        ip(&format!("link set {} mtu {switch}", self.switch.port(host))).unwrap();
        // The bridge follows the smallest of its ports, which is not what is tried.
        ip(&format!("link set {}br mtu 9000", self.switch.prefix)).unwrap();
    }

    /// A rule for what comes to a host from here; none when empty.
    pub(crate) fn firewall(&self, host: &str, rule: &str) {
        self.switch.on(host, "iptables -F").unwrap();
        if !rule.is_empty() {
            let here = format!("10.231.{}.254", self.switch.net);
            self.switch.on(host, &format!("iptables -A INPUT -s {here} {rule}")).unwrap();
        }
    }

    /// The command line, here.
    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        ditmesh(self.folder.path(), args)
    }

    /// Whatever goes to a host goes at `rate` from now on (in the words of `tc`).
    pub(crate) fn slow_towards(&self, host: &str, rate: &str) {
        let port = self.switch.port(host);
        let qdisc =
            format!("qdisc replace dev {port} root tbf rate {rate} burst 16k latency 400ms");
        let mut tc = Command::new("tc");
        assert!(tc.args(qdisc.split_whitespace()).status().unwrap().success(), "{qdisc}");
    }

    pub(crate) fn draw(&self, request: &GenerateRequest) -> Generation {
        self.client().generate(request.clone()).blocking_finish().unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for Agent(_, child) in self.agents.drain(..) {
            end(child);
        }
    }
}

/// Ends an agent by force; it may have ended already.
fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

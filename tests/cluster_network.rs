//! Nodes in network namespaces of their own: a network that loses frames, is slow, or is cut in one
//! direction or both while a picture is drawn. Where namespaces are not permitted the reason is printed
//! and nothing is tested: cuts cannot be made on loopback without disturbing everybody else on it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ditmesh::{ClusterClient, Event, GenerateRequest, Generation, Manifest, manifest};
use ditmesh_actors::request::Resumption;
use tempfile::TempDir;

use crate::cli_generate::fixtures;
use crate::cli_process::ditmesh;
use crate::cluster_harness::wait_until;
use crate::cluster_kill::{relative, steps};

/// Of all that are made here.
const PREFIX: &str = "dmn";

/// Nodes `a` (coordinator) and `b`, each in a namespace; the client is in ours, on the bridge.
struct Lab {
    agents: Vec<Child>,
    manifest: Manifest,
    _folder: TempDir,
}

fn ip(line: &str) -> Result<(), String> {
    let output = Command::new("ip").args(line.split_whitespace()).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {line}: {}", said.trim())) }
}

/// A command on host `b`.
fn on_b(line: &str) -> Result<(), String> {
    ip(&format!("netns exec {PREFIX}b {line}"))
}

/// What the network between the hosts does.
#[derive(Clone, Copy, Debug)]
enum Network {
    Well,
    /// One frame of twenty is lost, each way.
    Lossy,
    /// 5 Mbit/s from `b`, with a queue of 400 ms.
    Slow,
    /// Nothing comes from `b`.
    Deaf,
    /// Nothing goes either way.
    Cut,
}

/// Two hosts on one switch.
fn network() -> Result<(), String> {
    remove_network();
    ip(&format!("link add {PREFIX}br type bridge"))?;
    ip(&format!("addr add 10.231.77.254/24 dev {PREFIX}br"))?;
    ip(&format!("link set {PREFIX}br up"))?;
    for (name, host) in [("a", 1), ("b", 2)] {
        let (space, port) = (format!("{PREFIX}{name}"), format!("{PREFIX}p{name}"));
        ip(&format!("netns add {space}"))?;
        ip(&format!("link add {port} type veth peer name eth0 netns {space}"))?;
        ip(&format!("link set {port} master {PREFIX}br up"))?;
        ip(&format!("-n {space} addr add 10.231.77.{host}/24 dev eth0"))?;
        ip(&format!("-n {space} link set eth0 up"))?;
        ip(&format!("-n {space} link set lo up"))?;
    }
    Ok(())
}

fn remove_network() {
    for line in ["netns del dmna", "netns del dmnb", "link del dmnbr"] {
        // What is not there needs no removing.
        let _ = ip(line);
    }
}

impl Lab {
    fn start() -> Result<Self, String> {
        network()?;
        on_b("iptables -F")?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let model = fixtures().join("pipelines/sigma_8x8");
        let mut text = String::from("schema = 1\n[cluster]\nname = \"lab\"\n");
        for (name, host) in [("a", 1), ("b", 2)] {
            let address = format!("10.231.77.{host}");
            text += &format!("[[node]]\nname = \"{name}\"\naddress = \"{address}\"\n");
            text += "control_port = 7431\n[[node.device]]\n";
        }
        text += &format!("[[model]]\nname = \"m\"\npath = {:?}\n", model.display());
        text += "[[group]]\nmodel = \"m\"\ndegrees = { ulysses_degree = 2 }\n";
        let path = folder.path().join("cluster.toml");
        std::fs::write(&path, text).map_err(|error| error.to_string())?;
        ditmesh(folder.path(), &["certs", "-q"]).done();
        let agents = ["a", "b"].map(|name| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &format!("{PREFIX}{name}")]);
            command.arg(env!("CARGO_BIN_EXE_ditmesh")).args(["agent", "--node", name, "--cluster"]);
            command.arg(&path).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        });
        let manifest = manifest::parse::load(&path).unwrap();
        let lab = Self { agents: agents.into(), manifest, _folder: folder };
        lab.whole();
        Ok(lab)
    }

    fn client(&self) -> ClusterClient {
        ClusterClient::connect(&self.manifest).unwrap()
    }

    /// Waits until both devices are in the mesh.
    fn whole(&self) {
        wait_until("both devices in the mesh", || {
            let status =
                ClusterClient::connect(&self.manifest).and_then(|client| client.blocking_status());
            status.is_ok_and(|status| {
                status.running == 0 && status.mesh.is_some_and(|mesh| mesh.ranks.len() == 2)
            })
        });
    }

    /// Makes the network so.
    fn network(&self, network: Network) {
        on_b("iptables -F").unwrap();
        // There may be none.
        let _ = on_b("tc qdisc del dev eth0 root");
        let lose = "-m statistic --mode random --probability 0.05 -j DROP";
        let lines = match network {
            Network::Well => Vec::new(),
            Network::Lossy => {
                ["INPUT", "OUTPUT"].map(|to| format!("iptables -A {to} {lose}")).into()
            }
            Network::Slow => {
                vec!["tc qdisc add dev eth0 root tbf rate 5mbit burst 16k latency 400ms".into()]
            }
            Network::Deaf => vec!["iptables -A OUTPUT -j DROP".into()],
            Network::Cut => {
                ["INPUT", "OUTPUT"].map(|to| format!("iptables -A {to} -j DROP")).into()
            }
        };
        lines.iter().for_each(|line| on_b(line).unwrap());
    }

    fn draw(&self, request: &GenerateRequest) -> Generation {
        self.client().generate(request.clone()).blocking_finish().unwrap()
    }

    /// Cuts node `b` off in the middle of a run, and mends it afterwards.
    fn cut(&self, request: &GenerateRequest, network: Network) -> (Generation, Resumption) {
        let client = self.client();
        let mut run = client.generate(request.clone());
        while !matches!(run.blocking_next_event(), Some(Event::Step { step: 5.., .. })) {}
        let moment = Instant::now();
        self.network(network);
        let mut heard = Vec::new();
        while let Some(event) = run.blocking_next_event() {
            if let Event::Resumed(resumption) = event {
                eprintln!("after {:?}: {resumption} ({})", moment.elapsed(), resumption.cause);
                heard.push((resumption, moment.elapsed()));
            }
        }
        let generation = run.blocking_finish().unwrap();
        let [(resumption, after)] = heard.as_slice() else { panic!("{heard:?}") };
        let noticed = after.saturating_sub(Duration::from_secs_f64(resumption.seconds));
        assert!(noticed < Duration::from_secs(3), "noticed after {noticed:?}");
        self.network(Network::Well);
        self.whole();
        (generation, resumption.clone())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            // It may have ended already.
            let _ = agent.kill();
            let _ = agent.wait();
        }
        remove_network();
    }
}

#[test]
fn slow_and_lossy_is_alive_and_a_cut_is_a_loss_that_mends() {
    let lab = match Lab::start() {
        Ok(lab) => lab,
        Err(reason) => {
            remove_network();
            return eprintln!("no network namespaces here: {reason}");
        }
    };
    let (short, long) = (steps(4), steps(150));
    let expected = lab.draw(&short);
    for network in [Network::Lossy, Network::Slow] {
        lab.network(network);
        let generation = lab.draw(&short);
        assert!(generation.report.resumptions.is_empty(), "{network:?}: a false death");
        assert!(relative(&generation, &expected) <= 1e-5, "{network:?}");
    }
    lab.network(Network::Well);
    let expected = lab.draw(&long);
    for network in [Network::Cut, Network::Deaf] {
        let (generation, resumption) = lab.cut(&long, network);
        assert!(resumption.lost.contains('b'), "{resumption:?}");
        assert!(relative(&generation, &expected) <= 1e-5, "{network:?}");
    }
}

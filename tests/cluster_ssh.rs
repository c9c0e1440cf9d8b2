//! Clusters whose agents are started by the user's OpenSSH, on a real sshd on loopback.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use ditmesh::{ClusterClient, ClusterStatus, Manifest, manifest};
use tempfile::TempDir;

use crate::cli_process::Ended;
use crate::cluster_harness::{is_alive, processes, short_request, wait_until};
use crate::ssh_server::{HOSTS, SshServer, free_tcp_port};

/// A manifest of two hosts in a folder of its own.
struct Cluster {
    folder: TempDir,
    manifest: Manifest,
}

impl Cluster {
    fn new(ssh_config: &Path, program: &str) -> Self {
        let mut text = String::from("schema = 1\n[cluster]\nname = \"far\"\n");
        for (name, host) in ["a", "b"].iter().zip(HOSTS) {
            text +=
                &format!("[[node]]\nname = \"{name}\"\naddress = \"{host}\"\n[[node.device]]\n");
        }
        text += "[[group]]\nmodel = \"built-in\"\ndegrees = { pipefusion_degree = 2 }\n[health]\n\
                 suspect_ms = 5000\ndead_ms = 10000\n[launcher]\nkind = \"ssh\"\n\
                 measure_devices = false\n";
        text += &format!("ssh_config = {:?}\nprogram = {program:?}\n", ssh_config.display());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cluster.toml");
        std::fs::write(&path, text).unwrap();
        let manifest = manifest::parse::load(&path).unwrap();
        Self { folder, manifest }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ditmesh"));
        command.args(args).current_dir(self.folder.path()).env("DITMESH_LOG", "info");
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        let output = self.command(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        Ended { code: output.status.code(), stdout, stderr }
    }

    fn foreground(&self) -> Child {
        let mut up = self.command(&["up", "-q"]);
        up.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn status(&self) -> ClusterStatus {
        ClusterClient::connect(&self.manifest).unwrap().blocking_status().unwrap()
    }

    fn is_formed(&self) -> bool {
        ClusterClient::connect(&self.manifest)
            .and_then(|client| client.blocking_status())
            .is_ok_and(|status| status.mesh.is_some())
    }

    /// Nothing of the run is left; certificates stay.
    fn is_clean(&self) -> bool {
        !self.folder.path().join(".ditmesh/run").exists()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.run(&["down", "-q"]);
    }
}

/// The arguments of every process.
fn command_lines() -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).collect()
}

/// Whether some `ssh` uses a configuration of `server`.
fn has_connections(server: &SshServer) -> bool {
    let folder = server.folder().display().to_string();
    command_lines().iter().any(|line| line.starts_with("ssh ") && line.contains(&folder))
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_ditmesh");

#[test]
fn agents_on_other_hosts_draw_a_picture_and_all_end_with_down() {
    let Some(server) = SshServer::start() else { return };
    let cluster = Cluster::new(&server.client(None, "user_key", "known_hosts"), PROGRAM);
    let up = cluster.run(&["up", "--detach"]);
    for host in HOSTS {
        assert!(up.done().contains(host), "{up:?}");
    }
    let status = cluster.status();
    let client = ClusterClient::connect(&cluster.manifest).unwrap();
    client.generate(short_request()).blocking_finish().unwrap();
    drop(client);
    // The agents belong to sshd, and nobody's key is in anybody's arguments.
    for node in &status.nodes {
        let environment = std::fs::read(format!("/proc/{}/environ", node.process)).unwrap();
        assert!(String::from_utf8_lossy(&environment).contains("SSH_CONNECTION="));
    }
    let lines = command_lines();
    assert!(!lines.iter().any(|line| line.contains("PRIVATE KEY") || line.contains("BEGIN ")));
    let log = cluster.folder.path().join(".ditmesh/run/far/log");
    let log = std::fs::read_to_string(log).unwrap();
    for node in ["[a] ", "[b] "] {
        assert!(log.lines().any(|line| line.starts_with(node)), "no log of {node}:\n{log}");
    }
    cluster.run(&["down"]).done();
    assert!(!processes(&status).iter().any(|&process| is_alive(process)));
    assert!(cluster.is_clean());
    wait_until("connections stay", || !has_connections(&server));
}

#[test]
fn a_killed_launcher_leaves_no_agent_and_no_connection() {
    let Some(server) = SshServer::start() else { return };
    let cluster = Cluster::new(&server.client(None, "user_key", "known_hosts"), PROGRAM);
    let mut launcher = cluster.foreground();
    wait_until("the mesh is formed", || cluster.is_formed());
    let processes = processes(&cluster.status());
    assert!(has_connections(&server));
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    wait_until("processes stay", || !processes.iter().any(|&process| is_alive(process)));
    wait_until("connections stay", || !has_connections(&server));
    // What it left on this host does not keep the next one from starting.
    let mut again = cluster.foreground();
    wait_until("the mesh is formed again", || cluster.is_formed());
    cluster.run(&["down"]).done();
    assert!(again.wait().unwrap().success());
    assert!(cluster.is_clean());
}

#[test]
fn what_is_wrong_with_a_host_is_said_with_what_to_do() {
    let Some(server) = SshServer::start() else { return };
    let known = server.client(None, "user_key", "known_hosts");
    let table: [(&Path, &str, &[&str]); 4] = [
        (
            &server.client(Some(free_tcp_port()), "user_key", "known_hosts"),
            PROGRAM,
            &["cannot be reached by ssh", "Connection refused", "sshd runs"],
        ),
        (
            &server.client(None, "user_key", "no_hosts"),
            PROGRAM,
            &["the host's key is not the known one", "ssh_host_keys = \"accept-new\""],
        ),
        (
            &server.client(None, "stranger_key", "known_hosts"),
            PROGRAM,
            &["does not let this user in", "Permission denied", "ssh-agent"],
        ),
        (&known, "no-ditmesh-here", &["no-ditmesh-here", "cannot be run there", "same build"]),
    ];
    for (ssh_config, program, parts) in table {
        let cluster = Cluster::new(ssh_config, program);
        let up = cluster.run(&["up", "--detach"]);
        up.refused(1, &[&["node \"a\" on 127.0.0.1"], parts].concat());
        assert!(cluster.is_clean());
    }
    wait_until("connections stay", || !has_connections(&server));
}

/// The ends of a measurement run where agents would, and end with it.
#[test]
fn links_are_measured_between_other_hosts() {
    let Some(server) = SshServer::start() else { return };
    let cluster = Cluster::new(&server.client(None, "user_key", "known_hosts"), PROGRAM);
    let small = "bench transport --cluster cluster.toml --rounds 1 --message-mib 1 --messages 2 \
                 --largest-mib 1 --only quic --against gloo --json";
    let ended = cluster.run(&small.split_whitespace().collect::<Vec<_>>());
    let report: serde_json::Value = serde_json::from_str(ended.done()).unwrap();
    let link = &report["links"][0];
    assert_eq!(link["link"], serde_json::json!(["node a", "node b"]));
    assert!(link["ways"][0]["gb_per_s"]["median"].as_f64().unwrap() > 0.0, "{report:#}");
    assert!(link["not_measured"].to_string().contains("within this host only"), "{report:#}");
    wait_until("its connections stay", || !has_connections(&server));
}

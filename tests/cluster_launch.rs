//! Starting and stopping clusters of processes when something is in the way.

use std::net::UdpSocket;
use std::process::{Command, Stdio};

use ditmesh::ClusterClient;
use ditmesh_transport::identity::{ClusterCa, Role};

use crate::cluster_harness::{
    Cluster, Settings, is_alive, processes, short_request, signal, wait_until,
};

/// Runs `up` in the foreground until the mesh is formed.
fn foreground(cluster: &Cluster) -> std::process::Child {
    let child = Command::new(env!("CARGO_BIN_EXE_ditmesh"))
        .args(["up", "-q"])
        .current_dir(cluster.folder())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    cluster.wait_for_mesh(0);
    child
}

#[test]
fn a_killed_launcher_leaves_nothing() {
    let cluster = Cluster::new(Settings::default());
    let mut launcher = foreground(&cluster);
    let processes = processes(&cluster.status());
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    wait_until("processes stay", || !processes.iter().any(|&process| is_alive(process)));
    wait_until("files stay", || cluster.files() == ["cluster.toml"]);
    let again = foreground(&cluster);
    drop_after_down(&cluster, again);
}

#[test]
fn an_interrupted_launcher_ends_in_order() {
    let cluster = Cluster::new(Settings::default());
    let mut launcher = foreground(&cluster);
    let processes = processes(&cluster.status());
    signal(launcher.id(), "INT");
    assert!(launcher.wait().unwrap().code().is_some());
    assert!(!processes.iter().any(|&process| is_alive(process)));
    assert_eq!(cluster.files(), ["cluster.toml"]);
}

fn drop_after_down(cluster: &Cluster, mut launcher: std::process::Child) {
    cluster.run(&["down"]).done();
    assert!(launcher.wait().unwrap().success());
    assert_eq!(cluster.files(), ["cluster.toml"]);
}

#[test]
fn two_at_once_start_one_cluster() {
    let cluster = Cluster::new(Settings::default());
    let (one, other) = std::thread::scope(|scope| {
        let up = || scope.spawn(|| cluster.run(&["up", "--detach"]));
        let (one, other) = (up(), up());
        (one.join().unwrap(), other.join().unwrap())
    });
    one.done();
    other.done();
    let already = [&one, &other].into_iter().filter(|up| up.stderr.contains("runs already"));
    assert_eq!(already.count(), 1, "{one:?} {other:?}");
    cluster.client().generate(short_request()).blocking_finish().unwrap();
}

#[test]
fn a_taken_port_is_named_with_its_node() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let cluster = Cluster::new(Settings { control_port: port, ..Settings::default() });
    let up = cluster.run(&["up", "--detach"]);
    up.refused(1, &["\"a\"", &port.to_string(), "taken"]);
    assert_eq!(cluster.files(), ["cluster.toml"]);
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let cluster = Cluster::up(Settings::default());
    cluster.run(&["down"]).done();
    let certs = cluster.folder().join(".ditmesh/certs");
    let strange = tempfile::tempdir().unwrap();
    let authority = ClusterCa::generate("demo").unwrap();
    authority.issue(Role::Node, "b").unwrap().save(strange.path()).unwrap();
    for file in ["node-b.pem", "node-b.key.pem"] {
        std::fs::copy(strange.path().join(file), certs.join(file)).unwrap();
    }
    cluster.run(&["up", "--detach"]).refused(1, &["\"b\"", "ditmesh certs"]);
    assert_eq!(cluster.files(), ["cluster.toml"]);
}

#[test]
fn a_strange_client_is_refused() {
    let cluster = Cluster::up(Settings::default());
    let certs = cluster.folder().join(".ditmesh/certs");
    let mut manifest = cluster.manifest.clone();
    let strange = tempfile::tempdir().unwrap();
    let authority = ClusterCa::generate("demo").unwrap();
    authority.issue(Role::Client, "client").unwrap().save(strange.path()).unwrap();
    manifest.security.certs_dir = Some(strange.path().to_owned());
    let error = ClusterClient::connect(&manifest).unwrap_err().to_string();
    assert!(error.contains("trusted"), "{error}");
    manifest.security.certs_dir = Some(certs);
    ClusterClient::connect(&manifest).unwrap().blocking_status().unwrap();
}

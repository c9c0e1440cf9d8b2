//! A whole cluster by the command line: up, status, generate, down; nothing stays behind.

use std::collections::BTreeSet;
use std::path::Path;

use ditmesh::ClusterStatus;

use crate::cli_generate::fixtures;
use crate::cli_process::ditmesh;

/// Two nodes of one device each, served over QUIC by processes.
fn manifest(folder: &Path) {
    let model = fixtures().join("pipelines/sigma_8x8");
    let text = format!(
        "schema = 1\n[cluster]\nname = \"demo\"\n[[node]]\nname = \"a\"\n[[node.device]]\n\
         [[node]]\nname = \"b\"\n[[node.device]]\n[[model]]\nname = \"m\"\npath = {:?}\n\
         [[group]]\nmodel = \"m\"\ndegrees = {{ pipefusion_degree = 2 }}\n\
         [launcher]\nmeasure_devices = false\n",
        model.display()
    );
    std::fs::write(folder.join("cluster.toml"), text).unwrap();
}

fn files(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().display().to_string());
            }
        }
    }
    found
}

/// Stops the cluster of a test that failed half-way.
struct Stopped<'f>(&'f Path);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        ditmesh(self.0, &["down", "-q"]);
    }
}

const DRAW: [&str; 9] =
    ["generate", "--cluster", "cluster.toml", "-p", "a red apple", "--steps", "3", "-o", "x.png"];

#[test]
fn up_status_generate_down() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    manifest(folder);
    let stop = Stopped(folder);
    let up = ditmesh(folder, &["up", "--detach"]);
    assert!(up.done().contains("cluster demo"), "{up:?}");
    let again = ditmesh(folder, &["up", "--detach"]);
    again.done();
    assert!(again.stderr.contains("runs already"), "{again:?}");

    let status = ditmesh(folder, &["status", "--json"]);
    let status: ClusterStatus = serde_json::from_str(status.done()).unwrap();
    let mesh = status.mesh.as_ref().unwrap();
    assert_eq!(mesh.ranks.len(), 2);
    assert!(mesh.links.iter().all(|link| link.transport == "quic"), "{mesh:?}");
    let processes: Vec<u32> = status
        .nodes
        .iter()
        .flat_map(|node| node.devices.iter().map(|device| device.process).chain([node.process]))
        .collect();
    assert_eq!(processes.len(), 4);
    assert!(processes.iter().all(|&process| process != 0), "{processes:?}");

    assert_eq!(ditmesh(folder, &DRAW).done(), "x.png\n");
    ditmesh(folder, &["inspect", "x.png"]).done();
    ditmesh(folder, &["down"]).done();
    drop(stop);
    for process in processes {
        assert!(!Path::new(&format!("/proc/{process}")).exists(), "process {process} stayed");
    }
    ditmesh(folder, &["status"]).refused(3, &["demo"]);
    let left: Vec<String> =
        files(folder).into_iter().filter(|file| !file.contains("certs/")).collect();
    // What was measured of the links stays for the next start, and who writes it locks a file.
    let kept = [".ditmesh/cache/.calibration.json.lock", ".ditmesh/cache/calibration.json"];
    assert_eq!(left, [&kept[..], &["cluster.toml", "x.png"]].concat());
}

#[test]
fn one_command_starts_draws_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    manifest(folder);
    let stop = Stopped(folder);
    let drawn = ditmesh(folder, &[&DRAW[..], &["--up"]].concat());
    assert_eq!(drawn.done(), "x.png\n");
    ditmesh(folder, &["status"]).refused(3, &["demo"]);
    drop(stop);
}

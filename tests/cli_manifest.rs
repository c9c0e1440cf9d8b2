//! Manifests: each mistake is one message with its line and column, and nothing is started.

use std::path::Path;

use crate::cli_process::ditmesh;

const GOOD: &str = r#"schema = 1
[cluster]
name = "demo"
[[node]]
name = "a"
[[node.device]]
[[node]]
name = "b"
[[node.device]]
[[group]]
model = "built-in"
degrees = { cfg_degree = 2 }
"#;

#[test]
fn each_mistake_is_shown_where_it_is() {
    let cases = [
        ("[cluster]", "[cluter]", "cluster.toml:2:2", "did you mean `cluster`?"),
        ("name = \"b\"", "name = \"b\"\nadress = \"x\"", "cluster.toml:9:1", "`address`?"),
        ("name = \"b\"", "name = \"a\"", "cluster.toml:8:8", "taken by node number 1"),
        ("cfg_degree", "cfg_degre", "cluster.toml:12:13", "did you mean `cfg_degree`?"),
        ("cfg_degree = 2", "cfg_degree = 3", "cluster.toml:12:26", "expected 1 or 2"),
        (
            "cfg_degree = 2",
            "ulysses_degree = 4",
            "cluster.toml:12:11",
            "ulysses_degree 2 would fit",
        ),
        ("cfg_degree = 2", "ring_degree = 4", "cluster.toml:12:11", "ring_degree 2 would fit"),
        ("\"built-in\"", "\"bult-in\"", "cluster.toml:11:9", "did you mean `built-in`?"),
        ("schema = 1", "schema = 2", "cluster.toml:1:10", "reads schema 1"),
        ("schema = 1", "schema = \"1\"", "cluster.toml:1:10", "expected a whole number"),
        ("[[node.device]]\n[[node]]", "[[node]]", "cluster.toml:5:8", "has no device"),
        ("name = \"demo\"", "", "cluster.toml:2:1", "has no `name`"),
        ("[[group]]", "[[group]", "cluster.toml:10:", "10 | [[group]"),
    ];
    for (from, to, place, part) in cases {
        let folder = tempfile::tempdir().unwrap();
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from}");
        std::fs::write(folder.path().join("cluster.toml"), text).unwrap();
        for command in ["status", "up", "down"] {
            ditmesh(folder.path(), &[command]).refused(2, &[place, part]);
        }
        let files = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 1, "{to}: something was left beside the manifest");
    }
}

#[test]
fn a_cluster_that_does_not_run_is_exit_code_3() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cluster.toml"), GOOD).unwrap();
    ditmesh(folder.path(), &["status"]).refused(3, &["demo", "ditmesh up"]);
    ditmesh(folder.path(), &["status", "--json"]).refused(3, &["demo"]);
    let generate = ["generate", "--cluster", "cluster.toml", "-p", "x", "-o", "x.png"];
    ditmesh(folder.path(), &generate).refused(3, &["demo"]);
}

#[test]
fn the_example_of_the_readme_is_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = ditmesh::manifest::parse::load(&root.join("cluster.toml")).unwrap();
    assert_eq!((manifest.nodes.len(), manifest.device_count()), (2, 4));
    let text = std::fs::read_to_string(root.join("cluster.toml")).unwrap();
    let plain: String = text.lines().map(uncommented).collect();
    let with_defaults = ditmesh::manifest::parse::from_str(&plain, "cluster.toml").unwrap();
    let mut expected = ditmesh::manifest::parse::from_str(&text, "cluster.toml").unwrap();
    // What is absent by default has no line that says so; the others state their default.
    expected.coordinator = with_defaults.coordinator.clone();
    expected.security = with_defaults.security.clone();
    expected.telemetry = with_defaults.telemetry.clone();
    expected.transport.same_host = with_defaults.transport.same_host;
    expected.transport.other_host = with_defaults.transport.other_host;
    expected.transport.ucx_devices = with_defaults.transport.ucx_devices.clone();
    expected.groups[0].nodes = with_defaults.groups[0].nodes.clone();
    expected.nodes[0].bulk_ports = with_defaults.nodes[0].bulk_ports;
    expected.launcher.ssh_config = with_defaults.launcher.ssh_config.clone();
    expected.links = with_defaults.links.clone();
    expected.nodes[0].devices[0].cores = with_defaults.nodes[0].devices[0].cores.clone();
    expected.nodes[0].devices[0].memory_bytes = with_defaults.nodes[0].devices[0].memory_bytes;
    expected.nodes[0].devices[0].profile = with_defaults.nodes[0].devices[0].profile.clone();
    assert_eq!(with_defaults, expected);
}

/// The line with its `# key = value` or `# [table]` made real.
fn uncommented(line: &str) -> String {
    let is_setting = |rest: &&str| {
        rest.starts_with('[') || rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
    };
    let line = line.strip_prefix("# ").filter(is_setting).unwrap_or(line);
    format!("{line}\n")
}

#[test]
fn certificates_are_made_once_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cluster.toml"), GOOD).unwrap();
    let certs = folder.path().join(".ditmesh/certs");
    let first = ditmesh(folder.path(), &["certs"]);
    assert!(first.done().contains(".ditmesh/certs"), "{first:?}");
    assert!(first.stderr.contains("4 certificates made, 0 kept"), "{first:?}");
    let read = |name: &str| std::fs::read(certs.join(name)).unwrap();
    let before = (read("ca.pem"), read("node-a.pem"), read("client-client.pem"));
    std::fs::remove_file(certs.join("node-b.pem")).unwrap();
    let second = ditmesh(folder.path(), &["certs"]);
    second.done();
    assert!(second.stderr.contains("1 certificates made, 3 kept"), "{second:?}");
    assert_eq!(before, (read("ca.pem"), read("node-a.pem"), read("client-client.pem")));
    ditmesh(folder.path(), &["certs", "--force"]).done();
    assert_ne!(before.0, read("ca.pem"));
    let renamed = GOOD.replacen("\"demo\"", "\"other\"", 1);
    std::fs::write(folder.path().join("cluster.toml"), renamed).unwrap();
    ditmesh(folder.path(), &["certs"]).refused(1, &["of cluster demo", "names other"]);
}

//! Rendered pods, each as a process of this machine: the command of the container, the variables
//! that Kubernetes sets, the mounts as folders. Probes are run as kubelet runs them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::cli_process::ditmesh;
use crate::cluster_harness::{free_port, signal, wait_until};

const MANIFEST: &str = "schema = 1\n[cluster]\nname = \"demo\"\n[[node]]\nname = \"a\"\n\
                        [[node.device]]\n[[node]]\nname = \"b\"\naddress = \"192.0.2.1\"\n\
                        [[node.device]]\n[[group]]\nmodel = \"built-in\"\n\
                        degrees = { pipefusion_degree = 2 }\n[health]\nsuspect_ms = 5000\n\
                        dead_ms = 10000\n[launcher]\nmeasure_devices = false\n";

/// One pod: its folder stands for its file system.
struct Pod {
    folder: PathBuf,
    container: Value,
    child: Child,
}

impl Pod {
    fn start(root: &Path, index: usize, objects: &[Value], environment: &[(&str, &str)]) -> Self {
        let folder = root.join(format!("pod-{index}"));
        let workload = objects.last().unwrap();
        let template = match workload["kind"].as_str().unwrap() {
            "StatefulSet" => &workload["spec"]["template"],
            _ if index == 0 => &workload["spec"]["leaderWorkerTemplate"]["leaderTemplate"],
            _ => &workload["spec"]["leaderWorkerTemplate"]["workerTemplate"],
        };
        let container = template["spec"]["containers"][0].clone();
        for mount in container["volumeMounts"].as_array().unwrap() {
            std::fs::create_dir_all(inside(&folder, mount["mountPath"].as_str().unwrap())).unwrap();
        }
        let text = objects[0]["data"]["cluster.toml"].as_str().unwrap();
        // The pod's paths, and the name that the cluster's DNS would know.
        let text = text.replace("\"/var/", &format!("\"{}/var/", folder.display()));
        let text = text.replace("demo-coordinator", "127.0.0.1");
        std::fs::write(inside(&folder, "/etc/ditmesh/cluster.toml"), text).unwrap();
        for file in std::fs::read_dir(root.join(".ditmesh/certs")).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name != "ca.key.pem" {
                let secret = inside(&folder, "/var/run/secrets/ditmesh").join(name);
                std::fs::copy(&path, secret).unwrap();
            }
        }
        let mut pod = Self { folder, container, child: Command::new("true").spawn().unwrap() };
        pod.child.wait().unwrap();
        let line = [words(&pod.container["command"]), words(&pod.container["args"])].concat();
        let mut command = pod.command(&line, environment);
        pod.child = command.stdin(Stdio::null()).spawn().unwrap();
        pod
    }

    /// A command in the container.
    fn command(&self, line: &[String], environment: &[(&str, &str)]) -> Command {
        assert_eq!(line[0], "ditmesh");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ditmesh"));
        for word in &line[1..] {
            let mut word = match word.strip_prefix("/etc/") {
                Some(rest) => inside(&self.folder, "/etc").join(rest).display().to_string(),
                None => word.clone(),
            };
            for (name, value) in environment {
                word = word.replace(&format!("$({name})"), value);
            }
            command.arg(word);
        }
        let lws = environment.iter().filter(|(name, _)| name.starts_with("LWS_"));
        command.envs(lws.copied()).env_remove("SLURM_NODEID");
        command
    }

    /// Whether kubelet would be content with it.
    fn passes(&self, probe: &str) -> bool {
        let line = words(&self.container[probe]["exec"]["command"]);
        let mut command = self.command(&line, &[]);
        command.stderr(Stdio::null()).status().unwrap().success()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn inside(folder: &Path, path: &str) -> PathBuf {
    folder.join(path.trim_start_matches('/'))
}

fn words(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// The objects of a rendering for a free port.
fn objects(root: &TempDir, more: &[&str]) -> Vec<Value> {
    std::fs::write(root.path().join("cluster.toml"), MANIFEST).unwrap();
    ditmesh(root.path(), &["certs", "-q"]).done();
    let port = free_port(&["127.0.0.1", "127.0.0.2"]).to_string();
    let render = ["render", "k8s", "--image", "ditmesh", "--control-port", &port];
    let yaml = ditmesh(root.path(), &[&render[..], more].concat());
    assert!(!yaml.done().contains("PRIVATE KEY"));
    serde_yaml_ng::Deserializer::from_str(&yaml.stdout)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|document| !document.is_null())
        .collect()
}

#[test]
fn pods_of_a_stateful_set_join_are_probed_and_draw() {
    let root = tempfile::tempdir().unwrap();
    let objects = objects(&root, &["--statefulset"]);
    let start = |index: usize, ip: &str| {
        let rank = index.to_string();
        let environment = [("POD_IP", ip), ("NODE_RANK", rank.as_str())];
        Pod::start(root.path(), index, &objects, &environment)
    };
    // The second first: it runs, and is not ready before there is a coordinator.
    let mut second = start(1, "127.0.0.2");
    wait_until("it starts", || second.passes("startupProbe"));
    assert!(second.passes("livenessProbe") && !second.passes("readinessProbe"));
    let first = start(0, "127.0.0.1");
    wait_until("both are ready", || {
        first.passes("readinessProbe") && second.passes("readinessProbe")
    });
    // As `kubectl exec` in the pod that does not host the coordinator.
    let cluster = inside(&second.folder, "/etc/ditmesh/cluster.toml").display().to_string();
    ditmesh(root.path(), &["status", "--cluster", &cluster, "--wait", "60"]).done();
    let draw = ["generate", "--cluster", &cluster, "-p", "a red apple", "--steps", "2"];
    ditmesh(root.path(), &[&draw[..], &["-o", "apple.png"]].concat()).done();
    assert!(root.path().join("apple.png").exists());
    // A pod that hangs fails its liveness probe; one that is told to end does.
    signal(second.child.id(), "STOP");
    wait_until("it is found to be stuck", || !second.passes("livenessProbe"));
    signal(second.child.id(), "CONT");
    signal(second.child.id(), "TERM");
    assert!(second.child.wait().unwrap().success());
    assert!(!second.passes("livenessProbe"));
}

#[test]
fn pods_of_a_leader_worker_set_find_their_leader() {
    let root = tempfile::tempdir().unwrap();
    let objects = objects(&root, &[]);
    let start = |index: usize, ip: &str| {
        let index_text = index.to_string();
        let environment = [
            ("POD_IP", ip),
            ("LWS_WORKER_INDEX", index_text.as_str()),
            ("LWS_GROUP_SIZE", "2"),
            ("LWS_LEADER_ADDRESS", "127.0.0.1"),
        ];
        Pod::start(root.path(), index, &objects, &environment)
    };
    let (mut leader, mut worker) = (start(0, "127.0.0.1"), start(1, "127.0.0.2"));
    wait_until("both are ready", || {
        leader.passes("readinessProbe") && worker.passes("readinessProbe")
    });
    let cluster = inside(&leader.folder, "/etc/ditmesh/cluster.toml").display().to_string();
    let status = ditmesh(root.path(), &["status", "--cluster", &cluster, "--wait", "60"]);
    assert!(status.done().contains("127.0.0.2"), "{status:?}");
    ditmesh(root.path(), &["down", "--cluster", &cluster]).done();
    for pod in [&mut leader, &mut worker] {
        assert!(pod.child.wait().unwrap().success());
    }
}

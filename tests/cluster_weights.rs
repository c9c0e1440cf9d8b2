//! A node without the model's folder: real processes, of which one sees an empty folder in a mount
//! namespace of its own. It fetches what its stage reads, and the latents are those of one process.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::cli_generate::{CASE, fixtures, tensor};
use crate::cli_process::{Ended, ditmesh};
use crate::cluster_harness::{free_port, signal};

/// An agent of a node, ended with the test.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            signal(self.0.id(), "TERM");
            let _ = self.0.wait();
        }
    }
}

struct Cluster {
    folder: TempDir,
    /// In reverse order of their start.
    agents: Vec<Agent>,
}

/// Options of `unshare` that give a process mounts of its own here. `None`, which is said, if none
/// do and nobody requires it.
pub(crate) fn own_mounts() -> Option<&'static str> {
    let found = ["-m", "-rm"].into_iter().find(|options| {
        let mut probe = Command::new("unshare");
        probe.args([options, "sh", "-c", "mount -t tmpfs none /mnt"]);
        probe.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    if found.is_none() {
        let required = std::env::var_os("DITMESH_TEST_NAMESPACES").is_some();
        assert!(!required, "mount namespaces are required");
        eprintln!("skipped: no mount namespaces here (unshare -m)");
    }
    found
}

/// What begins a command that finds an empty folder where the model is.
pub(crate) fn without_model(mounts: &str, model: &Path) -> Command {
    let mut command = Command::new("unshare");
    let hide = "mount -t tmpfs none \"$0\" && exec \"$@\"";
    command.args([mounts, "sh", "-c", hide]).arg(model);
    command
}

/// Sizes of the tensors that are kept below a folder of caches.
pub(crate) fn kept_tensors(cache: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(cache.join("ditmesh/tensors"));
    let entries = entries.into_iter().flatten().flatten();
    entries.map(|entry| entry.metadata().unwrap().len()).collect()
}

impl Cluster {
    fn start(mounts: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = fixtures().join("pipelines").join(CASE);
        let manifest = format!(
            "schema = 1\n[cluster]\nname = \"far\"\n[[node]]\nname = \"a\"\naddress = \"127.0.0.1\"\n\
             [[node.device]]\n[[node]]\nname = \"b\"\naddress = \"127.0.0.2\"\n[[node.device]]\n\
             [[model]]\nname = \"m\"\npath = {:?}\n[[group]]\nmodel = \"m\"\ndegrees = {{ \
             pipefusion_degree = 2 }}\n[health]\nsuspect_ms = 5000\ndead_ms = 10000\n[launcher]\n\
             measure_devices = false\n",
            model.display()
        );
        std::fs::write(folder.path().join("cluster.toml"), manifest).unwrap();
        let mut cluster = Self { folder, agents: Vec::new() };
        cluster.run(&["certs", "-q"]).done();
        let port = free_port(&["127.0.0.1", "127.0.0.2"]).to_string();
        cluster.agent("a", &port, None);
        cluster.agent("b", &port, Some((mounts, &model)));
        cluster
    }

    /// Starts an agent, over whose model an empty folder may lie.
    fn agent(&mut self, node: &str, port: &str, hidden: Option<(&str, &Path)>) {
        let mut command = match hidden {
            None => Command::new(env!("CARGO_BIN_EXE_ditmesh")),
            Some((mounts, model)) => {
                let mut command = without_model(mounts, model);
                command.arg(env!("CARGO_BIN_EXE_ditmesh"));
                command
            }
        };
        command.args(["agent", "--cluster", "cluster.toml", "--node", node]);
        command.args(["--control-port", port]).current_dir(self.folder.path());
        command.env("DITMESH_CACHE_DIR", self.cache(node));
        self.agents.insert(0, Agent(command.stdin(Stdio::null()).spawn().unwrap()));
    }

    fn cache(&self, node: &str) -> std::path::PathBuf {
        self.folder.path().join(format!("cache-{node}"))
    }

    fn run(&self, args: &[&str]) -> Ended {
        ditmesh(self.folder.path(), args)
    }

    fn kept(&self, node: &str) -> Vec<u64> {
        kept_tensors(&self.cache(node))
    }
}

#[test]
fn a_node_without_the_model_fetches_its_stage_and_draws_the_same() {
    let Some(mounts) = own_mounts() else { return };
    let cluster = Cluster::start(mounts);
    let status = cluster.run(&["status", "--wait", "60", "--json"]);
    let status: serde_json::Value = serde_json::from_str(status.done()).unwrap();
    let ranks = status["mesh"]["ranks"].as_array().unwrap();
    let rank = ranks.iter().find(|rank| rank["device"] == "b/0").unwrap();
    let read = rank["weight_bytes_read"].as_u64().unwrap();
    let kept: u64 = cluster.kept("b").iter().sum();
    assert_eq!(kept, read, "what its stage read, and nothing else");
    let model = fixtures().join("pipelines").join(CASE);
    let file = |name: &str| std::fs::metadata(model.join(name)).unwrap().len();
    let transformer = file("transformer/diffusion_pytorch_model.safetensors");
    let whole = transformer
        + file("vae/diffusion_pytorch_model.safetensors")
        + file("text_encoder/model.safetensors");
    eprintln!("fetched {kept} bytes of {whole}");
    assert!(kept > 0 && kept < whole, "{kept} of {whole}");
    assert!(cluster.kept("a").is_empty(), "the other has the folder");

    let inputs = fixtures().join("cases").join(CASE).join("square.safetensors");
    let (inputs, model) = (inputs.to_str().unwrap(), model.to_str().unwrap());
    let draw = ["generate", "--latents", inputs, "--prompt-embeds", inputs, "--steps", "8"];
    let draw =
        [&draw[..], &["--height", "32", "--width", "32", "--output-type", "latent"]].concat();
    let mesh = ["--pipefusion-degree", "2", "--num-pipeline-patch", "4", "-o", "out.safetensors"];
    let latents = |place: &[&str]| {
        cluster.run(&[&draw[..], place, &mesh].concat()).done();
        tensor(&cluster.folder.path().join("out.safetensors"), "latents")
    };
    let far = latents(&["--cluster", "cluster.toml"]);
    assert_eq!(far, latents(&["--model", model, "--threads", "1"]), "to the bit");

    cluster.run(&["down"]).done();
}

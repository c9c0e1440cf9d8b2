//! A rendered job script, run by bash with a stand-in for `srun` that sets the environment as Slurm
//! documents it: real agents find their places, draw a picture, and nothing stays.

use std::path::Path;
use std::process::{Command, Output};

use crate::cluster_harness::{free_port, wait_until};

/// A job of two nodes, each a loopback address.
fn sbatch(folder: &Path, script: &Path) -> Output {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slurm");
    let path = std::env::var("PATH").unwrap();
    Command::new("bash")
        .arg(script)
        .current_dir(folder)
        .env("PATH", format!("{}:{path}", tools.display()))
        .env("DITMESH_LOG", "info")
        .env("SLURM_JOB_ID", "4711")
        .env("SLURM_JOB_NODELIST", "127.0.0.[1-2]")
        .env("SLURM_JOB_NUM_NODES", "2")
        .env("SLURM_NNODES", "2")
        .env("SLURM_NODEID", "0")
        .env("SLURM_PROCID", "0")
        .env("SLURM_LOCALID", "0")
        .output()
        .unwrap()
}

#[test]
fn a_job_draws_a_picture_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = "schema = 1\n[cluster]\nname = \"job\"\n[[node]]\nname = \"a\"\n[[node.device]]\n\
                    [[node]]\nname = \"b\"\n[[node.device]]\n[[group]]\nmodel = \"built-in\"\n\
                    degrees = { pipefusion_degree = 2 }\n[health]\nsuspect_ms = 5000\n\
                    dead_ms = 10000\n[launcher]\nmeasure_devices = false\n";
    std::fs::write(folder.path().join("cluster.toml"), manifest).unwrap();
    let port = free_port(&["127.0.0.1", "127.0.0.2"]).to_string();
    let render = ["render", "slurm", "cluster.toml", "--control-port", &port, "--"];
    let draw = ["-p", "a red apple", "--steps", "2", "-o", "apple.png", "-q"];
    let rendered = crate::cli_process::ditmesh(folder.path(), &[&render[..], &draw].concat());
    let script = folder.path().join("job.sh");
    std::fs::write(&script, rendered.done()).unwrap();
    let job = sbatch(folder.path(), &script);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, log) = (text(&job.stdout), text(&job.stderr));
    assert!(job.status.success(), "{out}\n{log}");
    assert!(out.contains("apple.png"), "{out}\n{log}");
    let picture = std::fs::read(folder.path().join("apple.png")).unwrap();
    assert_eq!(&picture[1..4], b"PNG");
    // Both stages had a device of their own node, at the address that Slurm gave it.
    for (node, address) in [("a/0", "127.0.0.1"), ("b/0", "127.0.0.2")] {
        assert!(out.contains(node) && out.contains(address), "{out}\n{log}");
    }
    for rank in ["0: ", "1: "] {
        assert!(log.lines().any(|line| line.starts_with(rank)), "no log of task {rank:?}:\n{log}");
    }
    assert!(!script_holds_keys(&script));
    let run = folder.path().join(".ditmesh/run");
    wait_until("files of the run stay", || !run.exists());
}

#[test]
fn a_job_whose_agents_fail_ends_with_their_reason() {
    let folder = tempfile::tempdir().unwrap();
    let manifest =
        "schema = 1\n[cluster]\nname = \"job\"\n[[node]]\nname = \"a\"\n[[node.device]]\n";
    std::fs::write(folder.path().join("cluster.toml"), manifest).unwrap();
    let script = folder.path().join("job.sh");
    let rendered = crate::cli_process::ditmesh(folder.path(), &["render", "slurm"]);
    // Slurm gives two nodes, and the manifest has one.
    let two = rendered.done().replace("--nodes=1 --ntasks=1", "--nodes=2 --ntasks=2");
    std::fs::write(&script, two).unwrap();
    let job = sbatch(folder.path(), &script);
    let log = String::from_utf8_lossy(&job.stderr);
    assert!(!job.status.success(), "{log}");
    assert!(log.contains("SLURM_STEP_NUM_NODES is 2, and the manifest has 1 nodes"), "{log}");
}

fn script_holds_keys(script: &Path) -> bool {
    std::fs::read_to_string(script).unwrap().contains("PRIVATE KEY")
}

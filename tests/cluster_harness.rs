//! A cluster of processes for a test: started by the command line, asked through the library,
//! taken down at the end whatever happens.

use std::fmt::Write;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ditmesh::{ClusterClient, ClusterStatus, GenerateRequest, Manifest, manifest};
use ditmesh_actors::launcher::record::{Role, RunFolder};
use tempfile::TempDir;

use crate::cli_generate::fixtures;
use crate::cli_process::{Ended, ditmesh_with};

/// Longest wait for anything here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Nodes in the order in which a manifest names them; the first hosts the coordinator.
const NODES: [&str; 4] = ["a", "b", "c", "d"];

/// Between looks at what is waited for.
pub(crate) const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// How a test's manifest differs from the plainest one.
#[derive(Clone, Copy, Default)]
pub(crate) struct Settings {
    /// Of the node that hosts the coordinator.
    pub(crate) control_port: u16,
    /// Nodes; 0 means 2.
    pub(crate) nodes: usize,
    /// Devices of each node; 0 means 1.
    pub(crate) devices: usize,
    /// What each device has; 0 says nothing.
    pub(crate) memory_bytes: u64,
    /// Failure detection as a user has it; otherwise patient, for loaded machines.
    pub(crate) quick: bool,
    /// Longest time for a step; 0 means the default.
    pub(crate) step_deadline_ms: u32,
    /// Two sequence ranks in place of two stages.
    pub(crate) ulysses: bool,
    /// The manifest's transport, as one word; empty says nothing.
    pub(crate) transport: &'static str,
    /// Nodes have addresses of their own, as on hosts of their own.
    pub(crate) apart: bool,
    /// Degrees follow the devices that are there, over links so fast that all are of use.
    pub(crate) elastic: bool,
    /// Devices are measured before their workers start; what is measured is kept in the folder.
    pub(crate) measured: bool,
}

/// Nodes `a` (coordinator), `b` and so on, in a folder of their own.
pub(crate) struct Cluster {
    folder: TempDir,
    pub(crate) manifest: Manifest,
}

impl Cluster {
    pub(crate) fn new(settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = model();
        let mut text = String::from("schema = 1\n");
        if !settings.transport.is_empty() {
            writeln!(text, "transport = \"{}\"", settings.transport).unwrap();
        }
        text.push_str("[cluster]\nname = \"demo\"\n");
        let mut device = String::from("[[node.device]]\n");
        if settings.memory_bytes > 0 {
            writeln!(device, "memory_bytes = {}", settings.memory_bytes).unwrap();
        }
        let nodes = &NODES[..if settings.nodes == 0 { 2 } else { settings.nodes }];
        for (place, name) in nodes.iter().enumerate() {
            let port = if *name == NODES[0] { settings.control_port } else { 0 };
            writeln!(text, "[[node]]\nname = \"{name}\"\ncontrol_port = {port}").unwrap();
            if settings.apart {
                writeln!(text, "address = \"127.0.0.{}\"", place + 1).unwrap();
            }
            text.push_str(&device.repeat(settings.devices.max(1)));
        }
        writeln!(text, "[[model]]\nname = \"m\"\npath = {:?}", model.display()).unwrap();
        if settings.elastic {
            for class in ["same-node", "other-node"] {
                writeln!(text, "[[link]]\nclass = \"{class}\"\nbytes_per_s = 1e12").unwrap();
            }
        } else {
            let degree = if settings.ulysses { "ulysses_degree" } else { "pipefusion_degree" };
            writeln!(text, "[[group]]\nmodel = \"m\"\ndegrees = {{ {degree} = 2 }}").unwrap();
        }
        writeln!(text, "[launcher]\nmeasure_devices = {}", settings.measured).unwrap();
        text.push_str("[health]\n");
        if !settings.quick {
            text.push_str("suspect_ms = 5000\ndead_ms = 10000\n");
        }
        if settings.step_deadline_ms > 0 {
            writeln!(text, "step_deadline_ms = {}", settings.step_deadline_ms).unwrap();
        }
        let path = folder.path().join("cluster.toml");
        std::fs::write(&path, text).unwrap();
        let manifest = manifest::parse::load(&path).unwrap();
        Self { folder, manifest }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        ditmesh_with(self.folder(), args, &[("DITMESH_CACHE_DIR", &self.user_cache())])
    }

    /// A cluster that is up.
    pub(crate) fn up(settings: Settings) -> Self {
        let cluster = Self::new(settings);
        cluster.start();
        cluster
    }

    /// Brings it up.
    pub(crate) fn start(&self) {
        self.run(&["up", "--detach"]).done();
    }

    /// A folder for caches of its own: what the user of this machine, or another test, has measured
    /// does not count here.
    pub(crate) fn user_cache(&self) -> PathBuf {
        self.folder().join("user/cache")
    }

    pub(crate) fn client(&self) -> ClusterClient {
        ClusterClient::connect(&self.manifest).unwrap()
    }

    pub(crate) fn status(&self) -> ClusterStatus {
        self.client().blocking_status().unwrap()
    }

    /// The process that starts the agents, again if they end.
    pub(crate) fn launcher(&self) -> u32 {
        let mut records = RunFolder::of(&self.manifest).records().into_iter();
        records.find(|record| record.role == Role::Launcher).unwrap().pid
    }

    /// Waits until the mesh is formed with an epoch above `epoch`.
    pub(crate) fn wait_for_mesh(&self, epoch: u64) -> ClusterStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status =
                ClusterClient::connect(&self.manifest).and_then(|client| client.blocking_status());
            if let Ok(status) = &status
                && status.mesh.as_ref().is_some_and(|mesh| mesh.epoch > epoch)
            {
                return status.clone();
            }
            assert!(Instant::now() < deadline, "no mesh: {status:?}");
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    /// Files below the folder, certificates apart.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut open = vec![self.folder().to_owned()];
        while let Some(next) = open.pop() {
            let Ok(entries) = std::fs::read_dir(next) else { continue };
            for path in entries.map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    open.push(path);
                } else {
                    found.push(path.strip_prefix(self.folder()).unwrap().display().to_string());
                }
            }
        }
        // Certificates and what was measured stay.
        found.retain(|file| !file.contains("certs/") && !file.contains("/cache/"));
        found.sort();
        found
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.run(&["down", "-q"]);
    }
}

/// The model of every cluster here.
pub(crate) fn model() -> PathBuf {
    fixtures().join("pipelines/sigma_8x8")
}

/// Whether the whole product is tested, and not what a change can wait for.
pub(crate) fn full_scale() -> bool {
    std::env::var("DITMESH_TEST_SCALE").is_ok_and(|scale| scale == "full")
}

pub(crate) fn short_request() -> GenerateRequest {
    GenerateRequest { num_inference_steps: 3, ..GenerateRequest::new("a red apple") }
}

pub(crate) fn signal(process: u32, signal: &str) {
    assert_ne!(process, 0);
    let kill = format!("kill -{signal} {process}");
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
}

pub(crate) fn is_alive(process: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{process}/stat")) else { return false };
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    state.is_some_and(|state| state != "Z")
}

/// Every process of a cluster that its status names.
pub(crate) fn processes(status: &ClusterStatus) -> Vec<u32> {
    let nodes = status.nodes.iter();
    nodes
        .flat_map(|node| node.devices.iter().map(|device| device.process).chain([node.process]))
        .collect()
}

/// What a process has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holdings {
    /// Open files.
    pub(crate) files: usize,
    pub(crate) threads: usize,
    /// Resident.
    pub(crate) kilobytes: usize,
}

pub(crate) fn holdings(process: u32) -> Holdings {
    let count = |what: &str| std::fs::read_dir(format!("/proc/{process}/{what}")).unwrap().count();
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes = line.trim().trim_end_matches(" kB").parse().unwrap();
    Holdings { files: count("fd"), threads: count("task"), kilobytes }
}

/// A UDP port that nobody has at any of `addresses`. It is below those that the system gives out by
/// itself, or a test that runs at the same time could be given it before it is used.
pub(crate) fn free_port(addresses: &[&str]) -> u16 {
    const PORTS: std::ops::Range<u32> = 16_000..32_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let free = |port: &u16| addresses.iter().all(|at| UdpSocket::bind((*at, *port)).is_ok());
    let next = || {
        let place = std::process::id() % 160 * 100 + GIVEN.fetch_add(1, Ordering::Relaxed);
        (PORTS.start + place % PORTS.len() as u32) as u16
    };
    std::iter::repeat_with(next).take(100).find(free).unwrap()
}

pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(LOOK_PAUSE);
    }
}

//! The manifest (`cluster.toml`): which nodes and devices there are and how they work together.
//!
//! Owns the schema and its defaults. Reading a file with precise diagnostics is in [`parse`],
//! rules between values in [`validate`]. Knows nothing of processes or of the network.

mod error;
pub mod parse;
mod transport;
pub mod validate;

pub use error::{ManifestError, Place, Problem};
pub use transport::{CarrierKind, TransportKind, TransportSection};

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cost::calibration::device_name;
use crate::cost::link::LinkProfile;
use crate::request::{Degrees, Dtype, ModelSource, TextEncoderPolicy, Wire};

/// A whole cluster, as written in `cluster.toml` or built by an embedding program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format; 1.
    pub schema: u32,
    /// Name and state folder.
    pub cluster: ClusterSection,
    /// Where the coordinator runs; the first node by default.
    #[serde(default)]
    pub coordinator: Option<CoordinatorSection>,
    /// The hosts.
    #[serde(rename = "node")]
    pub nodes: Vec<NodeSection>,
    /// The models; the built-in one by default.
    #[serde(rename = "model", default)]
    pub models: Vec<ModelSection>,
    /// Which nodes serve which model with which degrees; all nodes, automatic by default.
    #[serde(rename = "group", default)]
    pub groups: Vec<GroupSection>,
    /// What links sustain, as far as a plan should not take it from measurements.
    #[serde(rename = "link", default)]
    pub links: Vec<LinkSection>,
    /// The data plane.
    #[serde(default)]
    pub transport: TransportSection,
    /// Failure detection.
    #[serde(default)]
    pub health: HealthSection,
    /// Certificates.
    #[serde(default)]
    pub security: SecuritySection,
    /// How nodes are started.
    #[serde(default)]
    pub launcher: LauncherSection,
    /// Where traces go.
    #[serde(default)]
    pub telemetry: TelemetrySection,
}

/// `[cluster]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSection {
    /// Name; part of every certificate.
    pub name: String,
    /// Folder for certificates and runtime files, relative to the manifest's folder.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
}

fn default_state_dir() -> PathBuf {
    PathBuf::from(".ditmesh")
}

/// `[coordinator]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorSection {
    /// Node whose agent hosts the coordinator.
    pub node: String,
}

/// `[[node]]`: one host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSection {
    /// Name, unique in the cluster.
    pub name: String,
    /// Host name or address that other nodes reach it by.
    #[serde(default = "default_address")]
    pub address: String,
    /// UDP port of the agent's control endpoint; 0 lets the system choose (local clusters).
    #[serde(default)]
    pub control_port: u16,
    /// First and last UDP port for bulk endpoints; absent lets the system choose.
    #[serde(default)]
    pub bulk_ports: Option<(u16, u16)>,
    /// The devices, one worker process each.
    #[serde(rename = "device")]
    pub devices: Vec<DeviceSection>,
}

fn default_address() -> String {
    "127.0.0.1".into()
}

/// Kind of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A share of the host's cores.
    #[default]
    Cpu,
    /// An NVIDIA GPU of the host.
    Cuda,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

/// `[[node.device]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSection {
    /// Kind.
    #[serde(default)]
    pub kind: DeviceKind,
    /// Which GPU of the host, as its driver counts; 0 by default. Several devices may share one.
    #[serde(default)]
    pub index: Option<usize>,
    /// Compute threads of a CPU device; 1 by default.
    #[serde(default)]
    pub threads: Option<usize>,
    /// Cores to pin those threads to.
    #[serde(default)]
    pub cores: Vec<usize>,
    /// Memory for weights and runs, in bytes: a mesh is planned, and a second run shares one, only
    /// where they fit. By default a plan takes what its profile says and runs are not counted.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Name of its profile in the calibration; that of its kind by default: `cpu-<threads>`, or
    /// `cuda`.
    #[serde(default)]
    pub profile: Option<String>,
}

impl DeviceSection {
    /// Name of its profile. Devices of one name are alike, as far as nobody knows better.
    pub fn profile_name(&self) -> String {
        let kind = || match self.kind {
            DeviceKind::Cpu => device_name(self.threads.unwrap_or(1)),
            DeviceKind::Cuda => "cuda".to_owned(),
        };
        self.profile.clone().unwrap_or_else(kind)
    }
}

/// Which links a [`LinkSection`] is about, when it names no nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkClass {
    /// Between devices of one node.
    SameNode,
    /// Between nodes.
    #[default]
    OtherNode,
}

/// `[[link]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSection {
    /// All links of a class.
    #[serde(default)]
    pub class: LinkClass,
    /// Two nodes that differ from their class; the same one twice for its own devices.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// Payload bytes per second; between nodes, of all devices of a node together.
    pub bytes_per_s: f64,
    /// From sending to the receiver's wake-up, seconds.
    #[serde(default)]
    pub latency_s: f64,
    /// What each message costs its sender, seconds.
    #[serde(default)]
    pub message_s: f64,
}

impl LinkSection {
    /// What it sustains.
    pub fn profile(&self) -> LinkProfile {
        let Self { bytes_per_s, latency_s, message_s, .. } = *self;
        LinkProfile { bytes_per_s, latency_s, message_s }
    }
}

/// `[[model]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// Name used by groups.
    pub name: String,
    /// A diffusers folder, or `built-in`.
    pub path: PathBuf,
    /// Precision.
    #[serde(default)]
    pub dtype: Dtype,
    /// When the text encoder's weights are in memory.
    #[serde(default)]
    pub text_encoder: TextEncoderPolicy,
}

impl ModelSection {
    /// Where the model comes from.
    pub fn source(&self) -> ModelSource {
        if self.path.as_os_str() == "built-in" {
            ModelSource::Builtin
        } else {
            ModelSource::Folder(self.path.clone())
        }
    }
}

/// `[[group]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSection {
    /// Model it serves.
    pub model: String,
    /// Nodes it uses; all by default.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// Degrees, or `"auto"`.
    #[serde(default)]
    pub degrees: DegreesSetting,
    /// Requests of one shape that may be computed as one batch when they wait together.
    #[serde(default = "default_max_batch")]
    pub max_batch: u32,
    /// What travels in fewer bytes for requests that do not say: `wire_dtype` (one for all axes, or
    /// a table of axes), `wire_residual` and `wire_refresh_every`.
    #[serde(default)]
    pub wire: Wire,
    /// Steps between checkpoints of requests that do not say; 0 keeps none, so that a request whose
    /// device is lost begins again.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: u32,
    /// What automatic degrees may do to the picture.
    #[serde(default)]
    pub quality: Quality,
}

/// A batch gives each picture only up to the order of float additions what it is alone: by default
/// what a request gives does not depend on who else is there.
pub(crate) fn default_max_batch() -> u32 {
    1
}

/// Latents are small: a step at most is lost.
pub(crate) fn default_checkpoint_every() -> u32 {
    1
}

/// What the planner may do to the picture for speed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quality {
    /// Any method, PipeFusion's stale keys and values included.
    #[default]
    Any,
    /// Only methods that give the picture of one device.
    Exact,
}

/// `degrees = "auto"` or a table of degrees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DegreesSetting {
    /// Chosen from the number of devices.
    #[default]
    #[serde(serialize_with = "auto_out", deserialize_with = "auto_in")]
    Auto,
    /// Fixed.
    Fixed(DegreesTable),
}

/// Degrees as written; absent ones are 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DegreesTable {
    /// Guidance branches.
    pub cfg_degree: u32,
    /// Pipeline stages.
    pub pipefusion_degree: u32,
    /// Ulysses ranks.
    pub ulysses_degree: u32,
    /// Ring ranks.
    pub ring_degree: u32,
    /// Replicas.
    pub data_degree: u32,
}

impl Default for DegreesTable {
    fn default() -> Self {
        Degrees::default().into()
    }
}

impl From<Degrees> for DegreesTable {
    fn from(degrees: Degrees) -> Self {
        Self {
            cfg_degree: degrees.cfg_degree,
            pipefusion_degree: degrees.pipefusion_degree,
            ulysses_degree: degrees.ulysses_degree,
            ring_degree: degrees.ring_degree,
            data_degree: degrees.data_degree,
        }
    }
}

impl From<DegreesTable> for Degrees {
    fn from(table: DegreesTable) -> Self {
        Self {
            cfg_degree: table.cfg_degree,
            pipefusion_degree: table.pipefusion_degree,
            ulysses_degree: table.ulysses_degree,
            ring_degree: table.ring_degree,
            data_degree: table.data_degree,
        }
    }
}

fn auto_out<S: serde::Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("auto")
}

fn auto_in<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "auto" {
        return Ok(());
    }
    Err(serde::de::Error::custom(format!(
        "expected \"auto\" or a table of degrees, found \"{text}\""
    )))
}

/// `transport.congestion`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CongestionKind {
    /// For switched networks, where a loss means a full queue.
    #[default]
    Cubic,
    /// The older rule.
    NewReno,
    /// Where packets are lost at random.
    Bbr,
    /// Cubic, and BBR on a path that turns out to lose packets at random.
    Auto,
}

/// `[health]`: failure detection. Milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthSection {
    /// Between heartbeats.
    pub heartbeat_ms: u32,
    /// Silence after which a member is suspect.
    pub suspect_ms: u32,
    /// Silence after which a member is dead.
    pub dead_ms: u32,
    /// Longest wait of one operation of a run, the peers' computing included: a backstop, for the
    /// dead are found by their silence.
    pub op_deadline_ms: u32,
    /// A step that takes longer than this, and than `step_deadline_factor` times what it is planned
    /// to take, is that of a device that hangs.
    pub step_deadline_ms: u32,
    /// See `step_deadline_ms`; the slowest step that a run has made counts as planned.
    pub step_deadline_factor: u32,
    /// Longest time to form a mesh (weights are loaded in it).
    pub form_deadline_ms: u32,
}

impl Default for HealthSection {
    fn default() -> Self {
        Self {
            heartbeat_ms: 200,
            suspect_ms: 800,
            dead_ms: 1500,
            op_deadline_ms: 1_800_000,
            step_deadline_ms: 10_000,
            step_deadline_factor: 5,
            form_deadline_ms: 120_000,
        }
    }
}

/// `[security]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecuritySection {
    /// Folder with `ca.pem` and the nodes' certificates; `<state_dir>/certs` by default, where `up`
    /// makes them for local clusters.
    pub certs_dir: Option<PathBuf>,
}

/// Which launcher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LauncherKind {
    /// Child processes on this host.
    #[default]
    Local,
    /// Processes on the nodes' hosts, by the user's own OpenSSH.
    Ssh,
}

/// What is done about the key of a host that ssh does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostKeys {
    /// The host is refused.
    #[default]
    Strict,
    /// It is accepted and remembered; one that has changed is refused.
    AcceptNew,
}

/// Where workers run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// One process per device.
    #[default]
    Process,
    /// All in this process: for embedding and fast tests; promises nothing about crashes.
    Thread,
}

/// `[launcher]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LauncherSection {
    /// Which launcher.
    pub kind: LauncherKind,
    /// Where workers run.
    pub isolation: Isolation,
    /// How often an agent or worker that died is started again before its launcher gives up.
    pub restarts_max: u32,
    /// Longest wait for all nodes at `up`, in milliseconds.
    pub ready_deadline_ms: u32,
    /// Whether an agent measures devices of which no profile is kept on its machine, before their
    /// workers start.
    pub measure_devices: bool,
    /// The program on other hosts.
    pub program: PathBuf,
    /// Configuration of ssh in place of the user's own.
    pub ssh_config: Option<PathBuf>,
    /// Hosts that ssh does not know.
    pub ssh_host_keys: HostKeys,
}

impl Default for LauncherSection {
    fn default() -> Self {
        Self {
            kind: LauncherKind::Local,
            isolation: Isolation::Process,
            restarts_max: 5,
            ready_deadline_ms: 60_000,
            measure_devices: true,
            program: PathBuf::from("ditmesh"),
            ssh_config: None,
            ssh_host_keys: HostKeys::Strict,
        }
    }
}

/// `[telemetry]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySection {
    /// Base URL of an OpenTelemetry collector that takes OTLP over HTTP, as in
    /// `http://localhost:4318`; no traces by default. Headers, which may hold secrets, come from
    /// the environment only (`OTEL_EXPORTER_OTLP_HEADERS`).
    pub otlp_endpoint: Option<String>,
}

impl Manifest {
    /// A cluster inside this process: one node with `devices` CPU devices of `threads` threads,
    /// serving `model` over the in-process transport. For embedding and for `generate` without
    /// `--cluster`.
    pub fn in_process(model: ModelSource, devices: usize, threads: usize) -> Self {
        let path = match model {
            ModelSource::Builtin => PathBuf::from("built-in"),
            ModelSource::Folder(path) => path,
        };
        let device = DeviceSection { threads: Some(threads), ..DeviceSection::default() };
        Self {
            schema: 1,
            cluster: ClusterSection { name: "in-process".into(), state_dir: default_state_dir() },
            coordinator: None,
            nodes: vec![NodeSection {
                name: "local".into(),
                address: default_address(),
                control_port: 0,
                bulk_ports: None,
                devices: vec![device; devices],
            }],
            models: vec![ModelSection {
                name: "model".into(),
                path,
                dtype: Dtype::F32,
                text_encoder: TextEncoderPolicy::default(),
            }],
            groups: Vec::new(),
            links: Vec::new(),
            transport: TransportSection { kind: TransportKind::InProcess, ..Default::default() },
            health: HealthSection::default(),
            security: SecuritySection::default(),
            launcher: LauncherSection { isolation: Isolation::Thread, ..Default::default() },
            telemetry: TelemetrySection::default(),
        }
    }

    /// Number of devices on all nodes.
    pub fn device_count(&self) -> usize {
        self.nodes.iter().map(|node| node.devices.len()).sum()
    }

    /// Name of the node whose agent hosts the coordinator.
    pub fn coordinator_node(&self) -> &str {
        match (&self.coordinator, self.nodes.first()) {
            (Some(section), _) => &section.node,
            (None, Some(first)) => &first.name,
            (None, None) => "",
        }
    }
}

//! A cluster as it is at one moment: what `ditmesh status` shows.
//!
//! Owns plain values; who fills them in is the coordinator.

use serde::{Deserialize, Serialize};

use crate::protocol::LinkMeasured;
use crate::request::{Degrees, Dtype};

/// The whole cluster.
#[derive(
    Clone,
    Debug,
    Default,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub struct ClusterStatus {
    /// Name in the manifest.
    pub cluster: String,
    /// Build of the coordinator.
    pub build: String,
    /// Address of the coordinator's control endpoint.
    pub coordinator: String,
    /// Nodes in manifest order.
    pub nodes: Vec<NodeStatus>,
    /// The running mesh, if one is formed.
    pub mesh: Option<MeshStatus>,
    /// Why there is no mesh, when there is none.
    pub mesh_absent: Option<String>,
    /// Whether forming it failed and is not tried again until a request or a device comes.
    pub mesh_failed: bool,
    /// Requests waiting.
    pub queued: u32,
    /// Requests running.
    pub running: u32,
    /// Machines that asked to join and were not let in.
    pub joins_refused: u64,
    /// Callers at the coordinator's ports that were turned away: without a certificate of the
    /// cluster, too slow, with another protocol, or as somebody they are not.
    pub callers_refused: u64,
    /// Requests that have no result yet, in order.
    pub requests: Vec<RequestStatus>,
    /// Actors of the coordinator: one for each session with an agent, a worker or a client, which
    /// holds its control stream, and the tree of each mesh.
    pub actors: u32,
    /// What its control port holds.
    pub control: ControlStatus,
}

/// What the coordinator's control port holds just now, for whoever looks whether something is left
/// behind.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub struct ControlStatus {
    /// Connections that are open, or whose last words have time to arrive.
    pub connections: u32,
    /// Of these, streams that the peer has opened, and own ones that it has not acknowledged.
    pub streams: u32,
    /// Questions without an answer: handshakes, machines that ask to join, and examinations.
    pub questions: u32,
}

/// One request.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub struct RequestStatus {
    /// Its number.
    pub request: u64,
    /// Epoch of the mesh that it runs on; 0 while it waits.
    pub epoch: u64,
    /// Denoising steps done.
    pub step: u32,
    /// Steps in all; 0 before the first.
    pub steps: u32,
    /// Whom or what it waits for; empty when it runs.
    pub waits_for: String,
}

/// One host.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub struct NodeStatus {
    /// Name in the manifest.
    pub name: String,
    /// `absent`, `alive`, `suspect` or `dead`.
    pub state: String,
    /// Incarnation of its agent.
    pub incarnation: u64,
    /// Process id of its agent; 0 when it is not there.
    pub process: u32,
    /// Devices in manifest order.
    pub devices: Vec<DeviceStatus>,
}

/// One device.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub struct DeviceStatus {
    /// Position among the node's devices.
    pub index: u32,
    /// `cpu` or `cuda`.
    pub kind: String,
    /// `absent`, `ready`, `in mesh` or `exited: ...`.
    pub state: String,
    /// Incarnation of its worker.
    pub incarnation: u64,
    /// Process id of its worker; 0 when it is not there.
    pub process: u32,
    /// Where its data plane listens.
    pub address: String,
    /// Callers there that its worker turned away, as of its last word.
    pub callers_refused: u64,
    /// FLOP/s that it was measured to sustain in the model's linear layers; none when nobody has
    /// measured it.
    pub flops_per_s: Option<u64>,
}

/// The running mesh.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub struct MeshStatus {
    /// Epoch.
    pub epoch: u64,
    /// Model it serves (folder, or `built-in`).
    pub model: String,
    /// Precision.
    pub dtype: Dtype,
    /// Degrees.
    pub degrees: Degrees,
    /// Ranks in order.
    pub ranks: Vec<RankStatus>,
    /// Links between ranks (transport, endpoints).
    pub links: Vec<LinkStatus>,
}

/// One rank of the mesh.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub struct RankStatus {
    /// Rank.
    pub rank: u32,
    /// `node/device`.
    pub device: String,
    /// Data replica.
    pub data: u32,
    /// CFG branch.
    pub cfg: u32,
    /// Pipeline stage.
    pub stage: u32,
    /// Sequence rank.
    pub sp: u32,
    /// First block held and one past the last.
    pub blocks: (u32, u32),
    /// Bytes of weights read.
    pub weight_bytes_read: u64,
}

/// One link of the mesh.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub struct LinkStatus {
    /// One end.
    pub a: u32,
    /// The other end.
    pub b: u32,
    /// What carries its frames: `in-process`, `quic`, `ucx-shm`, `ucx-net`.
    pub transport: String,
    /// Why that one.
    pub why: String,
    /// What was measured between the two nodes, when a mesh was formed.
    pub measured: Option<LinkMeasured>,
}

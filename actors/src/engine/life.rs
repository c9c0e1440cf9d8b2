//! What runs on the engine's thread: a coordinator and one agent per node of the manifest, whose
//! workers are actors of this process.
//!
//! Owns the throwaway certificates of an engine that speaks QUIC with itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use ditmesh_transport::identity::{ClusterCa, PeerIdentity, Role};
use ditmesh_transport::in_process::InProcessHub;
use ractor::ActorRef;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::agent::data_plane::{DataPlane, DataPlaneConfig};
use crate::agent::node_agent::{NodeAgent, NodeAgentArgs, NodeAgentMsg, unix_ms};
use crate::agent::worker_home::{ThreadHome, WorkerHome};
use crate::coordinator::{CoordinatorArgs, CoordinatorHandle};
use crate::manifest::{Manifest, NodeSection, TransportKind};
use crate::membership::Incarnation;
use crate::session::dial::Dialer;

/// Silence inside one process means a busy machine, not a death: heartbeats are given this long.
const PATIENCE_MS: u32 = 30_000;

type Agent = (ActorRef<NodeAgentMsg>, JoinHandle<()>);

/// Runs an engine until the sender of `stopped` is dropped.
pub(super) async fn live(
    mut manifest: Manifest,
    tell: SyncSender<Result<CoordinatorHandle, String>>,
    stopped: oneshot::Receiver<()>,
) {
    let health = &mut manifest.health;
    health.dead_ms = health.dead_ms.max(PATIENCE_MS);
    health.suspect_ms = health.suspect_ms.max(PATIENCE_MS / 2);
    let (coordinator, agents) = match start(&manifest).await {
        Ok(started) => started,
        // An engine that was given up needs no word.
        Err(cause) => return drop(tell.send(Err(cause))),
    };
    if tell.send(Ok(coordinator.clone())).is_ok() {
        // Dropped, not sent: either way it is over.
        let _ = stopped.await;
    }
    // First, so that requests end with the engine and not with one of its workers.
    coordinator.stop().await;
    for (agent, _) in &agents {
        // An agent that has ended needs no order.
        let _ = agent.cast(NodeAgentMsg::Stop);
    }
    for (_, joined) in agents {
        // It ends after its workers, whose threads are joined.
        let _ = joined.await;
    }
}

async fn start(manifest: &Manifest) -> Result<(CoordinatorHandle, Vec<Agent>), String> {
    let planes = planes(manifest)?;
    let plane = |node: &str| planes.get(node).ok_or_else(|| format!("there is no node {node}"));
    let host = manifest.coordinator_node();
    let place =
        manifest.nodes.iter().find(|node| node.name == host).map_or(0, |node| node.devices.len());
    let fabric = plane(host)?
        .fabric(place, Incarnation::at(unix_ms()).0, None)
        .map_err(|error| error.to_string())?;
    let coordinator = CoordinatorHandle::start(CoordinatorArgs {
        manifest: Arc::new(manifest.clone()),
        fabric,
        address: "in-process".into(),
        journal: None,
        door: None,
    })
    .await?;
    let mut agents = Vec::new();
    for node in &manifest.nodes {
        let plane = plane(&node.name)?.clone();
        agents.push(start_agent(manifest, node, plane, coordinator.clone()).await?);
    }
    Ok((coordinator, agents))
}

async fn start_agent(
    manifest: &Manifest,
    node: &NodeSection,
    plane: DataPlane,
    coordinator: CoordinatorHandle,
) -> Result<Agent, String> {
    let cluster = manifest.cluster.name.clone();
    let dialer = Dialer::Local {
        coordinator,
        me: identity_of(&cluster, &node.name),
        them: identity_of(&cluster, manifest.coordinator_node()),
    };
    let home = WorkerHome::Thread(Box::new(ThreadHome {
        cluster: cluster.clone(),
        node: node.name.clone(),
        devices: node.devices.clone(),
        plane,
        dialer: dialer.clone(),
    }));
    // How an agent of this process ends is known to whoever ends it.
    let (ended, _) = oneshot::channel();
    let args = NodeAgentArgs {
        cluster,
        node: node.name.clone(),
        devices: node.devices.len(),
        restarts_max: manifest.launcher.restarts_max,
        dialer,
        home,
        // All devices are of this machine, and a program that embeds an engine has no such process.
        measuring: None,
        // Nobody looks.
        joined: watch::Sender::new(false),
        ended,
    };
    NodeAgent::start(args).await.map_err(|error| error.to_string())
}

/// Who a node is on a channel that never leaves this process.
fn identity_of(cluster: &str, node: &str) -> PeerIdentity {
    PeerIdentity { role: Role::Node, name: node.into(), cluster: cluster.into() }
}

/// The data plane of each node.
fn planes(manifest: &Manifest) -> Result<BTreeMap<String, DataPlane>, String> {
    let nodes = manifest.nodes.iter();
    if manifest.transport.kind == TransportKind::InProcess {
        let hub = InProcessHub::new();
        return Ok(nodes
            .map(|node| (node.name.clone(), DataPlane::InProcess(hub.clone())))
            .collect());
    }
    let authority =
        ClusterCa::generate(&manifest.cluster.name).map_err(|error| error.to_string())?;
    nodes
        .map(|node| {
            let identity =
                authority.issue(Role::Node, &node.name).map_err(|error| error.to_string())?;
            let config = DataPlaneConfig::of(manifest, node)?;
            Ok((node.name.clone(), DataPlane::quic(config, identity)))
        })
        .collect()
}

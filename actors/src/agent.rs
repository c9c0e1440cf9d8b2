//! The agent of one host: supervises its worker processes, reports to the coordinator, hosts the
//! coordinator when its node is the coordinator's. Never touches a device or weights.
//!
//! Owns the life of the process; the actor is in `node_agent`.
//!
//! Invariant: when stdin closes the launcher has gone, and so go the workers, this process and, by
//! the coordinator's agent, the files of the run. One that was started without a launcher
//! (`standalone`) goes by a signal in the same way.

pub(crate) mod bootstrap;
pub(crate) mod copies;
pub(crate) mod credentials;
pub(crate) mod data_plane;
pub mod health;
pub(crate) mod host;
mod joined;
mod keeper;
pub(crate) mod measuring;
pub(crate) mod node_agent;
pub(crate) mod restarts;
mod standalone;
pub(crate) mod worker_home;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ditmesh_transport::control::ControlEndpoint;
use ditmesh_transport::identity::{Identity, PeerIdentity, Role as Certificate};
use ractor::ActorRef;
use tokio::sync::{oneshot, watch};

use crate::launcher::record::{ProcessRecord, Role, RunFolder};
use crate::manifest::{Isolation, Manifest, NodeSection};
use crate::session::dial::Dialer;
use crate::worker_process::bootstrap::{self as stdin, WorkerBootstrap};
use bootstrap::{AgentBootstrap, AgentNotice};
use data_plane::{DataPlane, DataPlaneConfig, control_config, resolve};
use health::Health;
use host::HostedCoordinator;
use keeper::{End, Keeper, Told};
use measuring::Measuring;
use node_agent::{AgentEnd, NodeAgent, NodeAgentArgs, NodeAgentMsg};
use worker_home::{ProcessHome, ThreadHome, WorkerHome};

pub use joined::{JoinError, JoinOrders, run_joined};
pub use standalone::run_standalone;

/// Subcommand under which [`run_process`] is called.
pub const SUBCOMMAND: &str = "agent";

/// Time to end the workers and clean up once the launcher has gone.
const GRACE: Duration = Duration::from_secs(15);

/// Time for the last messages to leave.
const FAREWELL: Duration = Duration::from_millis(300);

/// Longest wait for the other processes of a cluster whose launcher was killed.
const OTHERS_DEADLINE: Duration = Duration::from_secs(8);

/// How long what runs on a node that leaves may take to end, when nobody says.
pub const LEAVE_DRAIN: Duration = Duration::from_secs(30);

/// Between looks at them.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Why an agent ended badly.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its orders on stdin could not be read.
    #[error("an agent is started by `ditmesh up`, or with --cluster: {0}")]
    Bootstrap(String),
    /// Its control port could not be had.
    #[error("node \"{node}\": control port {port}: {cause}")]
    Port {
        /// Node name.
        node: String,
        /// Port in the manifest.
        port: u16,
        /// What the system said.
        cause: String,
    },
    /// Certificates, threads or files failed it.
    #[error("node \"{node}\": {cause}")]
    Start {
        /// Node name.
        node: String,
        /// What went wrong.
        cause: String,
    },
}

/// The life of an agent process: what the hidden subcommand [`SUBCOMMAND`] calls. Reads its orders
/// from stdin and ends when stdin closes or the cluster goes down.
///
/// # Errors
/// When it could not start, or the coordinator will not have it.
pub fn run_process() -> Result<(), AgentError> {
    let orders: AgentBootstrap = stdin::read().map_err(AgentError::Bootstrap)?;
    let outcome = run(&orders, Keeper::Launcher);
    if let Err(error) = &outcome {
        AgentNotice::Failed(error.to_string()).say();
    }
    outcome
}

fn run(orders: &AgentBootstrap, keeper: Keeper) -> Result<(), AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| start_error(&orders.node, &error))?;
    let outcome = runtime.block_on(live(orders, keeper));
    runtime.shutdown_background();
    outcome
}

fn start_error(node: &str, cause: &dyn std::fmt::Display) -> AgentError {
    AgentError::Start { node: node.into(), cause: cause.to_string() }
}

async fn live(orders: &AgentBootstrap, keeper: Keeper) -> Result<(), AgentError> {
    let failed = |cause: &dyn std::fmt::Display| start_error(&orders.node, cause);
    let lease = orders.lease_ms.map(|ms| Duration::from_millis(ms.into()));
    let told = keeper.listen(lease).map_err(|error| failed(&error))?;
    let node = node_section(orders)?;
    let identity = orders.credentials.identity().map_err(|error| failed(&error))?;
    let endpoint = Arc::new(bind(orders, node, identity.clone())?);
    let folder = run_folder(orders);
    let record = ProcessRecord::of_self(Role::Agent, &orders.node);
    let record = folder.publish(record).map_err(|error| failed(&error))?;
    let plane = plane(orders, node, identity.clone())?;
    let hosted = match &orders.coordinator {
        Some(_) => None,
        None => Some(
            HostedCoordinator::start(
                &orders.manifest,
                &plane,
                node.devices.len(),
                endpoint.clone(),
                &folder,
            )
            .await
            .map_err(|cause| failed(&cause))?,
        ),
    };
    let local = || endpoint.local_address().to_string();
    let coordinator = orders.coordinator.clone().unwrap_or_else(local);
    let dialer = dialer(orders, &identity, &endpoint, &coordinator, hosted.as_ref())?;
    let home = home(orders, node, plane, dialer.clone(), &coordinator, &folder)?;
    let measuring = Some(Measuring::of(&orders.manifest, node).map_err(|error| failed(&error))?);
    let (ended, end) = oneshot::channel();
    let (joined, joins) = watch::channel(false);
    let health = (keeper == Keeper::System).then(|| Health::show(&folder, &orders.node, joins));
    let args = NodeAgentArgs {
        cluster: orders.manifest.cluster.name.clone(),
        node: orders.node.clone(),
        devices: node.devices.len(),
        restarts_max: orders.manifest.launcher.restarts_max,
        dialer,
        home,
        measuring,
        joined,
        ended,
    };
    let (agent, _) = NodeAgent::start(args).await.map_err(|error| failed(&error))?;
    keeper.tell(&orders.node, endpoint.local_address());
    let hosts = hosted.is_some();
    let leave = (!hosts).then_some(&folder);
    let end = end_of(&agent, end, told, leave).await;
    if let Some(hosted) = hosted {
        hosted.stop().await;
    }
    tokio::time::sleep(FAREWELL).await;
    endpoint.close("the agent has ended");
    drop(health);
    drop(record);
    if orders.run_dir.is_none() {
        remove(&folder);
    } else if hosts {
        clean_up_after_launcher(&folder).await;
    }
    match end {
        AgentEnd::Told => Ok(()),
        AgentEnd::GaveUp(cause) => Err(failed(&cause)),
    }
}

/// Waits until the agent has ended, by itself or because it is `told` to. One that hosts the
/// coordinator cannot leave: with it the cluster ends.
async fn end_of(
    agent: &ActorRef<NodeAgentMsg>,
    mut end: oneshot::Receiver<AgentEnd>,
    told: Told,
    leave: Option<&RunFolder>,
) -> AgentEnd {
    let end = tokio::select! {
        end = &mut end => return end.unwrap_or_else(|_| gave_up()),
        told = told => match (told, leave) {
            (End::Leave, Some(folder)) => {
                let drain = folder.drain().unwrap_or(LEAVE_DRAIN);
                // An agent that has ended needs no order.
                let _ = agent.cast(NodeAgentMsg::Leave { drain });
                let again = Keeper::patience();
                tokio::select! {
                    end = &mut end => return end.unwrap_or_else(|_| gave_up()),
                    () = again => {}
                }
                let _ = agent.cast(NodeAgentMsg::Stop);
                end.await
            }
            _ => {
                // An agent that has ended needs no order.
                let _ = agent.cast(NodeAgentMsg::Stop);
                end.await
            }
        },
    };
    end.unwrap_or_else(|_| gave_up())
}

fn gave_up() -> AgentEnd {
    AgentEnd::GaveUp("its actor failed".into())
}

fn node_section(orders: &AgentBootstrap) -> Result<&NodeSection, AgentError> {
    let mut nodes = orders.manifest.nodes.iter();
    nodes
        .find(|node| node.name == orders.node)
        .ok_or_else(|| start_error(&orders.node, &"it is not in the manifest"))
}

fn bind(
    orders: &AgentBootstrap,
    node: &NodeSection,
    identity: Identity,
) -> Result<ControlEndpoint, AgentError> {
    let port = orders.control_port;
    let port_error = |cause: String| AgentError::Port { node: node.name.clone(), port, cause };
    let address = resolve(&node.address).map_err(port_error)?;
    let health = &orders.manifest.health;
    let bind = SocketAddr::new(address, port);
    let config = control_config(identity, bind, health.heartbeat_ms, health.dead_ms);
    ControlEndpoint::bind(&config).map_err(|error| port_error(error.to_string()))
}

fn plane(
    orders: &AgentBootstrap,
    node: &NodeSection,
    identity: Identity,
) -> Result<DataPlane, AgentError> {
    let failed = |cause: &dyn std::fmt::Display| start_error(&orders.node, cause);
    let config = DataPlaneConfig::of(&orders.manifest, node).map_err(|cause| failed(&cause))?;
    let coordinator = usize::from(orders.coordinator.is_none());
    for place in 0..node.devices.len() + coordinator {
        config.ports_of(place).map_err(|error| failed(&error))?;
    }
    Ok(DataPlane::quic(config, identity))
}

fn dialer(
    orders: &AgentBootstrap,
    identity: &Identity,
    endpoint: &Arc<ControlEndpoint>,
    address: &str,
    hosted: Option<&HostedCoordinator>,
) -> Result<Dialer, AgentError> {
    let manifest = &orders.manifest;
    let them =
        PeerIdentity::new(Certificate::Node, manifest.coordinator_node(), &manifest.cluster.name)
            .map_err(|error| start_error(&orders.node, &error))?;
    Ok(match hosted {
        Some(hosted) => {
            Dialer::Local { coordinator: hosted.handle(), me: identity.subject().clone(), them }
        }
        None => {
            let (endpoint, address) = (endpoint.clone(), address.to_owned());
            Dialer::Network { endpoint, address, coordinator: them }
        }
    })
}

fn home(
    orders: &AgentBootstrap,
    node: &NodeSection,
    plane: DataPlane,
    dialer: Dialer,
    coordinator: &str,
    folder: &RunFolder,
) -> Result<WorkerHome, AgentError> {
    let manifest = &orders.manifest;
    let failed = |cause: &dyn std::fmt::Display| start_error(&node.name, cause);
    if manifest.launcher.isolation == Isolation::Thread {
        return Ok(WorkerHome::Thread(Box::new(ThreadHome {
            cluster: manifest.cluster.name.clone(),
            node: node.name.clone(),
            devices: node.devices.clone(),
            plane,
            dialer,
        })));
    }
    let data_plane = DataPlaneConfig::of(manifest, node).map_err(|cause| failed(&cause))?;
    let order = |(index, device): (usize, &crate::manifest::DeviceSection)| WorkerBootstrap {
        cluster: manifest.cluster.name.clone(),
        node: node.name.clone(),
        index: index as u32,
        incarnation: 0,
        device: device.clone(),
        credentials: orders.credentials.clone(),
        coordinator: coordinator.to_owned(),
        coordinator_node: manifest.coordinator_node().to_string(),
        data_plane: data_plane.clone(),
        dead_ms: manifest.health.dead_ms,
        heartbeat_ms: manifest.health.heartbeat_ms,
    };
    Ok(WorkerHome::Process(ProcessHome {
        program: std::env::current_exe().map_err(|error| failed(&error))?,
        orders: node.devices.iter().enumerate().map(order).collect(),
        folder: folder.clone(),
        otlp_endpoint: manifest.telemetry.otlp_endpoint.clone(),
    }))
}

/// When the launcher was killed nobody else removes the files of the run.
async fn clean_up_after_launcher(folder: &RunFolder) {
    let launcher = folder.launcher();
    if launcher.as_ref().is_some_and(ProcessRecord::is_alive) {
        return;
    }
    let deadline = tokio::time::Instant::now() + OTHERS_DEADLINE;
    while !folder.others_alive().is_empty() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    if folder.launcher() == launcher {
        remove(folder);
    }
}

fn remove(folder: &RunFolder) {
    if let Err(error) = folder.remove() {
        tracing::warn!(path = %folder.path().display(), %error, "cannot clean up");
    }
}

/// The folder of this run's records: the launcher's, or one of this agent's own.
fn run_folder(orders: &AgentBootstrap) -> RunFolder {
    let own = || {
        let (user, process) = (nix::unistd::geteuid(), std::process::id());
        let name = format!("{}-{}-{process}", orders.manifest.cluster.name, orders.node);
        std::env::temp_dir().join(format!("ditmesh-run-{user}")).join(name)
    };
    RunFolder::at(orders.run_dir.clone().unwrap_or_else(own))
}

/// Certificates of a cluster's processes, where the manifest says.
pub(crate) fn certs_dir(manifest: &Manifest) -> std::path::PathBuf {
    let own = || manifest.cluster.state_dir.join("certs");
    manifest.security.certs_dir.clone().unwrap_or_else(own)
}

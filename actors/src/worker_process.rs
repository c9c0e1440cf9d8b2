//! The process of one device: a worker actor, its data plane and its session with the
//! coordinator. Ends when its stdin closes, when it is told to, or when it has lost the
//! coordinator for good.

pub(crate) mod bootstrap;
pub(crate) mod host;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ditmesh_transport::control::ControlEndpoint;
use ditmesh_transport::identity::{PeerIdentity, Role};
use tokio::sync::oneshot;

use crate::agent::data_plane::{DataPlane, control_config};
use crate::protocol::DeviceId;
use crate::session::dial::Dialer;
use crate::worker::{WorkerConfig, device as devices};
use bootstrap::WorkerBootstrap;
use host::{HostArgs, HostEnd, HostMsg, WorkerHost};

/// Hidden subcommand under which [`run`] is called.
pub const SUBCOMMAND: &str = "worker";

/// Time to say good-bye once the agent has gone.
const GRACE: Duration = Duration::from_secs(3);

/// Time for worker and session to end.
const FAREWELL: Duration = Duration::from_millis(200);

/// Time for their last messages to leave.
const LINGER: Duration = Duration::from_millis(50);

/// Why a worker process ended badly.
#[derive(Debug, thiserror::Error)]
pub enum WorkerProcessError {
    /// Its orders on stdin could not be read.
    #[error("a worker is started by its agent, not by hand: {0}")]
    Bootstrap(String),
    /// Certificates, sockets or threads failed it.
    #[error("device {device}: {cause}")]
    Start {
        /// `node/index`.
        device: String,
        /// What went wrong.
        cause: String,
    },
    /// The coordinator was lost for good.
    #[error("device {device}: lost the coordinator: {cause}")]
    Lost {
        /// `node/index`.
        device: String,
        /// What went wrong.
        cause: String,
    },
}

/// The life of a worker process: what the hidden subcommand [`SUBCOMMAND`] calls.
///
/// # Errors
/// When it could not start or lost its coordinator for good.
pub fn run() -> Result<(), WorkerProcessError> {
    let outcome = carry_out();
    if let Err(error) = &outcome {
        // For the agent, which tells the coordinator; one that has gone does not listen.
        let _ = writeln!(std::io::stdout(), "{error}");
    }
    outcome
}

fn carry_out() -> Result<(), WorkerProcessError> {
    let orders: WorkerBootstrap = bootstrap::read().map_err(WorkerProcessError::Bootstrap)?;
    let device = DeviceId { node: orders.node.clone(), index: orders.index };
    let failed = |cause: String| WorkerProcessError::Start { device: device.to_string(), cause };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let end = runtime.block_on(live(&orders, device.clone()));
    // Whatever still runs has been told to end; nothing waits for it.
    runtime.shutdown_background();
    match end.map_err(failed)? {
        HostEnd::Told => Ok(()),
        HostEnd::Lost(cause) => Err(WorkerProcessError::Lost { device: device.to_string(), cause }),
        HostEnd::Failed(cause) => Err(failed(cause)),
    }
}

async fn live(orders: &WorkerBootstrap, device: DeviceId) -> Result<HostEnd, String> {
    let (closed, stdin_closed) = oneshot::channel::<()>();
    bootstrap::watch_stdin(GRACE, None, move || drop(closed))
        .map_err(|error| format!("cannot watch stdin: {error}"))?;
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let identity = orders.credentials.identity().map_err(|error| words(&error))?;
    let plane = DataPlane::quic(orders.data_plane.clone(), identity.clone());
    let memory = devices::frame_memory(orders.device.kind, orders.device.index.unwrap_or(0));
    let fabric = plane.fabric(orders.index as usize, orders.incarnation, memory);
    let fabric = fabric.map_err(|error| words(&error))?;
    let bind = SocketAddr::new(orders.data_plane.address, 0);
    let control = control_config(identity, bind, orders.heartbeat_ms, orders.dead_ms);
    let endpoint = ControlEndpoint::bind(&control).map_err(|error| words(&error))?;
    let coordinator = PeerIdentity::new(Role::Node, &orders.coordinator_node, &orders.cluster)
        .map_err(|error| words(&error))?;
    let endpoint = Arc::new(endpoint);
    let (address, dialed) = (orders.coordinator.clone(), endpoint.clone());
    let dialer = Dialer::Network { endpoint: dialed, address, coordinator };
    let config = WorkerConfig {
        cluster: orders.cluster.clone(),
        device,
        incarnation: orders.incarnation,
        kind: orders.device.kind,
        gpu: orders.device.index.unwrap_or(0),
        threads: orders.device.threads.unwrap_or(1),
        cores: orders.device.cores.clone(),
    };
    let (ended, end) = oneshot::channel();
    let args = HostArgs { config, fabric: fabric.clone(), dialer, ended };
    let (host, life) = WorkerHost::start(args).await.map_err(|error| words(&error))?;
    let end = tokio::select! {
        end = end => end.unwrap_or_else(|_| HostEnd::Failed("its host actor failed".into())),
        _ = stdin_closed => {
            // A host that has ended needs no order.
            let _ = host.cast(HostMsg::Stop("its agent has gone".into()));
            HostEnd::Told
        }
    };
    fabric.close();
    // Sessions say why they end; who does not listen in time learns it from silence.
    let _ = tokio::time::timeout(FAREWELL, life).await;
    tokio::time::sleep(LINGER).await;
    endpoint.close("the worker has ended");
    Ok(end)
}

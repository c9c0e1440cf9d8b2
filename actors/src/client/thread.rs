//! The thread of a client: its runtime, its endpoint, and the way to the coordinator.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ditmesh_transport::control::{ControlChannel, ControlEndpoint};
use ditmesh_transport::identity::{Identity, PeerIdentity, Role};
use ractor::ActorRef;

use super::link::{Link, LinkArgs, LinkMsg};
use super::{CLIENT_NAME, ClientError};
use crate::agent::certs_dir;
use crate::agent::data_plane::{control_config, resolve};
use crate::launcher::record::{ProcessRecord, RunFolder};
use crate::manifest::Manifest;
use crate::protocol::Party;
use crate::session::dial::{DialError, Dialer};
use crate::session::handshake::{self, Welcome};

/// Longest time to be welcomed.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Longest time to seek a coordinator that was lost and may be restarted.
const RECONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// Between attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Time for the last messages to leave.
const FAREWELL: Duration = Duration::from_millis(50);

type Started = Result<ActorRef<LinkMsg>, ClientError>;

/// Where the coordinator is and as whom to go there.
struct Way {
    cluster: String,
    address: SocketAddr,
    identity: Identity,
    coordinator: PeerIdentity,
    heartbeat_ms: u32,
    dead_ms: u32,
}

/// The way back to a coordinator that was lost.
pub(super) struct Redial {
    manifest: Manifest,
    endpoint: Arc<ControlEndpoint>,
}

impl Redial {
    /// Finds the coordinator again, wherever it listens now.
    ///
    /// # Errors
    /// When it refuses, when its cluster was taken down, or when nobody is there for
    /// [`RECONNECT_PATIENCE`]; `cause` is why it was lost.
    pub(super) async fn again(
        &self,
        cause: &str,
    ) -> Result<(ControlChannel, Welcome), ClientError> {
        let (cluster, cause) = (self.manifest.cluster.name.clone(), cause.to_string());
        let lost = ClientError::Lost { cluster, cause };
        let deadline = Instant::now() + RECONNECT_PATIENCE;
        while Instant::now() < deadline {
            match Way::find(&self.manifest) {
                Ok(way) => match way.reach(self.endpoint.clone()).await {
                    Ok(reached) => return Ok(reached),
                    Err(refused @ ClientError::Refused { .. }) => return Err(refused),
                    Err(error) => tracing::debug!(%error, "not there yet"),
                },
                Err(_) if !RunFolder::of(&self.manifest).path().exists() => return Err(lost),
                Err(error) => tracing::debug!(%error, "not there yet"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        Err(lost)
    }
}

/// Connects on a thread of its own.
pub(super) fn connect(
    manifest: &Manifest,
) -> Result<(ActorRef<LinkMsg>, JoinHandle<()>), ClientError> {
    let way = Way::find(manifest)?;
    let manifest = manifest.clone();
    let unreachable = way.unreachable("its thread could not be started");
    let (tell, started) = sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("client".into())
        .spawn(move || run(&way, manifest, &tell))
        .map_err(|_| unreachable.clone())?;
    match started.recv().map_err(|_| unreachable)? {
        Ok(link) => Ok((link, thread)),
        Err(error) => {
            // It has nothing more to do and cannot have panicked before it told.
            let _ = thread.join();
            Err(error)
        }
    }
}

fn run(way: &Way, manifest: Manifest, tell: &SyncSender<Started>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => {
            runtime.block_on(way.live(manifest, tell));
            runtime.shutdown_background();
        }
        // A caller that has gone needs no word.
        Err(error) => drop(tell.send(Err(way.unreachable(error)))),
    }
}

impl Way {
    fn find(manifest: &Manifest) -> Result<Self, ClientError> {
        let cluster = manifest.cluster.name.clone();
        let folder = RunFolder::of(manifest);
        let path = folder.coordinator_path().display().to_string();
        let not_running = ClientError::NotRunning { cluster: cluster.clone(), path };
        let record = folder.coordinator().filter(ProcessRecord::is_alive);
        let recorded = record.and_then(|record| record.address?.parse().ok());
        let address = recorded.or_else(|| configured(manifest)).ok_or(not_running)?;
        let certs = certs_dir(manifest);
        let certificate = |error: &dyn std::fmt::Display| ClientError::Certificate {
            folder: certs.display().to_string(),
            cause: error.to_string(),
        };
        let identity = Identity::load(&certs, Role::Client, CLIENT_NAME)
            .map_err(|error| certificate(&error))?;
        let coordinator = PeerIdentity::new(Role::Node, manifest.coordinator_node(), &cluster)
            .map_err(|error| certificate(&error))?;
        let (heartbeat_ms, dead_ms) = (manifest.health.heartbeat_ms, manifest.health.dead_ms);
        Ok(Self { cluster, address, identity, coordinator, heartbeat_ms, dead_ms })
    }

    fn unreachable(&self, cause: impl std::fmt::Display) -> ClientError {
        let (cluster, address) = (self.cluster.clone(), self.address.to_string());
        ClientError::Unreachable { cluster, address, cause: cause.to_string() }
    }

    async fn live(&self, manifest: Manifest, tell: &SyncSender<Started>) {
        let any: IpAddr = match self.address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let bind = SocketAddr::new(any, 0);
        let (heartbeat_ms, dead_ms) = (self.heartbeat_ms, self.dead_ms);
        let config = control_config(self.identity.clone(), bind, heartbeat_ms, dead_ms);
        let endpoint = match ControlEndpoint::bind(&config) {
            Ok(endpoint) => Arc::new(endpoint),
            Err(error) => return drop(tell.send(Err(self.unreachable(error)))),
        };
        match self.open(manifest, endpoint.clone()).await {
            Ok((link, life)) => {
                if tell.send(Ok(link)).is_ok() {
                    // However it ended: every call has been answered.
                    let _ = life.await;
                    tokio::time::sleep(FAREWELL).await;
                }
            }
            Err(error) => drop(tell.send(Err(error))),
        }
        endpoint.close("the client has ended");
    }

    async fn open(
        &self,
        manifest: Manifest,
        endpoint: Arc<ControlEndpoint>,
    ) -> Result<(ActorRef<LinkMsg>, tokio::task::JoinHandle<()>), ClientError> {
        let (channel, welcome) = self.reach(endpoint.clone()).await?;
        let redial = Redial { manifest, endpoint };
        let args = LinkArgs { cluster: self.cluster.clone(), channel, welcome, redial };
        Link::start(args).await.map_err(|error| self.unreachable(error))
    }

    async fn reach(
        &self,
        endpoint: Arc<ControlEndpoint>,
    ) -> Result<(ControlChannel, Welcome), ClientError> {
        let (address, coordinator) = (self.address, self.coordinator.clone());
        let address = address.to_string();
        let dialer = Dialer::Network { endpoint, address, coordinator };
        let hello = handshake::hello(&self.cluster, Party::Client, 0);
        let reached = dialer.reach(hello, Instant::now() + CONNECT_DEADLINE).await;
        reached.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: DialError) -> ClientError {
        if error.is_final {
            return ClientError::Refused { address: self.address.to_string(), cause: error.cause };
        }
        self.unreachable(error.cause)
    }
}

/// Where the manifest says the coordinator is, for clients on hosts that do not see its record;
/// `None` where the manifest's cluster is all on one host, or leaves the port to the system.
fn configured(manifest: &Manifest) -> Option<SocketAddr> {
    let here = |host: &str| {
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    let spread = manifest.nodes.iter().any(|node| !here(&node.address));
    let name = manifest.coordinator_node();
    let host = manifest.nodes.iter().find(|node| node.name == name)?;
    if !spread || host.control_port == 0 {
        return None;
    }
    let address = resolve(&host.address).ok()?;
    Some(SocketAddr::new(address, host.control_port))
}

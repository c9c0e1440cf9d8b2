//! The QUIC fabric of one process.
//!
//! Owns its endpoints and the meshes it has formed. Invariant: closing the fabric closes every
//! mesh, tells the peers, and stops the threads.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::Instant;

use tokio::task::AbortHandle;

use super::admission::Admission;
use super::blobs::{BlobReader, BlobServer, Meshes};
use super::dial::dial;
use super::form::{Former, Links};
use super::greeting::{Port, Speaker};
use super::{CAPS, QuicConfig, Upgrade, UpgradeTo, Upgrading};
use crate::blobs::BlobStore;
use crate::endpoint::{Congestion, EndpointSettings, EndpointThread, QuicEndpoint};
use crate::error::TransportError;
use crate::fabric::{
    BULK_LANES_MAX, Fabric, FabricAddress, Forming, Holdings, LaneAddresses, MESH_PEERS_MAX,
    MeshForm, OpeningBlobs, PeerAddress,
};
use crate::frame::hello::Lane;
use crate::ids::{Epoch, PeerId};
use crate::link::{Caps, Link, Transport};
use crate::mesh::{Mesh, Pools};
use crate::region::{DevicePool, RegionPool};

/// How many idle timeouts a bulk port may be silent: its thread may be busy.
const BULK_SILENCES: u32 = 4;

/// Packets of the control connection: small, and must pass everywhere.
const CONTROL_MTU_BYTES: u16 = 1452;

const CONTROL_WINDOW_BYTES: u32 = 1 << 20;
const CONTROL_SOCKET_BUFFER_BYTES: usize = 1 << 20;

/// Takes part in meshes over QUIC.
pub struct QuicFabric {
    former: Former,
    address: FabricAddress,
    cluster: String,
    pools: Pools,
    meshes: Meshes,
    upgrade: Option<Arc<dyn Upgrade>>,
}

impl QuicFabric {
    /// Listens on all ports. Needs no runtime: each endpoint has its own, on its own thread.
    ///
    /// # Errors
    /// [`TransportError::Bind`] (a port is taken), [`TransportError::Identity`].
    pub fn bind(config: &QuicConfig) -> Result<Arc<dyn Fabric>, TransportError> {
        Self::bind_with(config, None)
    }

    /// The same, with something else to carry the frames of links.
    pub(crate) fn bind_with(
        config: &QuicConfig,
        upgrade: Option<Arc<dyn Upgrade>>,
    ) -> Result<Arc<dyn Fabric>, TransportError> {
        let threads = threads(config.bulk_lanes)?;
        let first = threads.first().ok_or_else(|| lanes_refused(config.bulk_lanes))?;
        let settings = control_settings(config);
        let control = Arc::new(QuicEndpoint::bind_on(first, &config.identity, &settings)?);
        let bulk = bulk_endpoints(config, &threads)?;
        let cluster = config.identity.subject().cluster.clone();
        let speaker = Speaker { cluster: cluster.clone(), incarnation: config.incarnation };
        let meshes = Meshes::default();
        let blobs = BlobServer::new(Arc::clone(&meshes));
        let admission = Admission::new(speaker, config.hello_wait, blobs);
        let ports = std::iter::once(Port::Control).chain((0..=u8::MAX).map(Port::Bulk));
        for (endpoint, port) in std::iter::once(&control).chain(&bulk).zip(ports) {
            endpoint.spawn(Arc::clone(&admission).serve(endpoint.port().clone(), port));
        }
        let lanes: Vec<_> = bulk.iter().map(|endpoint| endpoint.local()).collect();
        let (mut at, mut lanes) = (control.local(), LaneAddresses::new(&lanes)?);
        if let Some(ip) = config.advertise {
            at.set_ip(ip);
            lanes = lanes.on(ip);
        }
        let address = FabricAddress::Quic { control: at, bulk: lanes };
        let patience = config.idle_timeout * BULK_SILENCES;
        Ok(Arc::new(Self {
            former: Former { admission, control, bulk, patience },
            address,
            cluster,
            pools: Pools {
                host: RegionPool::new(config.pool_bytes_max),
                device: config.device.clone().map(DevicePool::new),
            },
            meshes,
            upgrade,
        }))
    }

    async fn form_mesh(&self, form: MeshForm) -> Result<Arc<dyn Transport>, TransportError> {
        self.check(&form)?;
        let upgrades = self.upgrades(&form)?;
        let (epoch, local) = (form.epoch, form.local);
        let callers = form.peers.iter().filter(|peer| peer.id < local);
        let callers = callers.map(|peer| (peer.id, peer.name.clone())).collect();
        let admission = &self.former.admission;
        let knocking = admission.open(epoch, local, callers)?;
        let mut attempt = Attempt { admission, epoch, formed: false, task: None };
        let task = self.former.control.spawn(self.former.clone().form(form, knocking));
        attempt.task = Some(task.abort_handle());
        let links = task.await.unwrap_or_else(|_| Err(TransportError::closed("the fabric")))?;
        let mut links = Formed(links);
        self.upgrade_all(&links, upgrades).await?;
        attempt.formed = true;
        let caps = Caps { lanes: self.former.lanes(), ..links.caps() };
        let links = links.keep();
        let mesh = Arc::new(Mesh::new(local, caps, self.pools.clone(), links));
        let mut meshes = self.meshes.lock().unwrap_or_else(PoisonError::into_inner);
        meshes.retain(|mesh| mesh.strong_count() > 0);
        meshes.push(Arc::downgrade(&mesh));
        Ok(mesh)
    }

    /// Whom links are upgraded towards, where there is something to upgrade to.
    fn upgrades(&self, form: &MeshForm) -> Result<Vec<UpgradeTo>, TransportError> {
        let (Some(upgrade), Some(ours)) = (&self.upgrade, self.address.control_ip()) else {
            return Ok(Vec::new());
        };
        let mut upgrades = Vec::new();
        for peer in &form.peers {
            let Some(theirs) = peer.address.control_ip() else { continue };
            let (name, deadline) = (peer.name.clone(), form.deadline);
            let to = UpgradeTo { peer: peer.id, name, ours, theirs, deadline };
            upgrade.admit(&to)?;
            upgrades.push(to);
        }
        Ok(upgrades)
    }

    /// Lets something else carry the frames where both ends want it; all links at a time.
    async fn upgrade_all(
        &self,
        links: &Formed,
        upgrades: Vec<UpgradeTo>,
    ) -> Result<(), TransportError> {
        let Some(upgrade) = &self.upgrade else {
            links.0.values().for_each(|link| link.decline());
            return Ok(());
        };
        let upgrading = upgrades.into_iter().filter_map(|to| {
            let link = links.0.get(&to.peer)?;
            Some(upgrade.upgrade(Arc::clone(link), to))
        });
        all(upgrading.collect()).await
    }

    /// Opens the way to a peer's blobs.
    async fn dial_blobs(
        &self,
        peer: PeerAddress,
        deadline: Instant,
    ) -> Result<BlobReader, TransportError> {
        let unreachable = |cause: &str| TransportError::Connect {
            peer: peer.name.clone(),
            address: peer.address.to_string(),
            cause: cause.to_owned(),
        };
        let FabricAddress::Quic { bulk, .. } = peer.address else {
            return Err(unreachable("it does not listen on QUIC"));
        };
        let (Some(&address), Some(endpoint)) = (bulk.as_slice().first(), self.former.bulk.first())
        else {
            return Err(unreachable("there is no bulk port"));
        };
        let speaker = self.former.admission.speaker();
        let hello = speaker.hello(Epoch(0), peer.id, peer.id, Lane::Blobs);
        let dialling = dial(endpoint.dialer(), address, peer.name.clone(), hello, deadline);
        let stream = endpoint.spawn(dialling).await;
        let stream = stream.unwrap_or_else(|_| Err(TransportError::closed("the fabric")))?;
        Ok(BlobReader::new(peer.name, stream, endpoint.receive_window_bytes()))
    }

    fn check(&self, form: &MeshForm) -> Result<(), TransportError> {
        if form.cluster != self.cluster {
            return Err(TransportError::WrongCluster {
                expected: self.cluster.clone(),
                found: form.cluster.clone(),
            });
        }
        if form.peers.len() > MESH_PEERS_MAX {
            return Err(TransportError::TooMany { what: "peers", limit: MESH_PEERS_MAX });
        }
        if form.peers.iter().any(|peer| peer.id == form.local) {
            return Err(TransportError::mismatch("peers of a mesh", "others only", form.local));
        }
        Ok(())
    }
}

impl Fabric for QuicFabric {
    fn address(&self) -> FabricAddress {
        self.address
    }

    fn form<'a>(&'a self, form: MeshForm) -> Forming<'a> {
        Box::pin(self.form_mesh(form))
    }

    fn callers_refused(&self) -> u64 {
        self.former.admission.callers_refused()
    }

    fn holdings(&self) -> Holdings {
        let ports = std::iter::once(&self.former.control).chain(&self.former.bulk);
        let open = ports.map(|endpoint| endpoint.port().open());
        let (connections, streams) = open.fold((0, 0), |(c, s), (c2, s2)| (c + c2, s + s2));
        Holdings { connections, streams, pool_bytes_lent: self.pools.lent_bytes() }
    }

    fn offer_blobs(&self, store: Arc<dyn BlobStore>) {
        self.former.admission.blobs.offer(store);
    }

    fn open_blobs(&self, peer: PeerAddress, deadline: Instant) -> OpeningBlobs<'_> {
        Box::pin(self.dial_blobs(peer, deadline))
    }

    fn close(&self) {
        let cause = "the fabric was closed";
        let meshes =
            std::mem::take(&mut *self.meshes.lock().unwrap_or_else(PoisonError::into_inner));
        for mesh in meshes.into_iter().filter_map(|mesh| mesh.upgrade()) {
            mesh.close(cause);
        }
        self.former.control.close(cause);
        for endpoint in &self.former.bulk {
            endpoint.close(cause);
        }
        if let Some(upgrade) = &self.upgrade {
            upgrade.stop();
        }
    }
}

impl Drop for QuicFabric {
    fn drop(&mut self) {
        self.close();
    }
}

/// One attempt to form: shuts its door, and ends its task if nobody waits for it any more.
struct Attempt<'a> {
    admission: &'a Admission,
    epoch: Epoch,
    formed: bool,
    task: Option<AbortHandle>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.admission.shut(self.epoch, self.formed);
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The links of a mesh that is not formed yet: closed unless they are kept.
struct Formed(Links);

impl Formed {
    fn keep(&mut self) -> BTreeMap<PeerId, Arc<dyn Link>> {
        let links = std::mem::take(&mut self.0);
        links.into_iter().map(|(peer, link)| (peer, link as Arc<dyn Link>)).collect()
    }

    fn caps(&self) -> Caps {
        let mut names: Vec<_> = self.0.values().map(|link| link.carrier().name).collect();
        names.sort_unstable();
        names.dedup();
        let name = match names.as_slice() {
            [] => CAPS.name,
            [one] => one,
            _ => "mixed",
        };
        let encrypted = names.iter().all(|name| *name == CAPS.name);
        Caps { name, encrypted, ..CAPS }
    }
}

impl Drop for Formed {
    fn drop(&mut self) {
        for link in self.0.values() {
            link.close("the mesh could not be formed");
        }
    }
}

/// Drives all upgrades at once; the first error ends the others.
async fn all(mut upgrading: Vec<Upgrading<'_>>) -> Result<(), TransportError> {
    std::future::poll_fn(move |context| {
        let mut at = 0;
        while let Some(upgrade) = upgrading.get_mut(at) {
            match upgrade.as_mut().poll(context) {
                Poll::Ready(Ok(())) => drop(upgrading.swap_remove(at)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => at += 1,
            }
        }
        if upgrading.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One for each bulk connection, but not more than there are cores; grants are written and read on
/// the first, so that whoever waits for a frame drives both.
fn threads(lanes: u8) -> Result<Vec<Arc<EndpointThread>>, TransportError> {
    if lanes == 0 || usize::from(lanes) > BULK_LANES_MAX {
        return Err(lanes_refused(lanes));
    }
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    (0..cores.min(lanes.into())).map(|_| EndpointThread::start("ditmesh-bulk")).collect()
}

fn lanes_refused(lanes: u8) -> TransportError {
    TransportError::malformed(format!(
        "bulk connections per pair of peers: {lanes}, 1 to {BULK_LANES_MAX} expected"
    ))
}

fn bulk_endpoints(
    config: &QuicConfig,
    threads: &[Arc<EndpointThread>],
) -> Result<Vec<Arc<QuicEndpoint>>, TransportError> {
    let first = config.bulk_bind.port();
    let bind = |(lane, thread): (u8, &Arc<EndpointThread>)| {
        let port = match first {
            0 => Some(0),
            first => first.checked_add(u16::from(lane)),
        };
        let port = port.ok_or_else(|| {
            TransportError::malformed(format!("bulk port {first} + {lane}: above 65535"))
        })?;
        let settings = bulk_settings(config, SocketAddr::new(config.bulk_bind.ip(), port));
        Ok(Arc::new(QuicEndpoint::bind_on(thread, &config.identity, &settings)?))
    };
    (0..config.bulk_lanes).zip(threads.iter().cycle()).map(bind).collect()
}

fn control_settings(config: &QuicConfig) -> EndpointSettings {
    EndpointSettings {
        name: "ditmesh-grants",
        bind: config.control_bind,
        mtu_bytes: CONTROL_MTU_BYTES,
        idle_timeout: config.idle_timeout,
        keep_alive: config.keep_alive,
        receive_window_bytes: CONTROL_WINDOW_BYTES,
        window_reserve_bytes: 0,
        socket_buffer_bytes: CONTROL_SOCKET_BUFFER_BYTES,
        congestion: Congestion::default(),
    }
}

/// Silence on the control connection decides.
fn bulk_settings(config: &QuicConfig, bind: SocketAddr) -> EndpointSettings {
    EndpointSettings {
        name: "ditmesh-bulk",
        bind,
        mtu_bytes: config.mtu_bytes,
        idle_timeout: config.idle_timeout * BULK_SILENCES,
        keep_alive: config.keep_alive * 2,
        receive_window_bytes: config.receive_window_bytes,
        window_reserve_bytes: 0,
        socket_buffer_bytes: config.socket_buffer_bytes,
        congestion: config.congestion,
    }
}

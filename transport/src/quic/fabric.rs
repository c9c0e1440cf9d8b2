//! The QUIC fabric of one process.
//!
//! Owns its two endpoints and the meshes it has formed. Invariant: closing the fabric closes every
//! mesh, tells the peers, and stops both threads.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::task::AbortHandle;

use super::admission::Admission;
use super::form::Former;
use super::greeting::Speaker;
use super::{CAPS, QuicConfig};
use crate::endpoint::{EndpointSettings, QuicEndpoint};
use crate::error::TransportError;
use crate::fabric::{Fabric, FabricAddress, Forming, MESH_PEERS_MAX, MeshForm};
use crate::frame::hello::Lane;
use crate::ids::Epoch;
use crate::link::Transport;
use crate::mesh::Mesh;
use crate::region::RegionPool;

/// Packets of the control connection: small, and must pass everywhere.
const CONTROL_MTU_BYTES: u16 = 1452;

const CONTROL_WINDOW_BYTES: u32 = 1 << 20;
const CONTROL_SOCKET_BUFFER_BYTES: usize = 1 << 20;

/// Takes part in meshes over QUIC.
pub struct QuicFabric {
    former: Former,
    address: FabricAddress,
    cluster: String,
    pool: RegionPool,
    meshes: Mutex<Vec<Weak<Mesh>>>,
}

impl QuicFabric {
    /// Listens on both ports. Needs no runtime: each endpoint has its own, on its own thread.
    ///
    /// # Errors
    /// [`TransportError::Bind`] (a port is taken), [`TransportError::Identity`].
    pub fn bind(config: &QuicConfig) -> Result<Arc<dyn Fabric>, TransportError> {
        let control = Arc::new(QuicEndpoint::bind(&config.identity, &control_settings(config))?);
        let bulk = Arc::new(QuicEndpoint::bind(&config.identity, &bulk_settings(config))?);
        let cluster = config.identity.subject().cluster.clone();
        let speaker = Speaker { cluster: cluster.clone(), incarnation: config.incarnation };
        let admission = Admission::new(speaker, config.hello_wait);
        for (endpoint, lane) in [(&control, Lane::Control), (&bulk, Lane::Bulk)] {
            endpoint.spawn(Arc::clone(&admission).serve(endpoint.quinn().clone(), lane));
        }
        let seen = |local: SocketAddr| match config.advertise {
            Some(ip) => SocketAddr::new(ip, local.port()),
            None => local,
        };
        let address =
            FabricAddress::Quic { control: seen(control.local()), bulk: seen(bulk.local()) };
        Ok(Arc::new(Self {
            former: Former { admission, control, bulk },
            address,
            cluster,
            pool: RegionPool::new(config.pool_bytes_max),
            meshes: Mutex::new(Vec::new()),
        }))
    }

    async fn form_mesh(&self, form: MeshForm) -> Result<Arc<dyn Transport>, TransportError> {
        self.check(&form)?;
        let (epoch, local) = (form.epoch, form.local);
        let callers = form.peers.iter().filter(|peer| peer.id < local);
        let callers = callers.map(|peer| (peer.id, peer.name.clone())).collect();
        let admission = &self.former.admission;
        let knocking = admission.open(epoch, local, callers)?;
        let mut attempt = Attempt { admission, epoch, formed: false, task: None };
        let task = self.former.control.spawn(self.former.clone().form(form, knocking));
        attempt.task = Some(task.abort_handle());
        let links = task.await.unwrap_or_else(|_| Err(TransportError::closed("the fabric")))?;
        attempt.formed = true;
        let mesh = Arc::new(Mesh::new(local, CAPS, self.pool.clone(), links));
        let mut meshes = self.meshes.lock().unwrap_or_else(PoisonError::into_inner);
        meshes.retain(|mesh| mesh.strong_count() > 0);
        meshes.push(Arc::downgrade(&mesh));
        Ok(mesh)
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

    fn close(&self) {
        let cause = "the fabric was closed";
        let meshes =
            std::mem::take(&mut *self.meshes.lock().unwrap_or_else(PoisonError::into_inner));
        for mesh in meshes.into_iter().filter_map(|mesh| mesh.upgrade()) {
            mesh.close(cause);
        }
        self.former.control.close(cause);
        self.former.bulk.close(cause);
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

fn control_settings(config: &QuicConfig) -> EndpointSettings {
    EndpointSettings {
        name: "ditmesh-grants",
        bind: config.control_bind,
        mtu_bytes: CONTROL_MTU_BYTES,
        idle_timeout: config.idle_timeout,
        keep_alive: config.keep_alive,
        receive_window_bytes: CONTROL_WINDOW_BYTES,
        socket_buffer_bytes: CONTROL_SOCKET_BUFFER_BYTES,
    }
}

/// Silence on the control connection decides; the bulk thread may be busy for longer.
fn bulk_settings(config: &QuicConfig) -> EndpointSettings {
    EndpointSettings {
        name: "ditmesh-bulk",
        bind: config.bulk_bind,
        mtu_bytes: config.mtu_bytes,
        idle_timeout: config.idle_timeout * 4,
        keep_alive: config.keep_alive * 2,
        receive_window_bytes: config.receive_window_bytes,
        socket_buffer_bytes: config.socket_buffer_bytes,
    }
}

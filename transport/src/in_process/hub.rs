//! Where the fabrics of one process meet.
//!
//! Owns the fabrics' numbers, the offers of those that came first, and the epochs each fabric has
//! formed. Invariant: an offer is taken once or withdrawn; a failed attempt closes what it linked.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::error::TransportError;
use crate::fabric::epochs::Epochs;
use crate::fabric::{Fabric, FabricAddress, Forming, MESH_PEERS_MAX, MeshForm, PeerAddress};
use crate::ids::{Epoch, PeerId};
use crate::link::{Link, Transport};
use crate::mesh::{Mesh, Pools};
use crate::region::{DeviceMemory, DevicePool, MemKind, RegionPool};

use super::link::{InProcessLink, pair};
use super::{CAPS, IN_PROCESS_POOL_BYTES_MAX};

/// Where fabrics of one process meet; make one per engine.
#[derive(Clone, Default)]
pub struct InProcessHub {
    shared: Arc<Mutex<Meeting>>,
}

impl InProcessHub {
    /// An empty hub.
    pub fn new() -> Self {
        Self::default()
    }

    /// A new fabric in this hub, one per worker. Its `form` needs a tokio runtime for deadlines.
    pub fn fabric(&self) -> Arc<dyn Fabric> {
        self.fabric_on(None)
    }

    /// The same for a worker whose frames come from and go to a device. Between two of one device
    /// they stay in its memory.
    pub fn fabric_on(&self, device: Option<Arc<dyn DeviceMemory>>) -> Arc<dyn Fabric> {
        let mut meeting = lock(&self.shared);
        let number = meeting.next_number;
        meeting.next_number += 1;
        meeting.members.insert(number, Epochs::default());
        Arc::new(InProcessFabric {
            number,
            shared: Arc::clone(&self.shared),
            pools: Pools {
                host: RegionPool::new(IN_PROCESS_POOL_BYTES_MAX),
                device: device.map(DevicePool::new),
            },
            meshes: Mutex::new(Vec::new()),
        })
    }
}

#[derive(Default)]
struct Meeting {
    next_number: u64,
    members: HashMap<u64, Epochs>,
    offers: HashMap<OfferKey, Offer>,
}

/// Who waits for whom in which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct OfferKey {
    epoch: Epoch,
    from: u64,
    to: u64,
}

struct Offer {
    cluster: String,
    local: PeerId,
    peer: PeerId,
    device: Option<MemKind>,
    taken: oneshot::Sender<Result<InProcessLink, TransportError>>,
}

enum Met {
    Linked(InProcessLink),
    Waiting(oneshot::Receiver<Result<InProcessLink, TransportError>>),
}

struct InProcessFabric {
    number: u64,
    shared: Arc<Mutex<Meeting>>,
    pools: Pools,
    meshes: Mutex<Vec<Weak<Mesh>>>,
}

impl Fabric for InProcessFabric {
    fn address(&self) -> FabricAddress {
        FabricAddress::InProcess(self.number)
    }

    fn form<'a>(&'a self, form: MeshForm) -> Forming<'a> {
        Box::pin(async move {
            self.begin(&form)?;
            let mut attempt = Attempt { fabric: self, epoch: form.epoch, links: Some(Vec::new()) };
            let links = self.link_all(&form, &mut attempt).await?;
            let mesh = Arc::new(Mesh::new(form.local, CAPS, self.pools.clone(), links));
            let mut meshes = lock(&self.meshes);
            meshes.retain(|mesh| mesh.strong_count() > 0);
            meshes.push(Arc::downgrade(&mesh));
            Ok(mesh as Arc<dyn Transport>)
        })
    }

    fn close(&self) {
        {
            let mut meeting = lock(&self.shared);
            meeting.members.remove(&self.number);
            meeting.offers.retain(|key, _| key.from != self.number && key.to != self.number);
        }
        for mesh in lock(&self.meshes).drain(..).filter_map(|mesh| mesh.upgrade()) {
            mesh.close("the fabric was closed");
        }
    }
}

impl Drop for InProcessFabric {
    fn drop(&mut self) {
        self.close();
    }
}

impl InProcessFabric {
    fn begin(&self, form: &MeshForm) -> Result<(), TransportError> {
        if form.peers.len() > MESH_PEERS_MAX {
            return Err(TransportError::TooMany { what: "peers", limit: MESH_PEERS_MAX });
        }
        let mut meeting = lock(&self.shared);
        let epochs = meeting.members.get_mut(&self.number);
        epochs.ok_or_else(|| TransportError::closed("the fabric"))?.begin(form.epoch)
    }

    async fn link_all(
        &self,
        form: &MeshForm,
        attempt: &mut Attempt<'_>,
    ) -> Result<BTreeMap<PeerId, Arc<dyn Link>>, TransportError> {
        let mut waiting = Vec::new();
        for peer in &form.peers {
            match self.meet(form, peer)? {
                Met::Linked(link) => attempt.keep(link),
                Met::Waiting(taken) => waiting.push((peer, taken)),
            }
        }
        for (peer, taken) in waiting {
            match timeout_at(Instant::from_std(form.deadline), taken).await {
                Ok(Ok(link)) => attempt.keep(link?),
                Ok(Err(_)) => return Err(missing(peer, "its fabric was closed")),
                Err(_) => return Err(missing(peer, "it did not come before the deadline")),
            }
        }
        Ok(attempt.finish())
    }

    fn meet(&self, form: &MeshForm, peer: &PeerAddress) -> Result<Met, TransportError> {
        let FabricAddress::InProcess(other) = peer.address else {
            return Err(missing(peer, "it is not in this process"));
        };
        let mut meeting = lock(&self.shared);
        match meeting.members.get(&other) {
            Some(epochs) => epochs.check(form.epoch)?,
            None => return Err(missing(peer, "there is no such fabric in this hub")),
        }
        let theirs = OfferKey { epoch: form.epoch, from: other, to: self.number };
        if let Some(offer) = meeting.offers.remove(&theirs) {
            return accept(offer, form, peer, self.device()).map(Met::Linked);
        }
        let (taken, waiting) = oneshot::channel();
        let ours = OfferKey { epoch: form.epoch, from: self.number, to: other };
        let (cluster, device) = (form.cluster.clone(), self.device());
        let (local, peer) = (form.local, peer.id);
        meeting.offers.insert(ours, Offer { cluster, local, peer, device, taken });
        Ok(Met::Waiting(waiting))
    }

    fn device(&self) -> Option<MemKind> {
        self.pools.device.as_ref().map(|pool| pool.device().kind())
    }
}

/// Links this form with an offer, or tells both sides why not.
fn accept(
    offer: Offer,
    form: &MeshForm,
    peer: &PeerAddress,
    device: Option<MemKind>,
) -> Result<InProcessLink, TransportError> {
    if let Some((ours, theirs)) = disagreement(&offer, form, peer) {
        // The other side may have given up meanwhile; then nobody is left to tell.
        let _ = offer.taken.send(Err(theirs));
        return Err(ours);
    }
    let one_device = device.is_some() && device == offer.device;
    let (here, there) = pair((form.local, peer.id), form.epoch, one_device);
    match offer.taken.send(Ok(there)) {
        Ok(()) => Ok(here),
        Err(_) => Err(missing(peer, "it gave up")),
    }
}

/// What is wrong, as this side and as the other side is to hear it.
fn disagreement(
    offer: &Offer,
    form: &MeshForm,
    peer: &PeerAddress,
) -> Option<(TransportError, TransportError)> {
    if offer.cluster != form.cluster {
        let wrong = |expected: &str, found: &str| TransportError::WrongCluster {
            expected: expected.to_owned(),
            found: found.to_owned(),
        };
        let (ours, theirs) = (&form.cluster, &offer.cluster);
        return Some((wrong(ours, theirs), wrong(theirs, ours)));
    }
    if (offer.local, offer.peer) != (peer.id, form.local) {
        let pairs = |a: PeerId, b: PeerId| format!("{a} with {b}");
        let (ours, theirs) = (pairs(peer.id, form.local), pairs(offer.local, offer.peer));
        return Some((
            TransportError::mismatch("members of the link", &ours, &theirs),
            TransportError::mismatch("members of the link", &theirs, &ours),
        ));
    }
    None
}

fn missing(peer: &PeerAddress, cause: &str) -> TransportError {
    TransportError::Connect {
        peer: format!("peer {} ({})", peer.id, peer.name),
        address: peer.address.to_string(),
        cause: cause.to_owned(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One attempt to form: takes everything back unless it finishes.
struct Attempt<'a> {
    fabric: &'a InProcessFabric,
    epoch: Epoch,
    links: Option<Vec<Arc<dyn Link>>>,
}

impl Attempt<'_> {
    fn keep(&mut self, link: InProcessLink) {
        if let Some(links) = &mut self.links {
            links.push(Arc::new(link));
        }
    }

    fn finish(&mut self) -> BTreeMap<PeerId, Arc<dyn Link>> {
        let links = self.links.take().unwrap_or_default();
        links.into_iter().map(|link| (link.peer(), link)).collect()
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let formed = self.links.is_none();
        for link in self.links.take().into_iter().flatten() {
            link.close("the mesh could not be formed");
        }
        let mut meeting = lock(&self.fabric.shared);
        let (epoch, from) = (self.epoch, self.fabric.number);
        meeting.offers.retain(|key, _| key.epoch != epoch || key.from != from);
        if let Some(epochs) = meeting.members.get_mut(&from) {
            epochs.end(epoch, formed);
        }
    }
}

//! The ends of simulated links.
//!
//! Own nothing but their names: everything is in the network.

use std::sync::{Arc, Mutex};

use super::lock;
use super::network::{End, Network};
use crate::completion::Completion;
use crate::error::TransportError;
use crate::frame::{FRAME_BYTES_MAX, LinkMessage};
use crate::ids::{PeerId, RunId};
use crate::link::{Caps, Link, LinkStats, PostRecv, Received, SendFrame, Transport};
use crate::mesh::no_device;
use crate::region::{MemKind, Region, RegionPool};

/// Idle bytes that the pool of one simulated member keeps.
const SIM_POOL_BYTES_MAX: usize = 64 << 20;

pub(super) struct SimTransport {
    local: PeerId,
    network: Arc<Mutex<Network>>,
    pool: RegionPool,
    links: Mutex<Vec<Arc<SimLink>>>,
}

impl SimTransport {
    pub(super) fn new(local: PeerId, network: Arc<Mutex<Network>>) -> Self {
        let pool = RegionPool::new(SIM_POOL_BYTES_MAX);
        Self { local, network, pool, links: Mutex::new(Vec::new()) }
    }

    fn links(&self) -> std::sync::MutexGuard<'_, Vec<Arc<SimLink>>> {
        self.links.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Transport for SimTransport {
    fn local(&self) -> PeerId {
        self.local
    }

    fn caps(&self) -> Caps {
        Caps {
            rma: false,
            encrypted: false,
            max_frame_bytes: FRAME_BYTES_MAX,
            lanes: 1,
            name: "sim",
        }
    }

    fn allocate(&self, len: usize) -> Region {
        self.pool.allocate(len)
    }

    fn allocate_on_device(&self, _: usize) -> Result<Region, TransportError> {
        Err(no_device())
    }

    fn link(&self, peer: PeerId) -> Result<Arc<dyn Link>, TransportError> {
        if peer == self.local {
            return Err(TransportError::NoLink { local: self.local, peer });
        }
        let mut links = self.links();
        if let Some(link) = links.iter().find(|link| link.end.towards == peer) {
            return Ok(Arc::clone(link) as Arc<dyn Link>);
        }
        let end = End { of: self.local, towards: peer };
        let link = Arc::new(SimLink { end, network: Arc::clone(&self.network) });
        links.push(Arc::clone(&link));
        Ok(link)
    }

    fn close(&self, cause: &str) {
        for link in self.links().iter() {
            link.close(cause);
        }
    }
}

impl Drop for SimTransport {
    fn drop(&mut self) {
        self.close("the mesh was dropped");
    }
}

struct SimLink {
    end: End,
    network: Arc<Mutex<Network>>,
}

impl Link for SimLink {
    fn peer(&self) -> PeerId {
        self.end.towards
    }

    fn post_recv(&self, post: PostRecv) -> Completion<Received> {
        let mut network = lock(&self.network);
        let (completer, waiting) = network.table(self.end).receiving((post.run, post.tag), None);
        if let Some(grant) = network.table(self.end).post(post, completer) {
            network.say(self.end, LinkMessage::Grants(vec![grant]));
        }
        waiting
    }

    fn send(&self, frame: SendFrame) -> Completion<()> {
        let mut network = lock(&self.network);
        let (completer, waiting) = network.table(self.end).sending((frame.run, frame.tag), None);
        let step = network.table(self.end).send(frame, completer);
        network.carry(self.end, step);
        waiting
    }

    fn abort_run(&self, run: RunId, cause: &str) {
        let mut network = lock(&self.network);
        if network.table(self.end).abort(run, cause) {
            network.say(self.end, LinkMessage::Abort { run, cause: cause.to_owned() });
        }
    }

    fn end_run(&self, run: RunId) {
        lock(&self.network).table(self.end).end(run);
    }

    fn close(&self, cause: &str) {
        lock(&self.network).close(self.end, cause);
    }

    fn closed(&self) -> Option<String> {
        lock(&self.network).table(self.end).closed().map(str::to_owned)
    }

    fn takes(&self, kind: MemKind) -> bool {
        lock(&self.network).table(self.end).takes(kind)
    }

    fn carrier(&self) -> crate::link::Carrier {
        crate::link::Carrier::only("sim")
    }

    fn stats(&self) -> LinkStats {
        lock(&self.network).table(self.end).stats()
    }
}

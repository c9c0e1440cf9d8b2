//! The links of one formed mesh, for every transport.
//!
//! Owns the map from peer to link and the pool that receives come from. Invariant: dropping a mesh
//! closes its links.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::TransportError;
use crate::ids::PeerId;
use crate::link::{Caps, Link, Transport};
use crate::region::{Region, RegionPool};

pub(crate) struct Mesh {
    local: PeerId,
    caps: Caps,
    pool: RegionPool,
    links: BTreeMap<PeerId, Arc<dyn Link>>,
}

impl Mesh {
    pub(crate) fn new(
        local: PeerId,
        caps: Caps,
        pool: RegionPool,
        links: BTreeMap<PeerId, Arc<dyn Link>>,
    ) -> Self {
        Self { local, caps, pool, links }
    }
}

impl Mesh {
    /// Payload bytes that its links have moved either way.
    pub(crate) fn bytes_moved(&self) -> u64 {
        let stats = self.links.values().map(|link| link.stats());
        stats.map(|stats| stats.bytes_sent + stats.bytes_received).sum()
    }
}

impl Transport for Mesh {
    fn local(&self) -> PeerId {
        self.local
    }

    fn caps(&self) -> Caps {
        self.caps
    }

    fn allocate(&self, len: usize) -> Region {
        self.pool.allocate(len)
    }

    fn link(&self, peer: PeerId) -> Result<Arc<dyn Link>, TransportError> {
        let missing = TransportError::NoLink { local: self.local, peer };
        self.links.get(&peer).map(Arc::clone).ok_or(missing)
    }

    fn close(&self, cause: &str) {
        for link in self.links.values() {
            link.close(cause);
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.close("the mesh was dropped");
    }
}

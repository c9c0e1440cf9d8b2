//! The links of one formed mesh, for every transport.
//!
//! Owns the map from peer to link and the pools that frames lie in. Invariant: dropping a mesh
//! closes its links.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::TransportError;
use crate::ids::PeerId;
use crate::link::{Caps, Link, Transport};
use crate::region::{DevicePool, Region, RegionPool};

/// Where the frames of one fabric lie.
#[derive(Clone)]
pub(crate) struct Pools {
    pub(crate) host: RegionPool,
    pub(crate) device: Option<DevicePool>,
}

impl Pools {
    /// Bytes of regions that are in use.
    pub(crate) fn lent_bytes(&self) -> usize {
        self.host.lent_bytes() + self.device.as_ref().map_or(0, DevicePool::lent_bytes)
    }
}

pub(crate) struct Mesh {
    local: PeerId,
    caps: Caps,
    pools: Pools,
    links: BTreeMap<PeerId, Arc<dyn Link>>,
}

impl Mesh {
    pub(crate) fn new(
        local: PeerId,
        caps: Caps,
        pools: Pools,
        links: BTreeMap<PeerId, Arc<dyn Link>>,
    ) -> Self {
        Self { local, caps, pools, links }
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
        self.pools.host.allocate(len)
    }

    fn allocate_on_device(&self, len: usize) -> Result<Region, TransportError> {
        self.pools.device.as_ref().ok_or_else(no_device)?.allocate(len)
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

/// Nothing of this member's lies in a device's memory.
pub(crate) fn no_device() -> TransportError {
    TransportError::mismatch("memory kinds", "host memory only", "memory of a device")
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.close("the mesh was dropped");
    }
}

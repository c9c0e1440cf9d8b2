//! How a process takes part in meshes.
//!
//! Owns the trait [`Fabric`], the addresses that travel in control messages, and the description of
//! a mesh to form. Does not decide who is a member: the coordinator does. Invariants: a fabric
//! forms an epoch at most once and begins none below the highest it has begun; several may be
//! under way.

pub(crate) mod epochs;
mod lanes;

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use crate::blobs::BlobStore;
use crate::error::TransportError;
use crate::ids::{Epoch, PeerId};
use crate::link::Transport;
use crate::quic::BlobReader;

pub use lanes::{BULK_LANES_MAX, LaneAddresses};

/// The most peers one member can have in one mesh.
pub const MESH_PEERS_MAX: usize = 4096;

/// One mesh, as one member is to form it.
#[derive(Clone, Debug)]
pub struct MeshForm {
    /// The cluster's name.
    pub cluster: String,
    /// The mesh's number, above all earlier ones.
    pub epoch: Epoch,
    /// This member.
    pub local: PeerId,
    /// Only those this member talks to, without itself; symmetric.
    pub peers: Vec<PeerAddress>,
    /// When to give up.
    pub deadline: Instant,
}

/// Where a peer is and who it must prove to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// The member.
    pub id: PeerId,
    /// The name in its certificate.
    pub name: String,
    /// Where its fabric listens.
    pub address: FabricAddress,
}

/// Where a fabric can be reached; prints as `in-process:7` or `quic:` and the
/// addresses, control first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FabricAddress {
    /// The member's number in its hub.
    InProcess(u64),
    /// UDP addresses.
    Quic {
        /// Grants and aborts.
        control: SocketAddr,
        /// Frames, one address per bulk connection.
        bulk: LaneAddresses,
    },
}

impl FabricAddress {
    /// The host of the control port, where there is one.
    pub fn control_ip(&self) -> Option<IpAddr> {
        match self {
            Self::InProcess(_) => None,
            Self::Quic { control, .. } => Some(control.ip()),
        }
    }
}

impl fmt::Display for FabricAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InProcess(number) => write!(f, "in-process:{number}"),
            Self::Quic { control, bulk } => write!(f, "quic:{control},{bulk}"),
        }
    }
}

impl FromStr for FabricAddress {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = match text.split_once(':') {
            Some(("in-process", number)) => number.parse().ok().map(Self::InProcess),
            Some(("quic", pair)) => pair.split_once(',').and_then(|(control, bulk)| {
                let (control, bulk) = (control.parse().ok()?, bulk.parse().ok()?);
                Some(Self::Quic { control, bulk })
            }),
            _ => None,
        };
        parsed.ok_or_else(|| {
            TransportError::malformed(format!(
                "fabric address {text:?}: expected in-process:NUMBER or quic:IP:PORT,IP:PORT[,IP:PORT...]"
            ))
        })
    }
}

/// What a fabric holds just now, for whoever looks whether something is left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Connections that are open, or whose last words have time to arrive.
    pub connections: usize,
    /// Of these, streams that the peer has opened, and own ones that it has not acknowledged.
    pub streams: usize,
    /// Bytes of regions of its pools, the device's included, that are in use.
    pub pool_bytes_lent: usize,
}

/// The future of a mesh that is being formed.
pub type Forming<'a> =
    Pin<Box<dyn Future<Output = Result<Arc<dyn Transport>, TransportError>> + Send + 'a>>;

/// The future of a way to a peer's blobs.
pub type OpeningBlobs<'a> =
    Pin<Box<dyn Future<Output = Result<BlobReader, TransportError>> + Send + 'a>>;

/// One process's way into meshes.
pub trait Fabric: Send + Sync {
    /// Where peers reach this fabric.
    fn address(&self) -> FabricAddress;

    /// Forms one mesh: resolves when there is a link to every peer.
    ///
    /// # Errors
    /// [`TransportError::StaleEpoch`], [`TransportError::WrongCluster`],
    /// [`TransportError::WrongIdentity`], [`TransportError::VersionMismatch`],
    /// [`TransportError::Untrusted`] as either side finds them; [`TransportError::Connect`] naming
    /// who is missing when the deadline passes.
    fn form<'a>(&'a self, form: MeshForm) -> Forming<'a>;

    /// Offers blobs to the other nodes and workers of the cluster, in place of what was offered
    /// before. Within one process nobody asks: all have the same files.
    fn offer_blobs(&self, _store: Arc<dyn BlobStore>) {}

    /// Opens a way to the blobs of a peer, in a mesh or not.
    ///
    /// # Errors
    /// As [`Fabric::form`] for one peer; [`TransportError::Connect`] within one process.
    fn open_blobs(&self, peer: PeerAddress, _deadline: Instant) -> OpeningBlobs<'_> {
        Box::pin(async move {
            Err(TransportError::Connect {
                peer: peer.name,
                address: peer.address.to_string(),
                cause: "blobs are for processes that do not share their files".to_owned(),
            })
        })
    }

    /// Callers that were turned away at this fabric's ports so far. Within one process there are
    /// none.
    fn callers_refused(&self) -> u64 {
        0
    }

    /// What it holds just now. Within one process there is nothing to count.
    fn holdings(&self) -> Holdings {
        Holdings::default()
    }

    /// Closes every mesh of this fabric and stops listening; dropping it does the same.
    fn close(&self);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_survive_their_text_form() {
        let quic = FabricAddress::Quic {
            control: "127.0.0.1:4001".parse().unwrap(),
            bulk: "[::1]:4002,[::1]:4003".parse().unwrap(),
        };
        for address in [FabricAddress::InProcess(7), quic] {
            assert_eq!(address.to_string().parse::<FabricAddress>().unwrap(), address);
        }
        for wrong in
            ["", "quic:1,2", "in-process:x", "ucx:1", "quic:127.0.0.1:1", "quic:127.0.0.1:1,"]
        {
            assert!(wrong.parse::<FabricAddress>().is_err(), "{wrong}");
        }
    }
}

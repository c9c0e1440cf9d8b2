//! The seam for something else to carry the frames of a link.
//!
//! Owns the trait. Does not know what it is. Invariant: a mesh is formed when every link has been
//! upgraded or has decided to stay on QUIC.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use super::link::QuicLink;
use crate::error::TransportError;
use crate::ids::PeerId;

/// The future of one link's upgrade.
pub(crate) type Upgrading<'a> =
    Pin<Box<dyn Future<Output = Result<(), TransportError>> + Send + 'a>>;

/// Whom a link is upgraded towards.
#[derive(Clone, Debug)]
pub(crate) struct UpgradeTo {
    pub(crate) peer: PeerId,
    pub(crate) name: String,
    /// The address of this end, as peers know it.
    pub(crate) ours: IpAddr,
    pub(crate) theirs: IpAddr,
    pub(crate) deadline: Instant,
}

impl fmt::Display for UpgradeTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {} ({}) at {}", self.peer, self.name, self.theirs)
    }
}

/// Makes lanes for links.
pub(crate) trait Upgrade: Send + Sync {
    /// Whether such a link may be made at all; asked before anybody is dialled.
    fn admit(&self, to: &UpgradeTo) -> Result<(), TransportError>;

    /// Agrees with the peer on what carries the frames.
    fn upgrade<'a>(&'a self, link: Arc<QuicLink>, to: UpgradeTo) -> Upgrading<'a>;

    /// Ends whatever carries frames, after all links are closed.
    fn stop(&self);
}

//! The one error type of this crate's boundary.
//!
//! Owns the variants and their messages: lower case, naming the two things that disagree and,
//! where a user can act, what to do. Every variant can be cloned, because the loss of one link
//! resolves many waiting operations with the same cause.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::identity::IdentityError;
use crate::ids::{Epoch, PeerId, RunId};

/// What can go wrong between two processes of a cluster.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The peer of a link is gone: its process ended, fell silent, or the link was closed.
    #[error("lost peer {peer}: {cause}")]
    PeerLost {
        /// The peer at the other end of the link.
        peer: PeerId,
        /// Why, in words.
        cause: String,
    },
    /// The other end of a control channel is gone.
    #[error("lost the session with {peer}: {cause}")]
    SessionLost {
        /// Role and name of the other end.
        peer: String,
        /// Why, in words.
        cause: String,
    },
    /// The run was aborted or had already ended.
    #[error("run {run} was cancelled: {cause}")]
    Cancelled {
        /// The run.
        run: RunId,
        /// Why, in words.
        cause: String,
    },
    /// The deadline passed first.
    #[error("deadline passed while waiting for {what}")]
    Deadline {
        /// What was waited for.
        what: String,
    },
    /// The two builds do not speak a common protocol.
    #[error("version mismatch: here {ours}, there {theirs}; run the same build on every node")]
    VersionMismatch {
        /// Protocol, schema and build on this side.
        ours: String,
        /// The same on the other side.
        theirs: String,
    },
    /// Something of an older mesh.
    #[error("stale epoch {offered}: epoch {current} is current")]
    StaleEpoch {
        /// The newest epoch known to the refusing side.
        current: Epoch,
        /// The epoch that was offered.
        offered: Epoch,
    },
    /// The peer belongs to another cluster.
    #[error("wrong cluster: expected {expected:?}, found {found:?}")]
    WrongCluster {
        /// The cluster of the refusing side.
        expected: String,
        /// The cluster that was offered.
        found: String,
    },
    /// The certificate is good but is another member's.
    #[error("wrong certificate: expected {expected}, found {found}")]
    WrongIdentity {
        /// Who should have been there.
        expected: String,
        /// Who was there.
        found: String,
    },
    /// The certificate does not come from this cluster's authority.
    #[error(
        "{peer} is not trusted: {cause}; both sides need certificates of the same cluster \
         authority (run `ditmesh certs`)"
    )]
    Untrusted {
        /// Address or name of the other side.
        peer: String,
        /// What TLS said.
        cause: String,
    },
    /// Something is larger than its named bound.
    #[error("{what} of {bytes} bytes is above the limit of {limit}")]
    FrameTooLarge {
        /// What was too large.
        what: &'static str,
        /// Its size in bytes.
        bytes: u64,
        /// The bound in bytes.
        limit: u64,
    },
    /// Bytes from the peer that cannot be what they claim to be.
    #[error("malformed {what}")]
    Malformed {
        /// What was malformed and how.
        what: String,
    },
    /// The two ends of one message, or a message and its description, disagree.
    #[error("{what} disagree: here {ours}, there {theirs}")]
    Mismatch {
        /// What disagrees.
        what: String,
        /// The value on this side.
        ours: String,
        /// The value on the other side.
        theirs: String,
    },
    /// A tag was posted or sent twice.
    #[error("{what} exists already")]
    Duplicate {
        /// What exists.
        what: String,
    },
    /// A count is above its named bound.
    #[error("too many {what}: the limit is {limit}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {}", bind_advice(.source))]
    Bind {
        /// The UDP address.
        address: SocketAddr,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A peer cannot be reached.
    #[error("cannot connect to {peer} at {address}: {cause}")]
    Connect {
        /// Who.
        peer: String,
        /// Where.
        address: String,
        /// Why not.
        cause: String,
    },
    /// A member of a mesh that is being formed does not answer, though others know it to be there.
    #[error(
        "peer {peer} ({name}) at {address} does not answer ({milliseconds} ms): is the way there open \
         for UDP, in both directions?"
    )]
    Unanswered {
        /// Its number in the mesh.
        peer: PeerId,
        /// Its name.
        name: String,
        /// Where it should be.
        address: String,
        /// For how long it was tried.
        milliseconds: u64,
    },
    /// The mesh has no link between these two.
    #[error("peer {local} has no link to peer {peer} in this mesh")]
    NoLink {
        /// This member.
        local: PeerId,
        /// The member asked for.
        peer: PeerId,
    },
    /// This side was closed or dropped.
    #[error("{what} is closed")]
    Closed {
        /// What is closed.
        what: String,
    },
    /// A key or certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A device cannot do what was asked of its memory.
    #[error("{device} cannot {what}: {cause}")]
    Device {
        /// Which device.
        device: String,
        /// What was attempted.
        what: &'static str,
        /// Why not, in its driver's words.
        cause: String,
    },
    /// UCX cannot do what was asked of it.
    #[error("ucx cannot {what}: {cause}")]
    Ucx {
        /// What was attempted.
        what: String,
        /// Why not, in UCX's words or ours.
        cause: String,
    },
    /// UCX would cross hosts, which nobody has allowed.
    #[error(
        "ucx to {peer} would cross hosts unencrypted; write `trusted_network = true` under \
         [transport] if everybody on that network may read and forge what crosses it, or \
         `other_host = \"quic\"`"
    )]
    UntrustedNetwork {
        /// Who is at the other end.
        peer: String,
    },
    /// The system refused something that has nothing to do with the peer.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        source: Arc<io::Error>,
    },
}

impl TransportError {
    /// The loss of the peer of a link.
    pub fn peer_lost(peer: PeerId, cause: impl Into<String>) -> Self {
        Self::PeerLost { peer, cause: cause.into() }
    }

    /// Bytes that cannot be what they claim.
    pub fn malformed(what: impl Into<String>) -> Self {
        Self::Malformed { what: what.into() }
    }

    /// Two values that ought to be equal.
    pub fn mismatch(what: impl Into<String>, ours: impl ToString, theirs: impl ToString) -> Self {
        Self::Mismatch { what: what.into(), ours: ours.to_string(), theirs: theirs.to_string() }
    }

    /// A closed thing.
    pub fn closed(what: impl Into<String>) -> Self {
        Self::Closed { what: what.into() }
    }

    /// A passed deadline.
    pub fn deadline(what: impl ToString) -> Self {
        Self::Deadline { what: what.to_string() }
    }

    pub(crate) fn system(what: &'static str, source: io::Error) -> Self {
        Self::System { what, source: Arc::new(source) }
    }
}

fn bind_advice(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is taken; stop the other process or choose another port".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "this machine does not have that address".to_owned(),
        _ => source.to_string(),
    }
}

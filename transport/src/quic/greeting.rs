//! The hello and its answer on a connection's one stream.
//!
//! Owns their exchange (a u16 length, then the bytes; the caller confirms a welcome) and the checks
//! that need no knowledge of meshes: version and cluster. Invariant: a hello is at most
//! [`HELLO_BYTES_MAX`] bytes, checked before it is read.

use crate::error::TransportError;
use crate::frame::hello::{Answer, HELLO_BYTES_MAX, Hello, Lane};
use crate::frame::{PROTOCOL_MAX, PROTOCOL_MIN, SCHEMA_HASH};
use crate::identity::PeerIdentity;
use crate::ids::{Epoch, Incarnation, PeerId};
use crate::stack::{Connection, ReadExactError, RecvStream, SendStream, WriteError};

/// One lane of a link: a connection whose hello was answered with a welcome.
pub(super) struct LaneStream {
    pub(super) connection: Connection,
    pub(super) sending: SendStream,
    pub(super) receiving: RecvStream,
}

/// One listening endpoint of a fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Control,
    /// That of one bulk lane.
    Bulk(u8),
}

/// Who this side is, for hellos and answers.
#[derive(Clone, Debug)]
pub(super) struct Speaker {
    pub(super) cluster: String,
    pub(super) incarnation: Incarnation,
}

impl Speaker {
    pub(super) fn hello(&self, epoch: Epoch, from: PeerId, to: PeerId, lane: Lane) -> Hello {
        Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            schema: SCHEMA_HASH,
            epoch,
            incarnation: self.incarnation,
            from,
            to,
            lane,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.cluster.clone(),
        }
    }

    /// The checks that come first, in the order of what a stranger could get wrong.
    pub(super) fn check(&self, hello: &Hello, peer: &PeerIdentity, port: Port) -> Option<Answer> {
        let speaks = hello.protocol_min <= PROTOCOL_MAX
            && hello.protocol_max >= PROTOCOL_MIN
            && hello.schema == SCHEMA_HASH;
        if !speaks {
            return Some(Answer::Version { theirs: own_version() });
        }
        if hello.cluster != self.cluster || peer.cluster != self.cluster {
            return Some(Answer::Cluster { theirs: self.cluster.clone() });
        }
        let heard = match hello.lane {
            Lane::Control => Port::Control,
            Lane::Bulk { index, .. } => Port::Bulk(index),
            Lane::Blobs => Port::Bulk(0),
        };
        if heard != port {
            let cause = format!("this is endpoint {port:?}, not {heard:?}");
            return Some(Answer::Refused { cause });
        }
        None
    }
}

fn own_version() -> String {
    version(PROTOCOL_MIN, PROTOCOL_MAX, SCHEMA_HASH, env!("CARGO_PKG_VERSION"))
}

fn version(min: u16, max: u16, schema: u64, build: &str) -> String {
    format!("protocol {min}-{max}, schema {schema:016x}, build {build}")
}

/// What a refusing answer means for the side that said hello.
pub(super) fn refusal(answer: Answer, hello: &Hello, address: &str) -> TransportError {
    match answer {
        Answer::Version { theirs } => TransportError::VersionMismatch {
            ours: version(hello.protocol_min, hello.protocol_max, hello.schema, &hello.build),
            theirs,
        },
        Answer::Stale { current } => TransportError::StaleEpoch { current, offered: hello.epoch },
        Answer::Cluster { theirs } => {
            TransportError::WrongCluster { expected: theirs, found: hello.cluster.clone() }
        }
        Answer::Identity { expected, found } => TransportError::WrongIdentity { expected, found },
        Answer::Refused { cause } => TransportError::Connect {
            peer: format!("peer {}", hello.to),
            address: address.to_owned(),
            cause,
        },
        Answer::Welcome { .. } => TransportError::malformed("answer to a hello: welcome twice"),
    }
}

/// The caller's last word: it still wants the lane it was welcomed to. A caller that gave up while
/// its hello waited never says it.
const CONFIRMED: [u8; 1] = [1];

pub(super) async fn confirm(stream: &mut SendStream) -> Result<(), WriteError> {
    stream.write_all(&CONFIRMED).await
}

pub(super) async fn read_confirmation(stream: &mut RecvStream) -> Result<(), TransportError> {
    let mut byte = [0; 1];
    let read = stream.read_exact(&mut byte).await;
    read.map_err(|error| TransportError::closed(format!("connection: {error}")))?;
    if byte != CONFIRMED {
        return Err(TransportError::malformed("confirmation of a hello"));
    }
    Ok(())
}

pub(super) async fn write_hello(stream: &mut SendStream, body: &[u8]) -> Result<(), WriteError> {
    // `Hello` and `Answer` bound their texts far below u16::MAX.
    let len = u16::try_from(body.len()).unwrap_or(u16::MAX);
    stream.write_all(&len.to_le_bytes()).await?;
    stream.write_all(body).await
}

pub(super) async fn read_hello(stream: &mut RecvStream) -> Result<Vec<u8>, TransportError> {
    let lost = |error: ReadExactError| TransportError::closed(format!("connection: {error}"));
    let mut len = [0; 2];
    stream.read_exact(&mut len).await.map_err(lost)?;
    let len = usize::from(u16::from_le_bytes(len));
    if len > HELLO_BYTES_MAX {
        return Err(TransportError::FrameTooLarge {
            what: "hello",
            bytes: len as u64,
            limit: HELLO_BYTES_MAX as u64,
        });
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.map_err(lost)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::identity::Role;

    fn speaker(cluster: &str) -> Speaker {
        Speaker { cluster: cluster.to_owned(), incarnation: Incarnation(1) }
    }

    fn refused(change: impl Fn(&mut Hello)) -> Option<TransportError> {
        let mut hello =
            speaker("emoji").hello(Epoch(1), PeerId(0), PeerId(1), Lane::Bulk { index: 0, of: 2 });
        change(&mut hello);
        let peer = PeerIdentity::new(Role::Node, "n1", "emoji").unwrap();
        let answer = speaker("emoji").check(&hello, &peer, Port::Bulk(0))?;
        Some(refusal(answer, &hello, "127.0.0.1:1"))
    }

    #[test]
    fn another_protocol_or_schema_is_a_version_mismatch() {
        assert!(refused(|_| {}).is_none());
        let newer = refused(|hello| {
            hello.protocol_min = PROTOCOL_MAX + 1;
            hello.protocol_max = PROTOCOL_MAX + 2;
        });
        assert!(matches!(newer, Some(TransportError::VersionMismatch { .. })));
        let other = refused(|hello| hello.schema ^= 1);
        assert!(matches!(other, Some(TransportError::VersionMismatch { .. })));
        let wider = refused(|hello| hello.protocol_max = PROTOCOL_MAX + 9);
        assert!(wider.is_none());
    }

    #[test]
    fn another_cluster_or_the_wrong_port_is_refused() {
        let cluster = refused(|hello| hello.cluster = "glyphs".to_owned());
        assert!(matches!(cluster, Some(TransportError::WrongCluster { .. })));
        let lane = refused(|hello| hello.lane = Lane::Control);
        assert!(matches!(lane, Some(TransportError::Connect { .. })));
    }
}

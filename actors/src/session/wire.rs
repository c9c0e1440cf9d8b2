//! Which messages go which way on a session.
//!
//! Owns the two sides, which message is a heartbeat and which is followed by a blob. The messages
//! themselves are in [`crate::protocol`].

use crate::protocol::{ClientCall, ClientReply, FromCoordinator, MalformedMessage, ToCoordinator};

/// Largest blob of tensors that comes with a request, in bytes.
pub(crate) const INPUT_BLOB_BYTES_MAX: usize = 256 << 20;

/// Largest blob that comes with a result, in bytes.
pub(crate) const RESULT_BLOB_BYTES_MAX: usize = 1 << 30;

/// A message of the control protocol.
pub(crate) trait Message: Sized + Send + 'static {
    /// As bytes for a channel.
    fn encode(&self) -> Result<Vec<u8>, MalformedMessage>;

    /// From bytes of a channel.
    fn decode(bytes: &[u8]) -> Result<Self, MalformedMessage>;

    /// What a heartbeat of the channel is delivered as.
    fn heartbeat(sequence: u64) -> Self;

    /// Largest blob that follows this message, if one does.
    fn blob_bytes_max(&self) -> Option<usize>;
}

impl Message for ToCoordinator {
    fn encode(&self) -> Result<Vec<u8>, MalformedMessage> {
        self.to_bytes()
    }

    fn decode(bytes: &[u8]) -> Result<Self, MalformedMessage> {
        Self::from_bytes(bytes)
    }

    fn heartbeat(sequence: u64) -> Self {
        Self::Heartbeat { sequence }
    }

    fn blob_bytes_max(&self) -> Option<usize> {
        match self {
            Self::Client { call, .. } => match **call {
                ClientCall::Generate { inputs_follow: true, .. } => Some(INPUT_BLOB_BYTES_MAX),
                _ => None,
            },
            _ => None,
        }
    }
}

impl Message for FromCoordinator {
    fn encode(&self) -> Result<Vec<u8>, MalformedMessage> {
        self.to_bytes()
    }

    fn decode(bytes: &[u8]) -> Result<Self, MalformedMessage> {
        Self::from_bytes(bytes)
    }

    fn heartbeat(sequence: u64) -> Self {
        Self::Heartbeat { sequence }
    }

    fn blob_bytes_max(&self) -> Option<usize> {
        match self {
            Self::Reply { reply: ClientReply::Done { .. }, .. } => Some(RESULT_BLOB_BYTES_MAX),
            _ => None,
        }
    }
}

/// One side of a session.
pub(crate) trait Side: Send + Sync + 'static {
    /// What it hears.
    type In: Message;
    /// What it says.
    type Out: Message;
}

/// The coordinator's.
pub(crate) struct CoordinatorSide;

impl Side for CoordinatorSide {
    type In = ToCoordinator;
    type Out = FromCoordinator;
}

/// That of agents, workers and clients.
pub(crate) struct MemberSide;

impl Side for MemberSide {
    type In = FromCoordinator;
    type Out = ToCoordinator;
}

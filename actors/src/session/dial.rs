//! One attempt to reach the coordinator: dial, introduce, be welcomed.
//!
//! Owns the two ways there (the network; a channel inside this process) and which failures it is
//! pointless to try again after.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ditmesh_transport::control::{CONTROL_QUEUE_MESSAGES_MAX, ControlChannel, ControlEndpoint};
use ditmesh_transport::error::TransportError;
use ditmesh_transport::identity::PeerIdentity;

use super::handshake::{self, HandshakeError, Welcome};
use crate::coordinator::CoordinatorHandle;
use crate::protocol::Hello;

/// The way to the coordinator.
#[derive(Clone)]
pub(crate) enum Dialer {
    /// Over QUIC.
    Network {
        endpoint: Arc<ControlEndpoint>,
        /// `HOST:PORT`, looked up at each attempt: where a host's address changes with its life
        /// (a pod's does), the name stays.
        address: String,
        /// Who must be there.
        coordinator: PeerIdentity,
    },
    /// In this process.
    Local {
        coordinator: CoordinatorHandle,
        /// Who this side is.
        me: PeerIdentity,
        them: PeerIdentity,
    },
}

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) struct DialError {
    pub(crate) cause: String,
    /// Whether the coordinator may have noted this incarnation.
    pub(crate) introduced: bool,
    /// Whether another attempt would fail the same way.
    pub(crate) is_final: bool,
}

impl Dialer {
    /// Reaches the coordinator and is welcomed.
    pub(crate) async fn reach(
        &self,
        hello: Hello,
        deadline: Instant,
    ) -> Result<(ControlChannel, Welcome), DialError> {
        let mut channel = self.dial(deadline).await.map_err(|error| DialError {
            introduced: false,
            is_final: is_final(&error),
            cause: error.to_string(),
        })?;
        match handshake::introduce(&mut channel, hello, deadline).await {
            Ok(welcome) => Ok((channel, welcome)),
            Err(error) => Err(DialError {
                introduced: true,
                is_final: matches!(error, HandshakeError::Refused(_)),
                cause: error.to_string(),
            }),
        }
    }

    async fn dial(&self, deadline: Instant) -> Result<ControlChannel, TransportError> {
        match self {
            Self::Network { endpoint, address, coordinator } => {
                let found = look_up(address, endpoint.local_address(), coordinator, deadline);
                endpoint.connect(found.await?, coordinator, deadline).await
            }
            Self::Local { coordinator, me, them } => {
                let (mine, theirs) = ControlChannel::pair_between(
                    CONTROL_QUEUE_MESSAGES_MAX,
                    me.clone(),
                    them.clone(),
                );
                coordinator.admit(theirs, them.cluster.clone());
                Ok(mine)
            }
        }
    }
}

/// The address behind `name` that an endpoint at `from` can dial.
async fn look_up(
    name: &str,
    from: SocketAddr,
    who: &PeerIdentity,
    deadline: Instant,
) -> Result<SocketAddr, TransportError> {
    let failed = |cause: String| TransportError::Connect {
        peer: who.to_string(),
        address: name.into(),
        cause,
    };
    match tokio::time::timeout_at(deadline.into(), tokio::net::lookup_host(name)).await {
        Ok(Ok(mut found)) => found
            .find(|address| address.is_ipv4() == from.is_ipv4())
            .ok_or_else(|| failed(format!("it has no address that {} can reach", from.ip()))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("its name was not resolved before the deadline".into())),
    }
}

/// Certificates and builds do not mend themselves.
fn is_final(error: &TransportError) -> bool {
    matches!(
        error,
        TransportError::Untrusted { .. }
            | TransportError::WrongIdentity { .. }
            | TransportError::WrongCluster { .. }
            | TransportError::VersionMismatch { .. }
            | TransportError::Identity(_)
    )
}

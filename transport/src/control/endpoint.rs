//! Where control channels are dialled and accepted.
//!
//! Owns one UDP port with its thread and the queue of accepted channels. Invariants: a channel is
//! handed out only after both sides have verified certificates and versions; handshakes that take
//! too long or fail are dropped without disturbing others.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quinn_proto::ConnectionError;
use quinn_proto::crypto::rustls::HandshakeData;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use super::channel::ControlChannel;
use super::wire::{ReadFailure, greet, read_greeting};
use super::{ControlConfig, ControlHoldings, pump};
use crate::endpoint::{
    Congestion, EndpointSettings, Gate, GatePass, QuicEndpoint, close_code, connect_error,
};
use crate::error::TransportError;
use crate::identity::{Identity, PeerIdentity, open_server_crypto, verified_identity};
use crate::join::{self, JOIN_DEADLINE, JOINS_WAITING_MAX, Joining};
use crate::stack::{Connection, Endpoint, Incoming};

/// Channels that are accepted and not yet taken.
const ACCEPTED_MAX: usize = 64;

/// How long a handshake with its greeting may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Ethernet's packets: control messages are small and must pass everywhere.
const CONTROL_MTU_BYTES: u16 = 1452;

const CONTROL_WINDOW_BYTES: u32 = 1 << 20;

/// Of the window, for heartbeats alone.
const BEATS_WINDOW_BYTES: u32 = 4 << 10;

const CONTROL_SOCKET_BUFFER_BYTES: usize = 1 << 20;

/// Dials and accepts control channels on one UDP port.
pub struct ControlEndpoint {
    endpoint: QuicEndpoint,
    cluster: String,
    accepted: Mutex<mpsc::Receiver<ControlChannel>>,
    identity: Identity,
    joins: Mutex<mpsc::Receiver<Joining>>,
    gate: Gate,
}

impl ControlEndpoint {
    /// Listens. Needs no runtime: the endpoint has its own, on its own thread.
    ///
    /// # Errors
    /// [`TransportError::Bind`] (the port is taken), [`TransportError::Identity`].
    pub fn bind(config: &ControlConfig) -> Result<Self, TransportError> {
        let settings = EndpointSettings {
            name: "ditmesh-control",
            bind: config.bind,
            mtu_bytes: CONTROL_MTU_BYTES,
            idle_timeout: config.idle_timeout,
            keep_alive: config.keep_alive,
            receive_window_bytes: CONTROL_WINDOW_BYTES,
            window_reserve_bytes: BEATS_WINDOW_BYTES,
            socket_buffer_bytes: CONTROL_SOCKET_BUFFER_BYTES,
            congestion: Congestion::default(),
        };
        let endpoint = QuicEndpoint::bind(&config.identity, &settings)?;
        let cluster = config.identity.subject().cluster.clone();
        let (accepting, accepted) = mpsc::channel(ACCEPTED_MAX);
        let (joining, joins) = mpsc::channel(JOINS_WAITING_MAX);
        let queues = Queues { accepting, joining };
        let gate = Gate::default();
        endpoint.spawn(accept_all(endpoint.port().clone(), cluster.clone(), queues, gate.clone()));
        Ok(Self {
            endpoint,
            cluster,
            accepted: Mutex::new(accepted),
            identity: config.identity.clone(),
            joins: Mutex::new(joins),
            gate,
        })
    }

    /// Callers that have not come through the door so far: no certificate of the cluster, another
    /// protocol, too slow, too many at a time.
    pub fn callers_refused(&self) -> u64 {
        self.gate.refused_total()
    }

    /// What it holds just now.
    pub fn holdings(&self) -> ControlHoldings {
        let (connections, streams) = self.endpoint.port().open();
        ControlHoldings { connections, streams, callers: self.gate.under_way() }
    }

    /// Lets machines without a certificate ask to join, or no longer.
    ///
    /// # Errors
    /// [`TransportError::Identity`].
    pub fn open_door(&self, open: bool) -> Result<(), TransportError> {
        let crypto = match open {
            true => Some(open_server_crypto(&self.identity, join::ALPN)?),
            false => None,
        };
        self.endpoint.accept_by(crypto);
        Ok(())
    }

    /// The next question of a machine that wants to join.
    ///
    /// # Errors
    /// [`TransportError::Closed`] after [`ControlEndpoint::close`].
    pub async fn next_joining(&self) -> Result<Joining, TransportError> {
        let joining = self.joins.lock().await.recv().await;
        joining.ok_or_else(|| TransportError::closed("the control endpoint"))
    }

    /// Where this endpoint listens.
    pub fn local_address(&self) -> SocketAddr {
        self.endpoint.local()
    }

    /// Dials, again and again while nobody answers, and makes sure that `expected` is there.
    ///
    /// # Errors
    /// [`TransportError::Connect`] when nobody answers before the deadline,
    /// [`TransportError::Untrusted`], [`TransportError::WrongIdentity`],
    /// [`TransportError::VersionMismatch`].
    pub async fn connect(
        &self,
        address: SocketAddr,
        expected: &PeerIdentity,
        deadline: Instant,
    ) -> Result<ControlChannel, TransportError> {
        let dialer = self.endpoint.dialer();
        let expected = expected.clone();
        let dialling = self.endpoint.spawn(async move {
            let who = expected.to_string();
            let connection = dialer.dial(&who, address, deadline).await?;
            let greeted = timeout_until(deadline, greet_first(&connection, address, &expected));
            greeted.await.unwrap_or_else(|| {
                Err(TransportError::Connect {
                    peer: who,
                    address: address.to_string(),
                    cause: "it did not answer the greeting before the deadline".to_owned(),
                })
            })
        });
        dialling.await.unwrap_or_else(|_| Err(TransportError::closed("the control endpoint")))
    }

    /// The next channel that somebody dialled; look at its
    /// [`peer`](ControlChannel::peer) to decide what it may do.
    ///
    /// # Errors
    /// [`TransportError::Closed`] after [`ControlEndpoint::close`].
    pub async fn accept(&self) -> Result<ControlChannel, TransportError> {
        let accepted = self.accepted.lock().await.recv().await;
        accepted.ok_or_else(|| TransportError::closed("the control endpoint"))
    }

    /// The cluster whose members can connect.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Waits until every channel has ended and said its last words: drop or close the channels
    /// first, then this, then [`ControlEndpoint::close`]. False when the deadline passed first.
    pub async fn flushed(&self, deadline: Instant) -> bool {
        let port = self.endpoint.port().clone();
        let idle = async move { timeout_until(deadline, port.wait_idle()).await.is_some() };
        self.endpoint.spawn(idle).await.unwrap_or(false)
    }

    /// Closes every channel of this endpoint at once, with what they still queue, and stops
    /// listening.
    pub fn close(&self, reason: &str) {
        self.endpoint.close(reason);
    }
}

/// Where callers go.
#[derive(Clone)]
struct Queues {
    accepting: mpsc::Sender<ControlChannel>,
    joining: mpsc::Sender<Joining>,
}

/// Who came in.
enum Caller {
    Member(ControlChannel),
    /// Asked its question and has its answer.
    Joiner,
}

async fn accept_all(endpoint: Endpoint, cluster: String, queues: Queues, gate: Gate) {
    while let Some((incoming, pass)) = gate.next(&endpoint).await {
        let (cluster, queues, gate) = (cluster.clone(), queues.clone(), gate.clone());
        tokio::spawn(async move {
            let from = incoming.remote_address();
            let greeted = greet_second(incoming, pass, &cluster, queues.joining);
            match timeout(HANDSHAKE_TIMEOUT + JOIN_DEADLINE, greeted).await {
                // Without a receiver the endpoint is gone and the channel with it.
                Ok(Ok(Caller::Member(channel))) => drop(queues.accepting.send(channel).await),
                Ok(Ok(Caller::Joiner)) => {}
                Ok(Err(error)) => gate.refused(from, &error),
                Err(_) => gate.refused(from, &TransportError::deadline("a caller's handshake")),
            }
        });
    }
}

/// The dialling side speaks first; the answer shows that its certificate was accepted.
async fn greet_first(
    connection: &Connection,
    address: SocketAddr,
    expected: &PeerIdentity,
) -> Result<ControlChannel, TransportError> {
    let found = verified_identity(connection.peer_identity()).map_err(TransportError::malformed)?;
    if found != *expected {
        connection.close(close_code::REFUSED, b"not the expected peer");
        return Err(TransportError::WrongIdentity {
            expected: expected.to_string(),
            found: found.to_string(),
        });
    }
    let failed = |cause: String| match connection.close_reason() {
        Some(error) => connect_error(&found.to_string(), address, &error),
        None => {
            TransportError::Connect { peer: found.to_string(), address: address.to_string(), cause }
        }
    };
    let (mut sending, mut receiving) =
        connection.open_bi().await.map_err(|error| failed(error.to_string()))?;
    greet(&mut sending).await.map_err(|error| failed(error.to_string()))?;
    match read_greeting(&mut receiving).await {
        Ok(()) => {}
        Err(ReadFailure::Lost(cause)) => return Err(failed(cause)),
        Err(ReadFailure::Protocol(error)) => return Err(error),
    }
    Ok(pump::start(connection.clone(), sending, receiving, found))
}

async fn greet_second(
    incoming: Incoming,
    pass: GatePass,
    cluster: &str,
    joining: mpsc::Sender<Joining>,
) -> Result<Caller, TransportError> {
    let from = incoming.remote_address();
    let lost = |error: &ConnectionError| connect_error("the caller", from, error);
    let shaken = timeout(HANDSHAKE_TIMEOUT, incoming).await;
    let connection = shaken
        .map_err(|_| TransportError::deadline("a caller's handshake"))?
        .map_err(|error| lost(&error))?;
    if speaks_join(&connection) {
        // It keeps its place at the gate: a stranger is a stranger until it is gone.
        join::answer(connection, joining).await?;
        drop(pass);
        return Ok(Caller::Joiner);
    }
    drop(pass);
    let greeted = timeout(HANDSHAKE_TIMEOUT, greet_member(connection, cluster)).await;
    greeted.map_err(|_| TransportError::deadline("a caller's greeting"))?.map(Caller::Member)
}

/// Whether the caller chose the joiners' protocol.
fn speaks_join(connection: &Connection) -> bool {
    let data = connection.handshake_data().and_then(|any| any.downcast::<HandshakeData>().ok());
    data.and_then(|data| data.protocol).is_some_and(|protocol| protocol == join::ALPN)
}

async fn greet_member(
    connection: Connection,
    cluster: &str,
) -> Result<ControlChannel, TransportError> {
    let from = connection.remote_address();
    let lost = |error: &ConnectionError| connect_error("the caller", from, error);
    let peer = verified_identity(connection.peer_identity()).map_err(TransportError::malformed)?;
    if peer.cluster != cluster {
        connection.close(close_code::REFUSED, b"wrong cluster");
        return Err(TransportError::WrongCluster {
            expected: cluster.to_owned(),
            found: peer.cluster,
        });
    }
    let (mut sending, mut receiving) =
        connection.accept_bi().await.map_err(|error| lost(&error))?;
    let gone = |cause: String| TransportError::SessionLost { peer: peer.to_string(), cause };
    greet(&mut sending).await.map_err(|error| gone(error.to_string()))?;
    match read_greeting(&mut receiving).await {
        Ok(()) => {}
        Err(ReadFailure::Lost(cause)) => return Err(gone(cause)),
        Err(ReadFailure::Protocol(error)) => {
            connection.close(close_code::PROTOCOL, error.to_string().as_bytes());
            return Err(error);
        }
    }
    Ok(pump::start(connection, sending, receiving, peer))
}

async fn timeout_until<F: Future>(deadline: Instant, future: F) -> Option<F::Output> {
    tokio::time::timeout_at(deadline.into(), future).await.ok()
}

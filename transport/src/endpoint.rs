//! One UDP port: where QUIC connections of this crate live.
//!
//! Owns the socket, the tuning of QUIC, and the gate for strangers; the one-thread runtime that it
//! lives in may be shared with other endpoints. Does not know what is said on a connection.
//! Invariants: nothing of one endpoint runs in another runtime unless it is
//! moved there; closing tells the peers, and waits at most [`FLUSH_TIMEOUT`] for that.

mod cause;
mod congestion;
mod gate;
mod socket;
mod thread;
mod tuning;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::{ClientConfig, ConnectionError, ServerConfig, VarInt};

pub(crate) use cause::{close_cause, close_code, connect_error};
pub(crate) use gate::{Gate, GatePass};
pub use gate::{HANDSHAKES_MAX, HANDSHAKES_PER_HOST_MAX, HANDSHAKES_UNPROVEN_MAX};
pub(crate) use thread::EndpointThread;
pub use tuning::Congestion;
pub(crate) use tuning::{WINDOW_BYTES_MIN, window_bytes};
use tuning::{endpoint_config, transport_config};

use crate::error::TransportError;
use crate::identity::{Identity, client_crypto, server_crypto};
use crate::stack::{Connection, Endpoint};

/// The most callers that wait to be looked at.
const INCOMING_MAX: usize = 1024;

/// How long closing may take until the peers have been told.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(50);

/// What packets of strangers may take until their handshake is looked at, in bytes.
const INCOMING_BYTES_MAX: u64 = 8 << 20;

/// The same of one stranger: a client's first flight.
const INCOMING_ONE_BYTES_MAX: u64 = 64 << 10;

/// How one endpoint is set up.
#[derive(Clone, Debug)]
pub(crate) struct EndpointSettings {
    /// For the thread's name and the log.
    pub(crate) name: &'static str,
    pub(crate) bind: SocketAddr,
    /// Largest UDP payload, in bytes.
    pub(crate) mtu_bytes: u16,
    pub(crate) idle_timeout: Duration,
    pub(crate) keep_alive: Duration,
    /// Flow-control window; never above what the socket's buffer holds.
    pub(crate) receive_window_bytes: u32,
    /// What one stream leaves of it to the others, so that one that nobody reads stops no other.
    pub(crate) window_reserve_bytes: u32,
    pub(crate) socket_buffer_bytes: usize,
    pub(crate) congestion: Congestion,
}

/// A bound endpoint that dials and accepts.
pub(crate) struct QuicEndpoint {
    endpoint: Endpoint,
    client: ClientConfig,
    /// What accepts members only.
    server: ServerConfig,
    tls_name: String,
    local: SocketAddr,
    receive_window_bytes: u32,
    thread: Arc<EndpointThread>,
    closed: AtomicBool,
}

impl QuicEndpoint {
    /// Binds, on a thread of its own.
    pub(crate) fn bind(
        identity: &Identity,
        settings: &EndpointSettings,
    ) -> Result<Self, TransportError> {
        Self::bind_on(&EndpointThread::start(settings.name)?, identity, settings)
    }

    /// Binds, on this thread.
    pub(crate) fn bind_on(
        thread: &Arc<EndpointThread>,
        identity: &Identity,
        settings: &EndpointSettings,
    ) -> Result<Self, TransportError> {
        let udp = socket::bind(settings)?;
        let receive_window_bytes =
            settings.receive_window_bytes.min(udp.receive_bytes).max(WINDOW_BYTES_MIN);
        let transport = Arc::new(transport_config(settings, receive_window_bytes)?);
        let (crypto, tls_name) = client_crypto(identity)?;
        let mut client = ClientConfig::new(crypto);
        client.transport_config(Arc::clone(&transport));
        let mut server = ServerConfig::with_crypto(server_crypto(identity)?);
        server
            .transport_config(transport)
            .max_incoming(INCOMING_MAX)
            .incoming_buffer_size(INCOMING_ONE_BYTES_MAX)
            .incoming_buffer_size_total(INCOMING_BYTES_MAX)
            .migration(false);
        let endpoint = {
            let _in_runtime = thread.handle().enter();
            Endpoint::new(endpoint_config(settings)?, Some(server.clone()), udp.socket)
        };
        let endpoint =
            endpoint.map_err(|error| TransportError::system("start an endpoint", error))?;
        let local = endpoint.local_addr();
        thread.enter();
        let (thread, closed) = (Arc::clone(thread), AtomicBool::new(false));
        Ok(Self { endpoint, client, server, tls_name, local, receive_window_bytes, thread, closed })
    }

    /// Accepts new callers by this TLS from now on; the members' own again with `None`.
    pub(crate) fn accept_by(&self, crypto: Option<Arc<QuicServerConfig>>) {
        let mut server = self.server.clone();
        if let Some(crypto) = crypto {
            server.crypto = crypto;
        }
        self.endpoint.set_server_config(server);
    }

    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    pub(crate) fn receive_window_bytes(&self) -> u32 {
        self.receive_window_bytes
    }

    /// Runs on this endpoint's thread.
    pub(crate) fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.thread.handle().spawn(future)
    }

    pub(crate) fn port(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What dialing needs, to take along to this endpoint's thread.
    pub(crate) fn dialer(&self) -> Dialer {
        Dialer {
            endpoint: self.endpoint.clone(),
            client: self.client.clone(),
            tls_name: self.tls_name.clone(),
        }
    }

    /// The thread it lives on.
    pub(crate) fn thread(&self) -> &EndpointThread {
        &self.thread
    }

    /// Tells every peer, and stops the thread if no other endpoint lives there.
    pub(crate) fn close(&self, cause: &str) {
        self.endpoint.close(VarInt::from_u32(0), cause.as_bytes());
        if !self.closed.swap(true, Ordering::Relaxed) {
            self.thread.leave(FLUSH_TIMEOUT);
        }
    }
}

impl Drop for QuicEndpoint {
    fn drop(&mut self) {
        self.close("the endpoint was dropped");
    }
}

/// Dials from an endpoint; must run on its thread.
pub(crate) struct Dialer {
    endpoint: Endpoint,
    client: ClientConfig,
    tls_name: String,
}

impl Dialer {
    /// Dials again while nobody answers, until the deadline.
    pub(crate) async fn dial(
        &self,
        peer: &str,
        address: SocketAddr,
        deadline: Instant,
    ) -> Result<Connection, TransportError> {
        let unreachable = |cause: String| TransportError::Connect {
            peer: peer.to_owned(),
            address: address.to_string(),
            cause,
        };
        loop {
            let connecting = self
                .endpoint
                .connect(self.client.clone(), address, &self.tls_name)
                .map_err(|error| unreachable(error.to_string()))?;
            match tokio::time::timeout_at(deadline.into(), connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(ConnectionError::TimedOut)) if Instant::now() < deadline => {}
                Ok(Err(error)) => return Err(connect_error(peer, address, &error)),
                Err(_) => return Err(unreachable("nobody answered before the deadline".into())),
            }
        }
    }
}

//! QUIC on one UDP port: the protocol is quinn's (`quinn-proto`, which does no I/O), the I/O is
//! here.
//!
//! Owns the socket, the memory that packets are received into, timers, and the handles of
//! connections and streams. One task per port (`turn.rs`) does everything in turns: what is to be
//! sent, what has come, who is to be woken. Packets stay in the memory that the kernel wrote them
//! to until a stream hands their bytes out, and many are sent and received by one system call; the
//! driver that comes with quinn copies every packet once more, passes it through a queue and a
//! second task, and sends at most ten at once. Does not know TLS settings, gates, or what is said.
//! Invariants: locks are taken in the order port, connection, work list, and never across an await;
//! a connection ends when its last handle is dropped; whoever waits on a connection is woken when
//! it ends, for whatever reason, the end of the task included.

mod caller;
mod connection;
mod port;
mod receiving;
mod sending;
#[allow(unsafe_code)]
mod slots;
mod socket;
mod turn;
mod work;

use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::{
    ClientConfig, ConnectError, ConnectionError, EndpointConfig, ServerConfig, VarInt,
};

pub(crate) use caller::Incoming;
pub(crate) use connection::Connection;
pub(crate) use receiving::{ReadError, ReadExactError, RecvStream};
pub(crate) use sending::{SendStream, WriteError};

use port::Port;
use socket::Socket;

/// A port that dials and accepts; clones share it.
#[derive(Clone)]
pub(crate) struct Endpoint {
    port: Arc<Port>,
    _handle: Arc<Handle>,
}

/// The last one dropped lets the task end once no connection is left.
struct Handle(Arc<Port>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.core().abandoned = true;
        self.0.work.wake();
    }
}

impl Endpoint {
    /// Starts on this socket; must be called inside the runtime that is to drive it.
    pub(crate) fn new(
        config: EndpointConfig,
        server: Option<ServerConfig>,
        socket: std::net::UdpSocket,
    ) -> io::Result<Self> {
        let port = Arc::new(Port::new(config, server, Socket::new(socket)?));
        turn::start(&port);
        Ok(Self { port: Arc::clone(&port), _handle: Arc::new(Handle(port)) })
    }

    /// Dials; the future ends with the handshake.
    pub(crate) fn connect(
        &self,
        config: ClientConfig,
        to: SocketAddr,
        name: &str,
    ) -> Result<
        impl Future<Output = Result<Connection, ConnectionError>> + Send + use<>,
        ConnectError,
    > {
        let to = match (self.port.socket.local().is_ipv6(), to) {
            (true, SocketAddr::V4(v4)) => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            (false, SocketAddr::V6(_)) => return Err(ConnectError::InvalidRemoteAddress(to)),
            _ => to,
        };
        let mut core = self.port.core();
        if core.is_closing() {
            return Err(ConnectError::EndpointStopping);
        }
        let (handle, protocol) = core.endpoint.connect(Instant::now(), config, to, name)?;
        let connection = core.adopt(&self.port.work, handle, protocol);
        Ok(connection.established())
    }

    /// The next caller; `None` when the endpoint is closed.
    pub(crate) async fn accept(&self) -> Option<Incoming> {
        let caller = poll_fn(|context| {
            let mut core = self.port.core();
            if core.is_closing() {
                return Poll::Ready(None);
            }
            match core.callers.pop_front() {
                Some(caller) => Poll::Ready(Some(caller)),
                None => core.wait(context),
            }
        });
        Some(Incoming::new(caller.await?, self.clone()))
    }

    /// How callers are accepted from now on.
    pub(crate) fn set_server_config(&self, server: ServerConfig) {
        self.port.core().endpoint.set_server_config(Some(Arc::new(server)));
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.port.socket.local()
    }

    /// How many connections there are, and how many streams on them: those that the peer has
    /// opened, and own ones that it has not acknowledged.
    pub(crate) fn open(&self) -> (usize, usize) {
        let connections: Vec<_> = self.port.core().connections.values().cloned().collect();
        let streams = connections.iter().map(|connection| connection.lock().streams());
        (connections.len(), streams.sum())
    }

    /// Ends all connections, and accepts no more.
    pub(crate) fn close(&self, code: VarInt, reason: &[u8]) {
        self.port.core().close(code, Bytes::copy_from_slice(reason));
    }

    /// Waits until every connection has ended and its last words had time to arrive.
    pub(crate) async fn wait_idle(&self) {
        poll_fn(|context| {
            let mut core = self.port.core();
            match core.connections.is_empty() {
                true => Poll::Ready(()),
                false => core.wait(context),
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests;

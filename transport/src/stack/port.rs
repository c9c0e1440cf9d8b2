//! What a port knows: the protocol's endpoint, its connections, callers that nobody looked at yet.
//!
//! Owns adopting, routing and closing. Does not read or write sockets, but for answers that the
//! protocol gives at once. Invariant: a closed port adopts connections only to close them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use quinn_proto::{
    ConnectionEvent, ConnectionHandle, DatagramEvent, EndpointConfig, Incoming, ServerConfig,
    Transmit, VarInt,
};

use super::connection::{Connection, Shared, leave_waker};
use super::socket::{Arrived, Socket};
use super::work::Work;

pub(super) struct Port {
    core: Mutex<Core>,
    pub(super) socket: Socket,
    pub(super) work: Arc<Work>,
}

pub(super) struct Core {
    pub(super) endpoint: quinn_proto::Endpoint,
    pub(super) connections: HashMap<ConnectionHandle, Arc<Shared>>,
    /// Bounded by the server's `max_incoming`.
    pub(super) callers: VecDeque<Incoming>,
    /// Those who wait for a caller, or for the last connection to end.
    waiting: Vec<Waker>,
    closing: Option<(VarInt, Bytes)>,
    /// No handle is left.
    pub(super) abandoned: bool,
}

impl Port {
    pub(super) fn new(
        config: EndpointConfig,
        server: Option<ServerConfig>,
        socket: Socket,
    ) -> Self {
        let server = server.map(Arc::new);
        let finds_mtu = !socket.may_fragment();
        let endpoint = quinn_proto::Endpoint::new(Arc::new(config), server, finds_mtu, None);
        let core = Core {
            endpoint,
            connections: HashMap::new(),
            callers: VecDeque::new(),
            waiting: Vec::new(),
            closing: None,
            abandoned: false,
        };
        Self { core: Mutex::new(core), socket, work: Arc::default() }
    }

    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what the protocol says at once to somebody without a connection; what the kernel does
    /// not take is lost, as on the network.
    pub(super) fn answer(&self, transmit: &Transmit, bytes: &[u8]) {
        if let Some(bytes) = bytes.get(..transmit.size) {
            let _ = self.socket.try_send(transmit, bytes);
        }
    }

    /// Whom a packet is for, and what it means there.
    pub(super) fn route(
        &self,
        core: &mut Core,
        arrived: &Arrived,
        packet: BytesMut,
        now: Instant,
    ) -> Option<(ConnectionHandle, ConnectionEvent)> {
        let mut answer = Vec::new();
        let Arrived { from, to, ecn, .. } = *arrived;
        match core.endpoint.handle(now, from, to, ecn, packet, &mut answer)? {
            DatagramEvent::ConnectionEvent(handle, event) => return Some((handle, event)),
            DatagramEvent::NewConnection(caller) if core.closing.is_some() => {
                let refusal = core.endpoint.refuse(caller, &mut answer);
                self.answer(&refusal, &answer);
            }
            DatagramEvent::NewConnection(caller) => {
                core.callers.push_back(caller);
                core.wake_waiting();
            }
            DatagramEvent::Response(transmit) => self.answer(&transmit, &answer),
        }
        None
    }

    /// Nobody drives it any more.
    pub(super) fn end(&self) {
        self.work.end();
        let mut core = self.core();
        core.close(VarInt::from_u32(0), Bytes::new());
        core.connections.clear();
        core.wake_waiting();
    }
}

impl Core {
    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Nobody needs this port any more.
    pub(super) fn is_done(&self) -> bool {
        self.abandoned && self.connections.is_empty()
    }

    /// A connection that the protocol has just begun.
    pub(super) fn adopt(
        &mut self,
        work: &Arc<Work>,
        handle: ConnectionHandle,
        protocol: quinn_proto::Connection,
    ) -> Connection {
        let shared = Shared::new(handle, protocol, Arc::clone(work));
        if let Some((code, reason)) = &self.closing {
            shared.close(*code, reason.clone());
        }
        self.connections.insert(handle, Arc::clone(&shared));
        shared.touch();
        Connection::new(shared)
    }

    /// The protocol has forgotten this connection.
    pub(super) fn forget(&mut self, handle: ConnectionHandle) {
        self.connections.remove(&handle);
        if self.connections.is_empty() {
            self.wake_waiting();
        }
    }

    pub(super) fn close(&mut self, code: VarInt, reason: Bytes) {
        for connection in self.connections.values() {
            connection.close(code, reason.clone());
        }
        for caller in self.callers.drain(..) {
            self.endpoint.ignore(caller);
        }
        self.closing.get_or_insert((code, reason));
        self.wake_waiting();
    }

    pub(super) fn wait<T>(&mut self, context: &Context<'_>) -> Poll<T> {
        leave_waker(&mut self.waiting, context.waker());
        Poll::Pending
    }

    fn wake_waiting(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }
}

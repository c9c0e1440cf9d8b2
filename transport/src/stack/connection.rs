//! One connection: what its handles share with the task that drives it.
//!
//! Owns the protocol's state of it, and the wakers of those who wait. Invariants: the first reason
//! for which it ended is the one that everybody is told; when it has ended everybody is woken; when
//! the last handle (streams count) is dropped it is closed.

use std::any::Any;
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{ConnectionError, ConnectionHandle, Dir, Event, StreamEvent, StreamId, VarInt};

use super::receiving::RecvStream;
use super::sending::SendStream;
use super::work::Work;

/// A handle; clones share the connection.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Held>);

/// The last one dropped closes.
pub(super) struct Held(Arc<Shared>);

pub(super) struct Shared {
    state: Mutex<State>,
    work: Arc<Work>,
}

pub(super) struct State {
    pub(super) handle: ConnectionHandle,
    pub(super) protocol: quinn_proto::Connection,
    /// It is in the work list.
    pub(super) queued: bool,
    /// When it is to be looked at next, as the port's task noted it.
    pub(super) deadline: Option<Instant>,
    connected: bool,
    ended: Option<ConnectionError>,
    /// By stream: who waits to read, to write, and for the peer to have read everything.
    pub(super) readers: HashMap<StreamId, Waker>,
    pub(super) writers: HashMap<StreamId, Waker>,
    pub(super) finishers: HashMap<StreamId, Waker>,
    /// Who waits for anything else.
    waiting: Vec<Waker>,
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(Arc::new(Held(shared)))
    }

    /// Waits for the end of the handshake.
    pub(super) async fn established(self) -> Result<Self, ConnectionError> {
        self.0.0.wait(|state| state.connected.then_some(())).await?;
        Ok(self)
    }

    pub(crate) async fn open_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        let id = self.0.0.wait(|state| state.protocol.streams().open(Dir::Bi)).await?;
        Ok(self.both(id))
    }

    pub(crate) async fn accept_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        let id = self.0.0.wait(|state| state.protocol.streams().accept(Dir::Bi)).await?;
        Ok(self.both(id))
    }

    pub(crate) async fn open_uni(&self) -> Result<SendStream, ConnectionError> {
        let id = self.0.0.wait(|state| state.protocol.streams().open(Dir::Uni)).await?;
        Ok(SendStream::new(Arc::clone(&self.0), id))
    }

    pub(crate) async fn accept_uni(&self) -> Result<RecvStream, ConnectionError> {
        let id = self.0.0.wait(|state| state.protocol.streams().accept(Dir::Uni)).await?;
        Ok(RecvStream::new(Arc::clone(&self.0), id))
    }

    fn both(&self, id: StreamId) -> (SendStream, RecvStream) {
        (SendStream::new(Arc::clone(&self.0), id), RecvStream::new(Arc::clone(&self.0), id))
    }

    /// Ends it; what is not acknowledged yet is lost.
    pub(crate) fn close(&self, code: VarInt, reason: &[u8]) {
        self.0.0.close(code, Bytes::copy_from_slice(reason));
    }

    /// Waits for its end.
    pub(crate) async fn closed(&self) -> ConnectionError {
        poll_fn(|context| {
            let mut state = self.0.0.lock();
            match &state.ended {
                Some(error) => Poll::Ready(error.clone()),
                None => {
                    leave_waker(&mut state.waiting, context.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Why it ended, if it has.
    pub(crate) fn close_reason(&self) -> Option<ConnectionError> {
        self.0.0.lock().ended.clone()
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.0.0.lock().protocol.remote_address()
    }

    /// Estimated round trip.
    pub(crate) fn rtt(&self) -> Duration {
        self.0.0.lock().protocol.rtt()
    }

    pub(crate) fn set_receive_window(&self, bytes: VarInt) {
        self.0.0.lock().protocol.set_receive_window(bytes);
        self.0.0.touch();
    }

    /// How many one-way streams the peer may have open.
    pub(crate) fn set_max_concurrent_uni_streams(&self, count: VarInt) {
        self.0.0.lock().protocol.set_max_concurrent_streams(Dir::Uni, count);
        self.0.0.touch();
    }

    /// The certificates that the peer has shown.
    pub(crate) fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.0.0.lock().protocol.crypto_session().peer_identity()
    }

    /// What TLS agreed on.
    pub(crate) fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.0.0.lock().protocol.crypto_session().handshake_data()
    }
}

impl Held {
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.0.lock().protocol.is_closed() {
            self.0.close(VarInt::from_u32(0), Bytes::new());
        }
    }
}

impl Shared {
    pub(super) fn new(
        handle: ConnectionHandle,
        protocol: quinn_proto::Connection,
        work: Arc<Work>,
    ) -> Arc<Self> {
        let state = State {
            handle,
            protocol,
            queued: false,
            deadline: None,
            connected: false,
            ended: None,
            readers: HashMap::new(),
            writers: HashMap::new(),
            finishers: HashMap::new(),
            waiting: Vec::new(),
        };
        Arc::new(Self { state: Mutex::new(state), work })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There may be something to send.
    pub(super) fn touch(self: &Arc<Self>) {
        self.touch_locked(&mut self.lock());
    }

    /// The same with the lock held.
    pub(super) fn touch_locked(self: &Arc<Self>, state: &mut State) {
        if !std::mem::replace(&mut state.queued, true) {
            self.work.push(Arc::clone(self));
        }
    }

    pub(super) fn close(self: &Arc<Self>, code: VarInt, reason: Bytes) {
        let mut state = self.lock();
        state.protocol.close(Instant::now(), code, reason);
        state.end(ConnectionError::LocallyClosed);
        self.touch_locked(&mut state);
    }

    /// Waits until `look` finds something, or for the end.
    async fn wait<T>(
        self: &Arc<Self>,
        mut look: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, ConnectionError> {
        poll_fn(move |context| {
            let mut state = self.lock();
            if let Some(found) = look(&mut state) {
                // A stream that was accepted makes room for another, which the peer is told.
                self.touch_locked(&mut state);
                return Poll::Ready(Ok(found));
            }
            if let Some(error) = &state.ended {
                return Poll::Ready(Err(error.clone()));
            }
            leave_waker(&mut state.waiting, context.waker());
            Poll::Pending
        })
        .await
    }
}

impl State {
    /// Those that the peer has opened, and own ones that it has not acknowledged.
    pub(super) fn streams(&mut self) -> usize {
        let streams = self.protocol.streams();
        let theirs = [Dir::Bi, Dir::Uni].map(|dir| streams.remote_open_streams(dir));
        let theirs: u64 = theirs.iter().sum();
        streams.send_streams() + usize::try_from(theirs).unwrap_or(usize::MAX)
    }

    pub(super) fn ended(&self) -> Option<&ConnectionError> {
        self.ended.as_ref()
    }

    /// It is over: everybody learns why.
    fn end(&mut self, reason: ConnectionError) {
        self.ended.get_or_insert(reason);
        let streams = [&mut self.readers, &mut self.writers, &mut self.finishers];
        streams.into_iter().flat_map(HashMap::drain).for_each(|(_, waker)| waker.wake());
        self.waiting.drain(..).for_each(Waker::wake);
    }

    /// Wakes those for whom something has happened.
    pub(super) fn deliver(&mut self) {
        while let Some(event) = self.protocol.poll() {
            match event {
                Event::Connected => {
                    self.connected = true;
                    self.waiting.drain(..).for_each(Waker::wake);
                }
                Event::ConnectionLost { reason } => self.end(reason),
                Event::Stream(StreamEvent::Readable { id }) => wake(&mut self.readers, id),
                Event::Stream(StreamEvent::Writable { id }) => wake(&mut self.writers, id),
                Event::Stream(StreamEvent::Finished { id }) => wake(&mut self.finishers, id),
                Event::Stream(StreamEvent::Stopped { id, .. }) => {
                    wake(&mut self.finishers, id);
                    wake(&mut self.writers, id);
                }
                Event::Stream(StreamEvent::Opened { .. } | StreamEvent::Available { .. }) => {
                    self.waiting.drain(..).for_each(Waker::wake);
                }
                Event::HandshakeDataReady | Event::DatagramReceived | Event::DatagramsUnblocked => {
                }
            }
        }
    }
}

fn wake(wakers: &mut HashMap<StreamId, Waker>, id: StreamId) {
    if let Some(waker) = wakers.remove(&id) {
        waker.wake();
    }
}

/// At most one per task, however often it asks.
pub(super) fn leave_waker(waiting: &mut Vec<Waker>, waker: &Waker) {
    if !waiting.iter().any(|left| left.will_wake(waker)) {
        waiting.push(waker.clone());
    }
}

//! The task that drives a port, turn by turn.
//!
//! Owns packets on their way, deadlines and the order of a turn: send what there is to send,
//! receive what has come, wake those it is for. They run before the next turn, so that packets are
//! read while they are in the cache, and what they write, and the acknowledgement of all that came,
//! leaves with it.
//! Invariants: a turn sends at most [`WRITES_MAX`] messages per connection and receives once; the
//! task ends when no handle and no connection is left, and whoever waits then or when it is dropped
//! is woken.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use quinn_proto::{ConnectionHandle, Transmit};
use tokio::time::Sleep;

use super::connection::{Shared, State};
use super::port::{Core, Port};
use super::slots::Slots;
use super::socket::Arrived;

/// Messages that a connection sends in a turn.
const WRITES_MAX: usize = 4;

/// Starts it in the present runtime.
pub(super) fn start(port: &Arc<Port>) {
    let mut turns = Turns::new(Arc::clone(port));
    tokio::spawn(async move {
        let ended = std::future::poll_fn(|context| turns.turn(context)).await;
        if let Err(error) = ended {
            tracing::error!(%error, at = %turns.port.socket.local(), "a UDP port cannot be read");
        }
    });
}

struct Turns {
    port: Arc<Port>,
    slots: Slots,
    arrived: Vec<Arrived>,
    /// Packets being written, or waiting until the socket takes them.
    out: Vec<u8>,
    unsent: Option<Transmit>,
    /// Connections with something to do.
    ready: VecDeque<Arc<Shared>>,
    /// Connections that something has come for in this turn.
    reached: Vec<Arc<Shared>>,
    /// When connections are to be looked at, at most one entry each.
    deadlines: BTreeSet<(Instant, ConnectionHandle)>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// When the sleep ends; a later deadline lets it end early once rather than be moved each turn.
    sleeps_until: Option<Instant>,
}

/// What became of a message.
enum Sent {
    Taken,
    /// The socket is full.
    Blocked,
}

impl Turns {
    fn new(port: Arc<Port>) -> Self {
        Self {
            port,
            slots: Slots::new(),
            arrived: Vec::new(),
            out: Vec::new(),
            unsent: None,
            ready: VecDeque::new(),
            reached: Vec::new(),
            deadlines: BTreeSet::new(),
            sleep: None,
            sleeps_until: None,
        }
    }

    fn turn(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let port = Arc::clone(&self.port);
        let mut core = port.core();
        let now = Instant::now();
        port.work.take(&mut self.ready, context.waker());
        self.expire(&core, now);
        let mut again = self.send(&mut core, now, context)?;
        again |= self.receive(&mut core, now, context)?;
        for connection in self.reached.drain(..) {
            connection.lock().deliver();
        }
        if core.is_done() {
            return Poll::Ready(Ok(()));
        }
        again |= self.sleep(now, context);
        if again {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Connections whose deadline has come have something to do.
    fn expire(&mut self, core: &Core, now: Instant) {
        while let Some(&(deadline, handle)) = self.deadlines.first() {
            if deadline > now {
                return;
            }
            self.deadlines.pop_first();
            let Some(connection) = core.connections.get(&handle) else { continue };
            let mut state = connection.lock();
            state.deadline = None;
            if !std::mem::replace(&mut state.queued, true) {
                drop(state);
                self.ready.push_back(Arc::clone(connection));
            }
        }
    }

    /// Whether there is more to send, and the socket takes it.
    fn send(
        &mut self,
        core: &mut Core,
        now: Instant,
        context: &mut Context<'_>,
    ) -> io::Result<bool> {
        if let Some(transmit) = self.unsent.take()
            && let Sent::Blocked = self.write(transmit, context)?
        {
            return Ok(false);
        }
        for _ in 0..self.ready.len() {
            let Some(connection) = self.ready.pop_front() else { break };
            let mut state = connection.lock();
            state.queued = false;
            if state.protocol.poll_timeout().is_some_and(|deadline| deadline <= now) {
                state.protocol.handle_timeout(now);
            }
            let sent = self.send_of(&mut state, now, context);
            let more = exchange(core, &mut state) | matches!(sent, Ok(None));
            state.deliver();
            self.note_deadline(&mut state);
            state.queued = more;
            drop(state);
            if more {
                self.ready.push_back(connection);
            }
            if let Some(Sent::Blocked) = sent? {
                return Ok(false);
            }
        }
        Ok(!self.ready.is_empty())
    }

    /// Sends what a connection has, until it has no more, the socket is full, or (`None`) it has
    /// had its share.
    fn send_of(
        &mut self,
        state: &mut State,
        now: Instant,
        context: &mut Context<'_>,
    ) -> io::Result<Option<Sent>> {
        for _ in 0..WRITES_MAX {
            self.out.clear();
            let packets_max = self.port.socket.packets_max(state.protocol.current_mtu());
            match state.protocol.poll_transmit(now, packets_max, &mut self.out) {
                None => return Ok(Some(Sent::Taken)),
                Some(transmit) => {
                    if let Sent::Blocked = self.write(transmit, context)? {
                        return Ok(Some(Sent::Blocked));
                    }
                }
            }
        }
        Ok(None)
    }

    fn write(&mut self, transmit: Transmit, context: &mut Context<'_>) -> io::Result<Sent> {
        let bytes = self.out.get(..transmit.size).unwrap_or(&self.out);
        loop {
            match self.port.socket.try_send(&transmit, bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(Sent::Taken),
            }
            if self.port.socket.poll_writable(context)?.is_pending() {
                self.unsent = Some(transmit);
                return Ok(Sent::Blocked);
            }
        }
    }

    /// Whether anything came.
    fn receive(
        &mut self,
        core: &mut Core,
        now: Instant,
        context: &mut Context<'_>,
    ) -> io::Result<bool> {
        let port = Arc::clone(&self.port);
        match port.socket.poll_receive(context, &mut self.slots, &mut self.arrived) {
            Poll::Pending => return Ok(false),
            Poll::Ready(read) => read?,
        }
        for at in 0..self.arrived.len() {
            let Some(&arrived) = self.arrived.get(at) else { break };
            let mut message = self.slots.take(at, arrived.len);
            while !message.is_empty() {
                let packet = message.split_to(arrived.stride.min(message.len()));
                let routed = port.route(core, &arrived, packet, now);
                let Some((handle, event)) = routed else { continue };
                let Some(connection) = core.connections.get(&handle) else { continue };
                let mut state = connection.lock();
                state.protocol.handle_event(event);
                if !std::mem::replace(&mut state.queued, true) {
                    self.ready.push_back(Arc::clone(connection));
                }
                drop(state);
                if !self.reached.last().is_some_and(|last| Arc::ptr_eq(last, connection)) {
                    self.reached.push(Arc::clone(connection));
                }
            }
        }
        Ok(true)
    }

    fn note_deadline(&mut self, state: &mut State) {
        let deadline = state.protocol.poll_timeout();
        if deadline == state.deadline {
            return;
        }
        if let Some(before) = state.deadline {
            self.deadlines.remove(&(before, state.handle));
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, state.handle));
        }
        state.deadline = deadline;
    }

    /// Whether a deadline has come meanwhile; else the task is woken when the next one comes.
    fn sleep(&mut self, now: Instant, context: &mut Context<'_>) -> bool {
        let Some(&(deadline, _)) = self.deadlines.first() else { return false };
        let sleep =
            self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        if self.sleeps_until.is_none_or(|until| deadline < until || until <= now) {
            sleep.as_mut().reset(deadline.into());
            self.sleeps_until = Some(deadline);
        }
        let over = sleep.as_mut().poll(context).is_ready();
        if over {
            self.sleeps_until = None;
        }
        over
    }
}

/// What the protocol's two halves have to tell each other; whether the connection has more to do
/// after that.
fn exchange(core: &mut Core, state: &mut State) -> bool {
    let mut more = false;
    while let Some(event) = state.protocol.poll_endpoint_events() {
        let drained = event.is_drained();
        if let Some(answer) = core.endpoint.handle_event(state.handle, event) {
            state.protocol.handle_event(answer);
            more = true;
        }
        if drained {
            core.forget(state.handle);
        }
    }
    more
}

impl Drop for Turns {
    fn drop(&mut self) {
        self.port.end();
    }
}

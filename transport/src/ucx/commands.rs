//! What links and fabrics tell the engine, across threads.
//!
//! Owns the queue and the engine's sleep. Invariants: at most as many departures wait as the links'
//! tables admit; a push wakes an engine that sleeps, and only such a one; after the engine has
//! stopped commands are dropped, which resolves whoever waits for them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::context::Path;
use super::lane::LaneId;
use crate::completion::Completer;
use crate::error::TransportError;
use crate::frame::{DeviceOffer, Grant, Nonce};
use crate::link::lane::FrameSink;
use crate::link::table::Departure;

pub(super) enum Command {
    /// Make a place that a peer can reach.
    Open {
        lane: LaneId,
        path: Path,
        nonce: Nonce,
        sink: Arc<dyn FrameSink>,
        reply: Completer<Opened>,
    },
    /// Reach the peer; replies when both ends have heard each other.
    Connect { lane: LaneId, address: Vec<u8>, nonce: Nonce, reached: Completer<()> },
    /// Send a granted frame.
    Depart { lane: LaneId, departure: Departure },
    /// Tell the peer of a place for one of its frames.
    Grant { lane: LaneId, grant: Grant },
    /// Give a lane up.
    Fail { lane: LaneId, cause: String },
    /// Forget a lane.
    Close { lane: LaneId },
}

/// A place that a peer can reach.
pub(super) struct Opened {
    /// Where it is.
    pub(super) address: Vec<u8>,
    /// Whether memory of this process's device is taken there.
    pub(super) device: DeviceOffer,
}

pub(super) struct Commands {
    queue: Mutex<Queue>,
    /// Whether the queue has something; changed under its lock.
    waiting: AtomicBool,
    asleep: AtomicBool,
    wake: EventFd,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Command>,
    stopped: bool,
}

impl Commands {
    pub(super) fn new() -> Result<Self, TransportError> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let wake =
            wake.map_err(|error| TransportError::system("make an event descriptor", error.into()))?;
        let (queue, waiting, asleep) = Default::default();
        Ok(Self { queue, waiting, asleep, wake })
    }

    /// Adds a command, and wakes the engine's thread if it sleeps.
    pub(super) fn push(&self, command: Command) {
        self.add(command);
        self.wake();
    }

    /// Adds a command for whoever looks next.
    pub(super) fn add(&self, command: Command) {
        let mut queue = self.lock();
        if !queue.stopped {
            queue.waiting.push_back(command);
            self.waiting.store(true, Ordering::Release);
        }
    }

    /// Whether nothing waits, as far as this thread knows.
    pub(super) fn is_empty(&self) -> bool {
        !self.waiting.load(Ordering::Acquire)
    }

    /// The same for a thread that has just let go of the engine, or found it taken: of one that
    /// adds a command and then finds the engine taken, and one that lets go of it and then looks
    /// here, at least one sees what the other has done.
    pub(super) fn is_empty_after_all(&self) -> bool {
        fence(Ordering::SeqCst);
        self.is_empty()
    }

    /// No command is taken any more; the engine ends.
    pub(super) fn stop(&self) {
        let dropped = {
            let mut queue = self.lock();
            queue.stopped = true;
            self.waiting.store(false, Ordering::Release);
            std::mem::take(&mut queue.waiting)
        };
        // Outside the lock: completers wake others.
        drop(dropped);
        self.wake();
    }

    /// Moves what waits into `into`, which is empty.
    pub(super) fn take(&self, into: &mut VecDeque<Command>) {
        let mut queue = self.lock();
        std::mem::swap(&mut queue.waiting, into);
        self.waiting.store(false, Ordering::Release);
    }

    /// Whether the engine is to end.
    pub(super) fn stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Announces that the engine sleeps; false when there is something to do first.
    pub(super) fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        let queue = self.lock();
        let may = queue.waiting.is_empty() && !queue.stopped;
        drop(queue);
        if !may {
            self.asleep.store(false, Ordering::SeqCst);
        }
        may
    }

    pub(super) fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
        // Nothing to read is as good as something.
        let _ = self.wake.read();
    }

    /// Readable when a command came during the engine's sleep.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Ends the sleep of the engine's thread, if it sleeps.
    pub(super) fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            // Fails only when the counter is full, and then it is readable.
            let _ = self.wake.write(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! One OS thread with a one-thread runtime, which a waiting thread may drive in its stead.
//!
//! Owns the runtime's life and the turns at driving it. The thread is at home in the runtime: it
//! drives whenever nobody else does. A plain thread that waits for something that happens there
//! ([`Drive`]) comes as a guest: the thread lets go, and until its wait is over the guest reads,
//! writes and decodes itself, so that a message costs no switch between threads. Where one wait
//! follows another the thread stays out between them.
//! Invariants: somebody drives, or will within [`PAUSE`] and [`LOOK`]; a runtime ends on no thread
//! that other tasks run on, so an endpoint may be dropped inside any other runtime.

use std::future::poll_fn;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::thread::{Builder, ThreadId};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Runtime};
use tokio::sync::Notify;

use crate::completion::{Drive, Pending, SPIN_DRIVING};
use crate::error::TransportError;

/// How many tasks have their turn before whoever drives looks whether its wait is over, for
/// packets, and for what other threads handed over; under load a turn takes up to 100 us.
const TASKS_AT_A_TIME: u32 = 3;

/// How often the other tasks get their turn before the thread ends, so that they can say goodbye.
const LAST_TURNS: usize = 64;

/// How soon after its last wait a guest comes back where one wait follows another; the thread stays
/// out for as long.
const PAUSE: Duration = Duration::from_micros(200);

/// How long a guest drives before it sleeps where one wait follows another: when both ends sleep, a
/// round trip takes about half as long, and with less each would find the other asleep for ever.
const SPIN_AGAIN: Duration = Duration::from_micros(200);

/// How often the thread looks whether guests still come and go like that.
const LOOK: Duration = Duration::from_micros(400);

/// A thread for one endpoint or several; it ends when all of them are closed.
pub(crate) struct EndpointThread {
    turns: Arc<Turns>,
    id: ThreadId,
    endpoints: Mutex<usize>,
    stopped: Mutex<Receiver<()>>,
}

impl EndpointThread {
    pub(crate) fn start(name: &'static str) -> Result<Arc<Self>, TransportError> {
        let failed = |error| TransportError::system("start an endpoint's thread", error);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .event_interval(TASKS_AT_A_TIME)
            .global_queue_interval(TASKS_AT_A_TIME)
            .enable_all()
            .build();
        let turns = Arc::new(Turns::of(runtime.map_err(failed)?));
        let (said_goodbye, stopped) = sync_channel(1);
        let own = Arc::clone(&turns);
        let thread = Builder::new().name(name.to_owned()).spawn(move || own.run(&said_goodbye));
        Ok(Arc::new(Self {
            turns,
            id: thread.map_err(failed)?.thread().id(),
            endpoints: Mutex::new(0),
            stopped: Mutex::new(stopped),
        }))
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.turns.handle
    }

    /// What a thread that waits for this runtime is to drive.
    pub(crate) fn driver(&self) -> Arc<dyn Drive> {
        Arc::clone(&self.turns) as Arc<dyn Drive>
    }

    /// One more endpoint lives here.
    pub(super) fn enter(&self) {
        *self.endpoints.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    /// An endpoint is closed. After the last one the thread ends when its tasks have had their last
    /// turns; this waits for that, at most `timeout`.
    pub(super) fn leave(&self, timeout: Duration) {
        {
            let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
            *endpoints = endpoints.saturating_sub(1);
            if *endpoints > 0 {
                return;
            }
        }
        self.turns.stop();
        if std::thread::current().id() != self.id {
            let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = stopped.recv_timeout(timeout);
        }
    }
}

impl Drop for EndpointThread {
    fn drop(&mut self) {
        self.turns.stop();
    }
}

/// Who drives.
struct Turns {
    /// None when the thread has ended.
    runtime: Mutex<Option<Arc<Ending>>>,
    handle: Handle,
    book: Mutex<Book>,
    changed: Condvar,
    /// Tells the thread to let go.
    wanted: Notify,
}

struct Book {
    /// The thread drives, or is about to.
    home: bool,
    /// Threads that drive, or wait for their turn.
    guests: usize,
    /// When the last guest left.
    left: Instant,
    /// The present guests, or the last ones, came soon after those before.
    again: bool,
    stopping: bool,
}

impl Turns {
    fn of(runtime: Runtime) -> Self {
        let (now, handle) = (Instant::now(), runtime.handle().clone());
        let book = Book { home: true, guests: 0, left: now, again: false, stopping: false };
        let (changed, wanted) = (Condvar::new(), Notify::new());
        let runtime = Mutex::new(Some(Arc::new(Ending(Some(runtime)))));
        Self { runtime, handle, book: Mutex::new(book), changed, wanted }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runtime(&self) -> MutexGuard<'_, Option<Arc<Ending>>> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's life.
    fn run(&self, said_goodbye: &SyncSender<()>) {
        let shared = self.runtime().clone();
        let Some(runtime) = shared.as_ref().and_then(|shared| shared.0.as_ref()) else { return };
        loop {
            runtime.block_on(self.wanted.notified());
            if !self.stay_out() {
                break;
            }
        }
        // A task, so that it gets its turns with the others, whoever drives.
        let turns = runtime.spawn(async {
            for _ in 0..LAST_TURNS {
                tokio::task::yield_now().await;
            }
        });
        let _ = runtime.block_on(turns);
        *self.runtime() = None;
        drop(shared);
        let _ = said_goodbye.try_send(());
    }

    /// Leaves the runtime to guests until it is needed there again; false when it is to end.
    fn stay_out(&self) -> bool {
        let mut book = self.book();
        book.home = false;
        while !book.stopping {
            book = match (book.guests, book.again) {
                (0, false) => break,
                (0, true) if book.left.elapsed() >= PAUSE => break,
                // Whoever leaves will say so.
                (1.., false) => self.changed.wait(book).unwrap_or_else(PoisonError::into_inner),
                (_, true) => match self.changed.wait_timeout(book, LOOK) {
                    Ok((book, _)) => book,
                    Err(poisoned) => poisoned.into_inner().0,
                },
            };
        }
        book.home = true;
        !book.stopping
    }

    fn stop(&self) {
        self.book().stopping = true;
        self.changed.notify_all();
        self.wanted.notify_one();
    }

    fn come(&self) -> Guest<'_> {
        let mut book = self.book();
        if book.guests == 0 {
            book.again = book.left.elapsed() < PAUSE;
        }
        book.guests += 1;
        let (at_home, again) = (book.home, book.again);
        drop(book);
        if at_home {
            self.wanted.notify_one();
        }
        Guest { turns: self, again }
    }
}

/// A runtime that ends with the last who drives it, and waits for nobody.
struct Ending(Option<Runtime>);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A thread that drives, or waits for its turn.
struct Guest<'a> {
    turns: &'a Turns,
    again: bool,
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let mut book = self.turns.book();
        book.guests = book.guests.saturating_sub(1);
        if book.guests > 0 {
            return;
        }
        book.left = Instant::now();
        let over = !book.again;
        drop(book);
        if over {
            self.turns.changed.notify_one();
        }
    }
}

impl Drive for Turns {
    fn drive(&self, pending: &dyn Pending, deadline: Instant) {
        // A thread of some runtime must not enter another one.
        let shared = match Handle::try_current() {
            Ok(_) => None,
            Err(_) => self.runtime().clone(),
        };
        let Some(runtime) = shared.as_ref().and_then(|shared| shared.0.as_ref()) else { return };
        let guest = self.come();
        let spin = if guest.again { SPIN_AGAIN } else { SPIN_DRIVING };
        runtime.block_on(async {
            let spin_until = deadline.min(Instant::now() + spin);
            while !pending.is_done() {
                if Instant::now() >= spin_until {
                    let done = poll_fn(|context| match pending.poll_done(context) {
                        true => Poll::Ready(()),
                        false => Poll::Pending,
                    });
                    // Too late or not, the caller looks for itself.
                    let _ = tokio::time::timeout_at(deadline.into(), done).await;
                    return;
                }
                // Whoever shares this core may be the one that is waited for.
                std::thread::yield_now();
                tokio::task::yield_now().await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::completion::{Awaited, driven};

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_waiting_thread_drives_and_the_thread_takes_over_when_nobody_waits() {
        let thread = EndpointThread::start("driven").unwrap();
        thread.enter();
        for _ in 0..50 {
            let (completer, mut waiting) = driven(Awaited::Other("a task"), Some(thread.driver()));
            let (tell, told) = sync_channel(1);
            let spawned = thread.handle().spawn(async move {
                tokio::time::sleep(Duration::from_micros(300)).await;
                completer.complete(Ok(std::thread::current().id()));
            });
            let on = waiting.wait_until(Instant::now() + LONG).unwrap();
            assert!(spawned.is_finished() || on == thread.id);
            // Nobody waits for this one.
            thread.handle().spawn(async move { tell.send(std::thread::current().id()) });
            assert_eq!(told.recv_timeout(LONG).unwrap(), thread.id);
        }
        thread.leave(LONG);
        assert!(thread.turns.book().stopping);
    }

    #[test]
    fn several_guests_take_turns_and_a_deadline_ends_a_wait() {
        let thread = EndpointThread::start("driven").unwrap();
        thread.enter();
        std::thread::scope(|scope| {
            for guest in 0..4_u64 {
                let thread = &thread;
                scope.spawn(move || {
                    for turn in 0..50 {
                        let driver = Some(thread.driver());
                        let (completer, mut waiting) = driven(Awaited::Other("a task"), driver);
                        thread.handle().spawn(async move {
                            tokio::time::sleep(Duration::from_micros(guest * 100)).await;
                            completer.complete(Ok(turn));
                        });
                        assert_eq!(waiting.wait_until(Instant::now() + LONG).unwrap(), turn);
                    }
                });
            }
            let driver = Some(thread.driver());
            let (_completer, mut never) = driven::<()>(Awaited::Other("nothing"), driver);
            let late = never.wait_until(Instant::now() + Duration::from_millis(5));
            assert!(matches!(late, Err(TransportError::Deadline { .. })));
        });
        thread.leave(LONG);
    }
}

//! One-shot results that a plain thread and an async task can both wait for.
//!
//! Owns the pair [`Completer`] / [`Completion`]. Knows no runtime: a thread spins for
//! [`SPIN`] (not where it would keep the only core from whoever is to deliver) and then parks, a
//! task leaves its waker. Invariants: the value is delivered at most once; a dropped [`Completer`]
//! resolves [`TransportError::Closed`], so no wait hangs on a sender that is gone; an expired
//! deadline leaves the completion usable. What a pair shares is used again where it came from a
//! `CompletionPool`.

mod pool;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::TransportError;
use crate::ids::{PeerId, RunId, Tag};

pub(crate) use pool::CompletionPool;

/// How long a thread spins before it parks (an event-driven wake-up costs about 40 us).
pub const SPIN: Duration = Duration::from_micros(30);

/// How long a thread drives what it waits for before it parks: about a round trip over TCP.
pub(crate) const SPIN_DRIVING: Duration = Duration::from_micros(50);

/// What a completion stands for, for the message of a passed deadline.
#[derive(Clone, Copy, Debug)]
pub enum Awaited {
    /// A posted receive.
    Receive {
        /// The sender.
        peer: PeerId,
        /// The run.
        run: RunId,
        /// The message.
        tag: Tag,
    },
    /// A frame handed to the transport.
    Send {
        /// The receiver.
        peer: PeerId,
        /// The run.
        run: RunId,
        /// The message.
        tag: Tag,
    },
    /// Anything else.
    Other(&'static str),
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Receive { peer, run, tag } => {
                write!(f, "frame {tag:?} of run {run} from peer {peer}")
            }
            Self::Send { peer, run, tag } => {
                write!(f, "peer {peer} to take frame {tag:?} of run {run}")
            }
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// What makes progress only while somebody drives it, and anybody may.
pub(crate) trait Drive: Send + Sync {
    /// Drives until `pending` is done, the deadline has passed, or there is nothing that could not
    /// be left to others; whoever waits parks then.
    fn drive(&self, pending: &dyn Pending, deadline: Instant);
}

/// What is waited for.
pub(crate) trait Pending {
    /// Whether it is there.
    fn is_done(&self) -> bool;

    /// The same, and whoever asks in vain is woken when it is.
    fn poll_done(&self, context: &mut Context<'_>) -> bool;
}

/// Makes a connected pair.
pub fn completion<T>(awaited: Awaited) -> (Completer<T>, Completion<T>) {
    halves(Arc::new(Shared::new(Weak::new())), awaited, None)
}

/// Makes a connected pair whose waiting thread drives what it waits for.
#[cfg(test)]
pub(crate) fn driven<T>(
    awaited: Awaited,
    driver: Option<Arc<dyn Drive>>,
) -> (Completer<T>, Completion<T>) {
    halves(Arc::new(Shared::new(Weak::new())), awaited, driver)
}

/// The two halves of something that has none.
fn halves<T>(
    shared: Arc<Shared<T>>,
    awaited: Awaited,
    driver: Option<Arc<dyn Drive>>,
) -> (Completer<T>, Completion<T>) {
    shared.halves.store(2, Ordering::Release);
    let completer = Completer { shared: Some(Arc::clone(&shared)) };
    (completer, Completion { shared, awaited, taken: false, driver })
}

/// The receiving half: the result, once it is there.
#[must_use = "a completion that is dropped is never observed"]
pub struct Completion<T> {
    shared: Arc<Shared<T>>,
    awaited: Awaited,
    taken: bool,
    driver: Option<Arc<dyn Drive>>,
}

impl<T> Completion<T> {
    /// A completion that is resolved from the start.
    pub fn ready(value: Result<T, TransportError>) -> Self {
        let (completer, completion) = completion(Awaited::Other("a resolved completion"));
        completer.complete(value);
        completion
    }

    /// Whether a result is there and not yet taken.
    pub fn is_ready(&self) -> bool {
        !self.taken && self.shared.done.load(Ordering::Acquire)
    }

    /// What this completion stands for.
    pub fn awaited(&self) -> Awaited {
        self.awaited
    }

    /// Takes the result if it is there.
    pub fn try_take(&mut self) -> Option<Result<T, TransportError>> {
        if !self.is_ready() {
            return None;
        }
        let value = self.shared.lock().value.take();
        self.taken |= value.is_some();
        value
    }

    /// Blocks a plain thread until the result is there.
    ///
    /// # Errors
    /// The operation's own error; [`TransportError::Deadline`] when `deadline` passes first (the
    /// completion stays usable); [`TransportError::Closed`] when the result was taken before.
    pub fn wait_until(&mut self, deadline: Instant) -> Result<T, TransportError> {
        if self.taken {
            return Err(self.already_taken());
        }
        self.spin(deadline);
        let mut state = self.shared.lock();
        loop {
            if let Some(value) = state.value.take() {
                self.taken = true;
                return value;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TransportError::deadline(self.awaited));
            }
            state.parked = true;
            state = match self.shared.parked.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
            state.parked = false;
        }
    }

    fn spin(&self, deadline: Instant) {
        if self.shared.is_done() {
            return;
        }
        if let Some(driver) = &self.driver {
            return driver.drive(&*self.shared, deadline);
        }
        if !may_spin() {
            return;
        }
        let spin_until = deadline.min(Instant::now() + SPIN);
        while !self.shared.is_done() && Instant::now() < spin_until {
            std::hint::spin_loop();
        }
    }

    fn already_taken(&self) -> TransportError {
        TransportError::closed(format!("the completion for {}, taken before,", self.awaited))
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        self.shared.let_go();
    }
}

impl<T> Future for Completion<T> {
    type Output = Result<T, TransportError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.taken {
            return Poll::Ready(Err(self.already_taken()));
        }
        let value = {
            let mut state = self.shared.lock();
            let value = state.value.take();
            if value.is_none() {
                state.waker = Some(context.waker().clone());
            }
            value
        };
        match value {
            Some(value) => {
                self.taken = true;
                Poll::Ready(value)
            }
            None => Poll::Pending,
        }
    }
}

impl<T> fmt::Debug for Completion<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Completion({}, ready: {})", self.awaited, self.is_ready())
    }
}

/// The sending half; dropping it unused resolves [`TransportError::Closed`].
pub struct Completer<T> {
    shared: Option<Arc<Shared<T>>>,
}

impl<T> Completer<T> {
    /// Delivers the result and wakes whoever waits.
    #[inline]
    pub fn complete(mut self, value: Result<T, TransportError>) {
        if let Some(shared) = self.shared.take() {
            shared.deliver(value);
            shared.let_go();
        }
    }
}

impl<T> Drop for Completer<T> {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.deliver(Err(TransportError::closed("the other half of a completion")));
            shared.let_go();
        }
    }
}

impl<T> fmt::Debug for Completer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completer")
    }
}

/// Whether this process has more than one core, as it was when it first asked.
fn may_spin() -> bool {
    static CORES: OnceLock<bool> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1))
}

struct Shared<T> {
    done: AtomicBool,
    state: Mutex<State<T>>,
    parked: Condvar,
    /// How many halves there are.
    halves: AtomicU8,
    home: Weak<CompletionPool<T>>,
}

struct State<T> {
    value: Option<Result<T, TransportError>>,
    waker: Option<Waker>,
    /// A thread sleeps, and a system call wakes it.
    parked: bool,
}

impl<T> Pending for Shared<T> {
    fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    fn poll_done(&self, context: &mut Context<'_>) -> bool {
        let mut state = self.lock();
        let done = state.value.is_some();
        if !done {
            state.waker = Some(context.waker().clone());
        }
        done
    }
}

impl<T> Shared<T> {
    fn new(home: Weak<CompletionPool<T>>) -> Self {
        Self {
            done: AtomicBool::new(false),
            state: Mutex::new(State { value: None, waker: None, parked: false }),
            parked: Condvar::new(),
            halves: AtomicU8::new(0),
            home,
        }
    }

    /// One half is gone; with the last one it goes back to where it came from. The other half's
    /// count of this value may end a little later, which nobody minds: it looks at nothing here.
    fn let_go(self: &Arc<Self>) {
        if self.halves.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let Some(home) = self.home.upgrade() else { return };
        let last = {
            let mut state = self.lock();
            self.done.store(false, Ordering::Release);
            state.parked = false;
            (state.value.take(), state.waker.take())
        };
        // Outside the lock: a value may be memory that goes back to a pool of its own.
        drop(last);
        home.take_back(Arc::clone(self));
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn deliver(&self, value: Result<T, TransportError>) {
        let (waker, parked) = {
            let mut state = self.lock();
            state.value = Some(value);
            self.done.store(true, Ordering::Release);
            (state.waker.take(), state.parked)
        };
        if parked {
            self.parked.notify_all();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pair() -> (Completer<u32>, Completion<u32>) {
        completion(Awaited::Other("a number"))
    }

    #[test]
    fn an_expired_deadline_leaves_the_completion_usable() {
        let (completer, mut waiting) = pair();
        let expired = waiting.wait_until(Instant::now() + Duration::from_millis(1));
        assert!(matches!(expired, Err(TransportError::Deadline { .. })));
        assert!(waiting.try_take().is_none());
        completer.complete(Ok(7));
        assert!(waiting.is_ready());
        assert_eq!(waiting.wait_until(Instant::now()).unwrap(), 7);
        assert!(matches!(waiting.wait_until(Instant::now()), Err(TransportError::Closed { .. })));
    }

    #[test]
    fn a_parked_thread_is_woken() {
        let (completer, mut waiting) = pair();
        let (parked, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            parked.send(()).unwrap();
            waiting.wait_until(Instant::now() + Duration::from_secs(10)).unwrap()
        });
        told.recv().unwrap();
        completer.complete(Ok(3));
        assert_eq!(thread.join().unwrap(), 3);
    }

    #[test]
    fn a_dropped_completer_resolves_closed() {
        let (completer, mut waiting) = pair();
        drop(completer);
        assert!(matches!(waiting.try_take(), Some(Err(TransportError::Closed { .. }))));
    }

    #[tokio::test]
    async fn a_task_is_woken() {
        let (completer, waiting) = pair();
        let task = tokio::spawn(waiting);
        tokio::task::yield_now().await;
        completer.complete(Ok(5));
        assert_eq!(task.await.unwrap().unwrap(), 5);
    }
}

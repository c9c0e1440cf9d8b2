//! Who runs the engine, and when.
//!
//! Owns the engine's lock, its thread, and helping: whoever sends carries its command out itself,
//! and whoever waits drives the engine meanwhile, first by looking again and again and then asleep
//! on the workers' event descriptors, so that a message costs no switch between threads. The
//! engine's own thread is for what happens while nobody waits: it looks for [`SPIN`] after the last
//! event and then sleeps on the same descriptors; see [`super::seats`] for who has which turn.
//! Invariants: a command is carried out by whoever holds the lock, at the latest on letting go;
//! operations that are under way are never left to a thread that sleeps without having been told of
//! them; at most one thread sleeps on the descriptors.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Wake, Waker};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

use super::UcxConfig;
use super::commands::{Command, Commands};
use super::engine::{Engine, readable};
use super::lane::LaneId;
use super::seats::Seats;
use crate::completion::{Drive, Pending, SPIN_DRIVING};
use crate::error::TransportError;
use crate::frame::Grant;
use crate::link::table::Departure;
use crate::ready::Readiness;
use crate::region::DeviceMemory;

/// How long the thread looks again and again before it sleeps (a wake-up costs about 40 us).
const SPIN: Duration = Duration::from_micros(30);

/// How many turns a thread that waits has before it looks at the clock, and lets others have the
/// engine: an idle one is done in some 50 ns.
const TURNS_AT_A_TIME: usize = 16;

/// The longest sleep without an event, in milliseconds.
const SLEEP_MS: u16 = 500;

pub(super) struct Driver {
    /// None once it has ended.
    engine: Mutex<Option<Engine>>,
    commands: Arc<Commands>,
    epoll: Arc<Epoll>,
    under_way: AtomicUsize,
    seats: Seats,
    /// Waits for payloads that are not ready yet.
    pub(super) readiness: Readiness,
    /// Ends the sleep of a thread whose wait is over.
    alarm: Waker,
}

/// Wakes whoever sleeps on the descriptors.
struct Alarm(Arc<Commands>);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake();
    }
}

impl Driver {
    /// Starts the engine and its thread.
    pub(super) fn start(
        config: UcxConfig,
        device: Option<Arc<dyn DeviceMemory>>,
    ) -> Result<(Arc<Self>, JoinHandle<()>), TransportError> {
        let failed =
            |error: nix::Error| TransportError::system("watch event descriptors", error.into());
        let commands = Arc::new(Commands::new()?);
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?);
        epoll.add(commands.descriptor(), readable()).map_err(failed)?;
        let engine = Engine::new(config, device, Arc::clone(&commands), Arc::clone(&epoll));
        let driver = Arc::new(Self {
            engine: Mutex::new(Some(engine)),
            alarm: Waker::from(Arc::new(Alarm(Arc::clone(&commands)))),
            commands,
            epoll,
            under_way: AtomicUsize::new(0),
            seats: Seats::new(),
            readiness: Readiness::default(),
        });
        let own = Arc::clone(&driver);
        let thread = Builder::new().name("ditmesh-ucx".to_owned()).spawn(move || own.run());
        let thread =
            thread.map_err(|error| TransportError::system("start the UCX thread", error))?;
        Ok((driver, thread))
    }

    pub(super) fn commands(&self) -> &Commands {
        &self.commands
    }

    /// No command is taken any more; the engine ends.
    pub(super) fn stop(&self) {
        self.commands.stop();
        self.seats.end();
    }

    /// Carries out what was commanded, unless somebody else does.
    pub(super) fn help(&self) {
        self.obey();
        // Somebody must be awake while operations are under way.
        if self.is_busy() {
            self.commands.wake();
            self.seats.call();
        }
    }

    /// Sends a granted frame, at once unless somebody else has the engine, who will.
    pub(super) fn depart(&self, lane: LaneId, departure: Departure) {
        let later = |departure| Command::Depart { lane, departure };
        self.now_or_later(departure, |engine, departure| engine.depart(lane, departure), later);
    }

    /// The same for the news of a place.
    pub(super) fn grant(&self, lane: LaneId, grant: Grant) {
        let later = |grant| Command::Grant { lane, grant };
        self.now_or_later(grant, |engine, grant| engine.grant(lane, grant), later);
    }

    fn now_or_later<T>(
        &self,
        what: T,
        now: impl FnOnce(&mut Engine, T),
        later: impl FnOnce(T) -> Command,
    ) {
        match self.engine_if_free() {
            Some(mut engine) => {
                if let Some(engine) = engine.as_mut() {
                    engine.enter();
                    now(engine, what);
                    self.publish(engine);
                }
            }
            None => self.commands.add(later(what)),
        }
        self.help();
    }

    fn obey(&self) {
        while !self.commands.is_empty_after_all() {
            if !self.try_engine(|engine| _ = engine.obey()) {
                // Who is at it may be about to sleep, and have looked before the command came.
                return self.commands.wake();
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) > 0
    }

    /// False when somebody else is at it, who will look at the commands once more.
    fn try_engine(&self, act: impl FnOnce(&mut Engine)) -> bool {
        let mut engine = self.engine_if_free();
        let Some(engine) = engine.as_mut().and_then(|engine| engine.as_mut()) else { return false };
        act(engine);
        self.publish(engine);
        true
    }

    /// None while somebody else has it, who will look at the commands.
    fn engine_if_free(&self) -> Option<MutexGuard<'_, Option<Engine>>> {
        match self.engine.try_lock() {
            Ok(engine) => Some(engine),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Tells those without the engine's lock what is under way.
    fn publish(&self, engine: &Engine) {
        let under_way = engine.under_way();
        // Changed under the lock only.
        if self.under_way.load(Ordering::Relaxed) != under_way {
            self.under_way.store(under_way, Ordering::SeqCst);
        }
    }

    /// One turn of the thread; None when the engine is to end.
    fn turn(&self) -> Option<bool> {
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        let engine = engine.as_mut()?;
        let busy = engine.turn();
        self.publish(engine);
        Some(busy)
    }

    fn run(&self) {
        let mut last_event = Instant::now();
        while let Some(busy) = self.turn() {
            if self.commands.stopped() {
                break;
            }
            let now = Instant::now();
            if self.seats.stay_out(|| self.is_busy()) || busy {
                last_event = Instant::now();
            } else if now.duration_since(last_event) < SPIN {
                // Whoever shares this core may be the one that is waited for.
                std::thread::yield_now();
            } else {
                self.sleep(Duration::from_millis(SLEEP_MS.into()), || false);
                last_event = Instant::now();
            }
        }
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(engine) = engine {
            engine.end();
        }
    }

    /// Sleeps until something happens, is commanded, or `is_over`.
    fn sleep(&self, at_most: Duration, is_over: impl Fn() -> bool) {
        if !self.commands.fall_asleep() {
            return;
        }
        let armed = {
            let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
            engine.as_ref().is_some_and(Engine::arm)
        };
        if armed && !is_over() {
            // Rounded up, so that the last of a wait is not spent looking again and again.
            let at_most = u16::try_from(at_most.as_millis() + 1).unwrap_or(SLEEP_MS).min(SLEEP_MS);
            let mut events = [EpollEvent::empty()];
            // An interrupted sleep is a short one.
            let _ = self.epoll.wait(&mut events, EpollTimeout::from(at_most));
        }
        self.commands.awake();
    }

    /// Some turns of a thread that waits, until anything happens; whether it did.
    fn guest_turns(&self, pending: &dyn Pending) -> bool {
        let mut busy = false;
        self.try_engine(|engine| {
            for _ in 0..TURNS_AT_A_TIME {
                busy = engine.turn();
                if busy || pending.is_done() {
                    break;
                }
            }
        });
        self.obey();
        busy
    }
}

impl Drive for Driver {
    fn drive(&self, pending: &dyn Pending, deadline: Instant) {
        let begun = Instant::now();
        let mut seat = self.seats.sit_down(begun, || self.is_busy());
        let mut bed = None;
        let mut look_until = begun + SPIN_DRIVING;
        loop {
            let busy = self.guest_turns(pending);
            if pending.is_done() {
                return;
            }
            let now = Instant::now();
            seat.seen(now);
            if now >= deadline {
                return;
            }
            if busy {
                look_until = look_until.max(now + SPIN);
            } else if now >= look_until {
                if self.commands.stopped() {
                    return;
                }
                if bed.is_none() {
                    bed = self.seats.lie_down(|| self.commands.wake());
                }
                // Another thread sleeps here and delivers: whoever waits parks meanwhile.
                if bed.is_none() || pending.poll_done(&mut Context::from_waker(&self.alarm)) {
                    return;
                }
                self.sleep(deadline.saturating_duration_since(now), || pending.is_done());
                seat.seen(Instant::now());
            }
        }
    }
}

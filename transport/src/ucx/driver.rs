//! Who runs the engine, and when.
//!
//! Owns the engine's lock, its thread, and helping: whoever sends carries its command out itself,
//! and whoever waits drives the engine meanwhile, so that a small message costs no switch between
//! threads. The engine's own thread is for what happens while nobody waits: it spins for [`SPIN`]
//! after the last event and then sleeps on the workers' event descriptors. Invariants: a command is
//! carried out by whoever holds the lock, at the latest on letting go; operations that are under
//! way are never left to a thread that sleeps without having been told of them.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError};
use std::thread::{Builder, JoinHandle, Thread};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

use super::UcxConfig;
use super::commands::Commands;
use super::engine::{Engine, readable};
use crate::completion::{Drive, Pending, SPIN_DRIVING};
use crate::error::TransportError;

/// How long the thread looks again and again before it sleeps (a wake-up costs about 40 us).
const SPIN: Duration = Duration::from_micros(30);

/// How long the thread leaves the engine to those who wait and drive it.
const NAP: Duration = Duration::from_micros(200);

/// The longest sleep without an event, in milliseconds.
const SLEEP_MS: u16 = 500;

pub(super) struct Driver {
    /// None once it has ended.
    engine: Mutex<Option<Engine>>,
    commands: Arc<Commands>,
    epoll: Arc<Epoll>,
    /// How often waiting threads have driven.
    drives: AtomicU64,
    under_way: AtomicUsize,
    napping: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Driver {
    /// Starts the engine and its thread.
    pub(super) fn start(config: UcxConfig) -> Result<(Arc<Self>, JoinHandle<()>), TransportError> {
        let failed =
            |error: nix::Error| TransportError::system("watch event descriptors", error.into());
        let commands = Arc::new(Commands::new()?);
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?);
        epoll.add(commands.descriptor(), readable()).map_err(failed)?;
        let engine = Engine::new(config, Arc::clone(&commands), Arc::clone(&epoll));
        let driver = Arc::new(Self {
            engine: Mutex::new(Some(engine)),
            commands,
            epoll,
            drives: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            napping: AtomicBool::new(false),
            thread: OnceLock::new(),
        });
        let own = Arc::clone(&driver);
        let thread = Builder::new().name("ditmesh-ucx".to_owned()).spawn(move || own.run());
        let thread =
            thread.map_err(|error| TransportError::system("start the UCX thread", error))?;
        let _ = driver.thread.set(thread.thread().clone());
        Ok((driver, thread))
    }

    pub(super) fn commands(&self) -> &Commands {
        &self.commands
    }

    /// Carries out what was commanded, unless somebody else does.
    pub(super) fn help(&self) {
        while !self.commands.is_empty() {
            if !self.try_engine(|engine| engine.obey()) {
                return;
            }
        }
        self.see_to_it();
    }

    /// Somebody must be awake while operations are under way.
    fn see_to_it(&self) {
        if self.under_way.load(Ordering::SeqCst) > 0 {
            self.commands.wake();
        }
    }

    /// False when somebody else is at it, who will look at the commands once more.
    fn try_engine(&self, act: impl FnOnce(&mut Engine) -> bool) -> bool {
        let mut engine = match self.engine.try_lock() {
            Ok(engine) => engine,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let Some(engine) = engine.as_mut() else { return false };
        act(engine);
        self.under_way.store(engine.under_way(), Ordering::SeqCst);
        true
    }

    /// One turn of the thread; None when the engine is to end.
    fn turn(&self) -> Option<bool> {
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        let engine = engine.as_mut()?;
        let busy = engine.turn();
        self.under_way.store(engine.under_way(), Ordering::SeqCst);
        Some(busy)
    }

    fn run(&self) {
        let (mut last_event, mut drives) = (Instant::now(), 0);
        while let Some(busy) = self.turn() {
            if self.commands.stopped() {
                break;
            }
            let seen = self.drives.load(Ordering::Relaxed);
            let now = Instant::now();
            if seen != std::mem::replace(&mut drives, seen) {
                self.nap();
                last_event = Instant::now();
            } else if busy {
                last_event = now;
            } else if now.duration_since(last_event) < SPIN {
                // Whoever shares this core may be the one that is waited for.
                std::thread::yield_now();
            } else {
                self.sleep();
                last_event = Instant::now();
            }
        }
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(engine) = engine {
            engine.end();
        }
    }

    /// Somebody drives: leave it to them for a while.
    fn nap(&self) {
        self.napping.store(true, Ordering::SeqCst);
        std::thread::park_timeout(NAP);
        self.napping.store(false, Ordering::SeqCst);
    }

    fn sleep(&self) {
        if !self.commands.fall_asleep() {
            return;
        }
        let armed = {
            let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
            engine.as_ref().is_some_and(Engine::arm)
        };
        if armed {
            let mut events = [EpollEvent::empty()];
            // An interrupted sleep is a short one.
            let _ = self.epoll.wait(&mut events, EpollTimeout::from(SLEEP_MS));
        }
        self.commands.awake();
    }
}

impl Driver {
    /// Whoever drove stops: satisfied, or else about to sleep.
    fn let_go(&self, satisfied: bool) {
        if satisfied && self.under_way.load(Ordering::SeqCst) == 0 {
            return;
        }
        if self.napping.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
        self.commands.wake();
    }
}

impl Drive for Driver {
    fn drive(&self, pending: &dyn Pending, deadline: Instant) {
        let drive_until = deadline.min(Instant::now() + SPIN_DRIVING);
        while !pending.is_done() {
            if Instant::now() >= drive_until {
                return self.let_go(false);
            }
            self.drives.fetch_add(1, Ordering::Relaxed);
            self.try_engine(Engine::turn);
            self.help();
        }
        self.let_go(true);
    }
}

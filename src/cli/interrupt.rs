//! Ctrl-C (and SIGTERM) while something runs.
//!
//! Owns the small runtime that waits for a signal beside the work. Invariant: from the moment one
//! of these exists a signal ends the work in order instead of killing the process.

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::cli::failure::Failure;

/// Waits for signals.
pub(crate) struct Interrupt {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupt {
    /// Starts listening.
    pub(crate) fn new() -> Result<Self, Failure> {
        let failed = |error| Failure::failed(format!("cannot listen for signals: {error}"));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let guard = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let terminate = signal(SignalKind::terminate()).map_err(failed)?;
        drop(guard);
        Ok(Self { runtime, interrupt, terminate })
    }

    /// Runs `work` until it is done, or drops it when a signal arrives.
    pub(crate) fn guard<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let Self { runtime, interrupt, terminate } = self;
        runtime.block_on(async {
            tokio::select! {
                biased;
                _ = interrupt.recv() => Err(Failure::interrupted()),
                _ = terminate.recv() => Err(Failure::interrupted()),
                done = work => Ok(done),
            }
        })
    }

    /// Runs `work`, which blocks, to its end on a thread of its own; also says whether a signal
    /// arrived meanwhile.
    pub(crate) fn uninterrupted<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
        on_signal: impl FnOnce(),
    ) -> Result<(T, bool), Failure> {
        let (sender, mut receiver) = oneshot::channel();
        std::thread::spawn(move || sender.send(work()));
        let gone = |_| Failure::failed("the thread that started the cluster is gone");
        match self.guard(&mut receiver) {
            Ok(done) => Ok((done.map_err(gone)?, false)),
            Err(_) => {
                on_signal();
                let done = self.runtime.block_on(receiver).map_err(gone)?;
                Ok((done, true))
            }
        }
    }
}

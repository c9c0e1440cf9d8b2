//! One OS thread with a one-thread runtime.
//!
//! Owns the thread's life. Invariants: the runtime is driven and dropped on its own thread only, so
//! an endpoint may be dropped inside any other runtime.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, ThreadId};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::error::TransportError;

/// How often the other tasks get their turn before the thread ends, so that they can say goodbye.
const LAST_TURNS: usize = 64;

pub(super) struct EndpointThread {
    handle: Handle,
    id: ThreadId,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    stopped: Mutex<Receiver<()>>,
}

impl EndpointThread {
    pub(super) fn start(name: &'static str) -> Result<Self, TransportError> {
        let failed = |error| TransportError::system("start an endpoint's thread", error);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (stop, stopping) = oneshot::channel();
        let (said_goodbye, stopped) = sync_channel(1);
        let body = move || {
            runtime.block_on(run(stopping, said_goodbye));
            runtime.shutdown_background();
        };
        let thread = Builder::new().name(name.to_owned()).spawn(body).map_err(failed)?;
        Ok(Self {
            handle,
            id: thread.thread().id(),
            stop: Mutex::new(Some(stop)),
            stopped: Mutex::new(stopped),
        })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends the thread after its tasks have had their last turns; the first call waits for that, at
    /// most `timeout`.
    pub(super) fn stop(&self, timeout: Duration) {
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(stop) = stop else { return };
        let running = stop.send(()).is_ok();
        if running && std::thread::current().id() != self.id {
            let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = stopped.recv_timeout(timeout);
        }
    }
}

async fn run(stopping: oneshot::Receiver<()>, said_goodbye: SyncSender<()>) {
    let _ = stopping.await;
    for _ in 0..LAST_TURNS {
        tokio::task::yield_now().await;
    }
    let _ = said_goodbye.try_send(());
}

//! The engine inside this process: a coordinator and one worker actor per device on threads of
//! their own, for embedding and for `generate` without `--cluster`.
//!
//! Owns those threads and joins them at the end. Knows nothing of processes; promises nothing
//! about crashes. Invariant: no global state; any number of engines live side by side.

mod life;

use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use crate::coordinator::CoordinatorHandle;
use crate::generation::GenerationHandle;
use crate::manifest::{Manifest, validate};
use crate::plan::PlanError;
use crate::request::GenerateRequest;
use crate::status::ClusterStatus;
use crate::trace_context;

/// Why an engine did not start or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The manifest asks for what an engine in one process cannot be.
    #[error("{0}")]
    Manifest(String),
    /// A thread, socket or certificate could not be had.
    #[error("cannot start the engine: {0}")]
    Start(String),
    /// Its threads are gone or do not answer.
    #[error("the engine does not answer: {0}")]
    Gone(String),
}

/// A running engine. Dropping it shuts it down.
#[derive(Debug)]
pub struct Engine {
    coordinator: CoordinatorHandle,
    /// Dropped to end the engine.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts coordinator and workers and returns; the mesh is formed in the background and
    /// requests wait for it. Blocks for milliseconds; needs no runtime and makes none global.
    ///
    /// # Errors
    /// When the manifest does not fit one process, or threads or sockets cannot be had.
    pub fn start(manifest: Manifest) -> Result<Self, EngineError> {
        validate::validate(&manifest).map_err(|error| EngineError::Manifest(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| EngineError::Start(error.to_string()))?;
        let (stop, stopped) = oneshot::channel();
        let (tell, started) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("engine-{}", manifest.cluster.name))
            .spawn(move || {
                runtime.block_on(life::live(manifest, tell, stopped));
                runtime.shutdown_background();
            })
            .map_err(|error| EngineError::Start(error.to_string()))?;
        let coordinator = started
            .recv()
            .map_err(|_| EngineError::Start("its thread ended at once".into()))?
            .map_err(EngineError::Start)?;
        Ok(Self { coordinator, stop: Some(stop), thread: Some(thread) })
    }

    /// Queues a request for one picture. Never blocks; whatever is wrong comes back as the handle's
    /// result.
    pub fn generate(&self, mut request: GenerateRequest) -> GenerationHandle {
        request.traceparent = request.traceparent.or_else(trace_context::current);
        self.coordinator.submit(request)
    }

    /// Queues one request per picture of `request` and returns a handle for each, in the order of
    /// their seeds: each picture has its own events and its own result, and dropping its handle
    /// cancels it alone. They run on whichever data replicas are free. At most
    /// [`QUEUE_REQUESTS_MAX`](crate::dispatcher::QUEUE_REQUESTS_MAX) requests wait; for more
    /// pictures deal them yourself and send one when another is done.
    ///
    /// # Errors
    /// As [`GenerateRequest::images`] says.
    pub fn generate_images(
        &self,
        request: &GenerateRequest,
    ) -> Result<Vec<GenerationHandle>, PlanError> {
        Ok(request.images()?.into_iter().map(|image| self.generate(image)).collect())
    }

    /// The engine as it is. Works on any async executor.
    ///
    /// # Errors
    /// When its threads do not answer.
    pub async fn status(&self) -> Result<ClusterStatus, EngineError> {
        self.coordinator.status().await.map_err(|_| gone())
    }

    /// As [`Self::status`], blocking this thread. Must not be called inside an async runtime.
    ///
    /// # Errors
    /// When its threads do not answer.
    pub fn blocking_status(&self) -> Result<ClusterStatus, EngineError> {
        self.coordinator.status().blocking_recv().map_err(|_| gone())
    }

    /// Ends all requests and joins all threads.
    pub fn shutdown(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread panicked");
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end();
    }
}

fn gone() -> EngineError {
    EngineError::Gone("its coordinator has stopped".into())
}

//! The fabric of one process: QUIC's, with UCX for the frames of links that want it.
//!
//! Owns the engine's thread. Invariant: closing the fabric ends the thread after every link is
//! closed.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::UcxConfig;
use super::driver::Driver;
use super::lane::LaneId;
use crate::error::TransportError;
use crate::fabric::Fabric;
use crate::quic::{QuicConfig, QuicFabric};
use crate::region::DeviceMemory;

/// Takes part in meshes over QUIC and UCX.
pub struct UcxFabric;

impl UcxFabric {
    /// Listens as [`QuicFabric`] does. Whether UCX is there shows when a mesh is formed.
    ///
    /// # Errors
    /// Those of [`QuicFabric::bind`], and [`TransportError::System`].
    pub fn bind(quic: &QuicConfig, ucx: UcxConfig) -> Result<Arc<dyn Fabric>, TransportError> {
        let lanes = UcxLanes::start(ucx, quic.device.clone())?;
        QuicFabric::bind_with(quic, Some(Arc::new(lanes)))
    }
}

/// Makes lanes of UCX for links of one fabric.
pub(super) struct UcxLanes {
    pub(super) config: UcxConfig,
    pub(super) driver: Arc<Driver>,
    next_lane: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl UcxLanes {
    fn start(
        config: UcxConfig,
        device: Option<Arc<dyn DeviceMemory>>,
    ) -> Result<Self, TransportError> {
        let (driver, thread) = Driver::start(config.clone(), device)?;
        Ok(Self { config, driver, next_lane: AtomicU64::new(0), thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn next_lane(&self) -> LaneId {
        LaneId(self.next_lane.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether a peer at `theirs` is on the host that is `ours`.
    pub(super) fn same_host(ours: IpAddr, theirs: IpAddr) -> bool {
        ours == theirs
    }

    pub(super) fn stop_thread(&self) {
        self.driver.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // It ends after at most a bounded number of turns; a panic was its own.
            let _ = thread.join();
        }
    }
}

impl Drop for UcxLanes {
    fn drop(&mut self) {
        self.stop_thread();
    }
}

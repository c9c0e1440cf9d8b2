//! The memory of a GPU as the transport knows memory.
//!
//! Owns no memory and no copy: both are `ditmesh_model::cuda`'s. Here its blocks become
//! [`Memory`], so that frames can lie in them.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use ditmesh_model::cuda::{FrameBlock, FrameDevice, Written};
use ditmesh_transport::error::TransportError;
use ditmesh_transport::region::{DeviceMemory, MemKind, Memory, Ready};

/// A GPU in whose memory frames may lie.
#[derive(Debug)]
pub struct GpuMemory(Arc<FrameDevice>);

impl GpuMemory {
    /// That of GPU `index` of this host.
    ///
    /// # Errors
    /// [`TransportError::Device`] when there is no such GPU or its driver cannot be used.
    pub fn open(index: usize) -> Result<Arc<dyn DeviceMemory>, TransportError> {
        let device =
            FrameDevice::open(index).map_err(|error| refused(index, "be opened", error))?;
        Ok(Arc::new(Self(device)))
    }
}

impl DeviceMemory for GpuMemory {
    fn kind(&self) -> MemKind {
        kind(self.0.index())
    }

    fn allocate(&self, len: usize) -> Result<Box<dyn Memory>, TransportError> {
        let index = self.0.index();
        let block = self.0.allocate(len);
        let block = block.map_err(|error| refused(index, "give memory to a frame", error))?;
        Ok(Box::new(GpuBlock { block, index }))
    }

    fn enter(&self) {
        if let Err(error) = self.0.enter() {
            // What is done with it next fails and says so.
            tracing::debug!(%error, gpu = self.0.index(), "a gpu cannot be entered");
        }
    }
}

/// A block of a GPU's memory.
pub(crate) struct GpuBlock {
    pub(crate) block: FrameBlock,
    index: usize,
}

impl Memory for GpuBlock {
    fn kind(&self) -> MemKind {
        kind(self.index)
    }

    fn len(&self) -> usize {
        self.block.len()
    }

    fn host(&self) -> Option<&[u8]> {
        None
    }

    fn host_mut(&mut self) -> Option<&mut [u8]> {
        None
    }

    fn device_address(&self) -> Option<u64> {
        Some(self.block.address())
    }

    fn copy_from(
        &mut self,
        from: &dyn Memory,
        offset: usize,
        len: usize,
    ) -> Result<(), TransportError> {
        let other = from.as_any().downcast_ref::<Self>().ok_or_else(|| {
            TransportError::mismatch("memory kinds", format!("{:?}", from.kind()), "blocks of ours")
        })?;
        let copied = self.block.copy_from(&other.block, offset, len);
        copied.map_err(|error| refused(self.index, "copy a frame", error))
    }

    fn is_idle(&self) -> bool {
        self.block.is_idle()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// An event of a GPU.
pub(crate) struct GpuReady(pub(crate) Written);

impl Ready for GpuReady {
    fn wait(&self, deadline: Instant) -> bool {
        self.0.wait(deadline)
    }
}

fn kind(index: usize) -> MemKind {
    MemKind::Cuda { device: u32::try_from(index).unwrap_or(u32::MAX) }
}

fn refused(index: usize, what: &'static str, error: impl ToString) -> TransportError {
    TransportError::Device { device: format!("gpu {index}"), what, cause: error.to_string() }
}

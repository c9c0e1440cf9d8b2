//! Frames to a GPU and back through pinned memory.
//!
//! Owns two pinned chunks per device: while one is copied by the GPU's engine the host fills or
//! empties the other, and no transfer needs more pinned memory than that, whatever its size.
#![allow(unsafe_code)]

use candle_core::cuda_backend::WrapErr;
use candle_core::{CudaDevice, Device, Result, Shape, Tensor};
use cudarc::driver::{CudaStream, HostSlice, PinnedHostSlice, SyncOnDrop};

use super::{on_gpu, wrap};

/// Bytes of one chunk.
pub const STAGING_CHUNK_BYTES: usize = 4 << 20;
const CHUNK_FLOATS: usize = STAGING_CHUNK_BYTES / size_of::<f32>();

/// Pinned memory of one device.
pub struct Staging {
    device: CudaDevice,
    chunks: [PinnedHostSlice<f32>; 2],
}

/// The first floats of a chunk, for a copy to or from exactly those.
struct Prefix<'a>(&'a mut PinnedHostSlice<f32>, usize);

impl HostSlice<f32> for Prefix<'_> {
    fn len(&self) -> usize {
        self.1
    }

    unsafe fn stream_synced_slice<'a>(
        &'a self,
        stream: &'a CudaStream,
    ) -> (&'a [f32], SyncOnDrop<'a>) {
        // SAFETY: the caller uses the slice with `stream` only, as this trait asks.
        let (all, guard) = unsafe { self.0.stream_synced_slice(stream) };
        (&all[..self.1], guard)
    }

    unsafe fn stream_synced_mut_slice<'a>(
        &'a mut self,
        stream: &'a CudaStream,
    ) -> (&'a mut [f32], SyncOnDrop<'a>) {
        // SAFETY: the caller uses the slice with `stream` only, as this trait asks.
        let (all, guard) = unsafe { self.0.stream_synced_mut_slice(stream) };
        (&mut all[..self.1], guard)
    }
}

impl Staging {
    /// Pins two chunks for `device`.
    ///
    /// # Errors
    /// When `device` is no GPU or the memory cannot be pinned.
    pub fn new(device: &Device) -> Result<Self> {
        let Device::Cuda(device) = device else {
            candle_core::bail!("staging is for gpus, not for {:?}", device.location())
        };
        let stream = device.cuda_stream();
        let pin = || {
            // Not write-combined: the host reads the chunks too.
            // SAFETY: a chunk is read only after the host or a copy wrote to it.
            unsafe { stream.context().alloc_pinned_with_flags::<f32>(CHUNK_FLOATS, 0) }.w()
        };
        Ok(Self { device: device.clone(), chunks: [pin()?, pin()?] })
    }

    /// Copies f32 `tensor` of any strides to `host`, which has as many elements.
    ///
    /// # Errors
    /// When the tensor is not f32 on this GPU, the lengths differ, or a copy fails.
    pub fn to_host(&mut self, tensor: &Tensor, host: &mut [f32]) -> Result<()> {
        if tensor.elem_count() != host.len() {
            candle_core::bail!("{} elements do not fill {}", tensor.elem_count(), host.len());
        }
        let tensor = tensor.contiguous()?;
        let stream = self.device.cuda_stream();
        let (storage, layout) = tensor.storage_and_layout();
        let source = on_gpu(&storage)?.as_cuda_slice::<f32>()?.slice(layout.start_offset()..);
        // The chunk that is on its way, and where it goes.
        let mut under_way: Option<(usize, &mut [f32])> = None;
        for (index, part) in host.chunks_mut(CHUNK_FLOATS).enumerate() {
            let (start, chunk) = (index * CHUNK_FLOATS, index % 2);
            let mut pinned = Prefix(&mut self.chunks[chunk], part.len());
            stream.memcpy_dtoh(&source.slice(start..start + part.len()), &mut pinned).w()?;
            if let Some((chunk, part)) = under_way.replace((chunk, part)) {
                self.empty(chunk, part)?;
            }
        }
        under_way.map_or(Ok(()), |(chunk, part)| self.empty(chunk, part))
    }

    /// Waits until the chunk is full and hands its content on.
    fn empty(&self, chunk: usize, part: &mut [f32]) -> Result<()> {
        part.copy_from_slice(&self.chunks[chunk].as_slice().w()?[..part.len()]);
        Ok(())
    }

    /// Copies `host` to a new tensor of `shape` on the device.
    ///
    /// # Errors
    /// When the shape has another number of elements, or a copy fails.
    pub fn to_device(&mut self, host: &[f32], shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if shape.elem_count() != host.len() {
            candle_core::bail!("{} elements do not make {shape:?}", host.len());
        }
        let stream = self.device.cuda_stream();
        // SAFETY: the copies below write every element before anything reads it.
        let mut target = unsafe { self.device.alloc::<f32>(host.len())? };
        for (index, part) in host.chunks(CHUNK_FLOATS).enumerate() {
            let (start, chunk) = (index * CHUNK_FLOATS, &mut self.chunks[index % 2]);
            // Waits for the copy that still reads the chunk.
            chunk.as_mut_slice().w()?[..part.len()].copy_from_slice(part);
            let mut to = target.slice_mut(start..start + part.len());
            stream.memcpy_htod(&Prefix(chunk, part.len()), &mut to).w()?;
        }
        Ok(wrap(target, &self.device, shape))
    }
}

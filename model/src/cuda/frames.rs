//! Frames that stay in a GPU's memory: blocks that other processes can map, and the copies between
//! them and tensors.
//!
//! Owns the blocks, which do not come from the stream-ordered pool that tensors come from, because
//! that cannot be shared with other processes. A tensor is copied on the GPU, at the speed of its
//! memory, so that a frame does not hold tensors up, nor they it. Invariants: a copy is ordered
//! behind whatever its tensor's stream was told before, and nobody waits for it here; a block that
//! is read says so until that is over.
#![allow(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::cuda_backend::WrapErr;
use candle_core::{CudaDevice, DType, Device, Result, Shape, Tensor};
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{
    CudaContext, CudaEvent, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, result,
};

use super::{device_of, on_gpu, wrap};

/// How long an event is looked at again and again before whoever waits begins to sleep in between.
const SPIN: Duration = Duration::from_micros(200);
/// How long they sleep.
const NAP: Duration = Duration::from_micros(20);

/// A GPU as the owner of blocks for frames.
pub struct FrameDevice {
    context: Arc<CudaContext>,
    /// For copies from block to block.
    copies: Arc<CudaStream>,
    index: usize,
}

impl FrameDevice {
    /// GPU `index` of this host.
    ///
    /// # Errors
    /// When there is no such GPU or its driver cannot be used.
    pub fn open(index: usize) -> Result<Arc<Self>> {
        let context = CudaContext::new(index).w()?;
        let copies = context.new_stream().w()?;
        Ok(Arc::new(Self { context, copies, index }))
    }

    /// Which GPU of the host it is.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Lets the calling thread use the GPU.
    ///
    /// # Errors
    /// When the GPU has failed.
    pub fn enter(&self) -> Result<()> {
        self.context.bind_to_thread().w()
    }

    /// A block of `len` bytes, whatever is in it.
    ///
    /// # Errors
    /// When the GPU has not as much left.
    pub fn allocate(self: &Arc<Self>, len: usize) -> Result<FrameBlock> {
        self.enter()?;
        // SAFETY: the GPU is current; what is in the block is not read before it was written.
        let address = unsafe { result::malloc_sync(len.max(1)) }.w()?;
        Ok(FrameBlock { device: Arc::clone(self), address, len, reading: None })
    }
}

impl fmt::Debug for FrameDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameDevice({})", self.index)
    }
}

/// Memory of a GPU for one frame.
pub struct FrameBlock {
    device: Arc<FrameDevice>,
    address: CUdeviceptr,
    len: usize,
    /// Behind the last copy out of it.
    reading: Option<CudaEvent>,
}

impl FrameBlock {
    /// Where it is for the GPU.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether every copy out of it is over.
    pub fn is_idle(&self) -> bool {
        let entered = self.device.enter().is_ok();
        self.reading.as_ref().is_none_or(|event| entered && event.is_complete())
    }

    /// Copies `len` bytes from `offset` on of another block of this GPU; they are there when this
    /// returns.
    ///
    /// # Errors
    /// When they do not lie inside, or the copy fails.
    pub fn copy_from(&mut self, from: &Self, offset: usize, len: usize) -> Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > from.len) || len > self.len {
            candle_core::bail!(
                "{len} bytes at {offset} of a block of {} do not fit into one of {}",
                from.len,
                self.len
            );
        }
        self.device.enter()?;
        let source = from.address + offset as u64;
        let stream = &self.device.copies;
        // SAFETY: both ranges lie inside their blocks, which live, and this one is exclusive.
        unsafe { result::memcpy_dtod_async(self.address, source, len, stream.cu_stream()) }.w()?;
        stream.synchronize().w()
    }

    /// Has an f32 tensor of any strides copied to the beginning of this block.
    ///
    /// # Errors
    /// When the tensor is not f32 on a GPU, is larger than the block, or the copy is refused.
    pub fn write(&mut self, tensor: &Tensor) -> Result<Written> {
        let tensor = tensor.contiguous()?;
        let stream = device_of(&tensor)?.cuda_stream();
        let (storage, layout) = tensor.storage_and_layout();
        let elements = layout.shape().elem_count();
        let bytes = self.bytes_of(elements)?;
        let first = layout.start_offset();
        let source = on_gpu(&storage)?.as_cuda_slice::<f32>()?.slice(first..first + elements);
        if bytes > 0 {
            let (from, _read) = source.device_ptr(&stream);
            // SAFETY: the view has as many bytes, and so has this block, which is exclusive; the
            // stream keeps the order with whoever writes to the tensor or frees it.
            unsafe { result::memcpy_dtod_async(self.address, from, bytes, stream.cu_stream()) }
                .w()?;
        }
        let event = stream.record_event(None).w()?;
        Ok(Written { event, device: Arc::clone(&self.device) })
    }

    /// A new tensor of `shape` on `device` with what is at the beginning of this block.
    ///
    /// # Errors
    /// When `device` is no GPU, the shape has more elements than the block, or a copy is refused.
    pub fn read(&mut self, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        let shape = shape.into();
        let Device::Cuda(device) = device else {
            candle_core::bail!("a frame on a gpu is not for {:?}", device.location())
        };
        let bytes = self.bytes_of(shape.elem_count())?;
        // SAFETY: the copy below writes every element before anything reads it.
        let mut target = unsafe { device.alloc::<f32>(shape.elem_count())? };
        self.copy_out(&mut target, bytes, device)?;
        Ok(wrap(target, device, shape))
    }

    fn copy_out(
        &mut self,
        target: &mut CudaSlice<f32>,
        bytes: usize,
        device: &CudaDevice,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let stream = device.cuda_stream();
        let (to, _written) = target.device_ptr_mut(&stream);
        // SAFETY: the target has as many bytes, and so has this block, which nobody writes to
        // before `reading` is complete; the stream keeps the order with the target's readers.
        unsafe { result::memcpy_dtod_async(to, self.address, bytes, stream.cu_stream()) }.w()?;
        self.reading = Some(stream.record_event(None).w()?);
        Ok(())
    }

    fn bytes_of(&self, elements: usize) -> Result<usize> {
        let bytes = elements * DType::F32.size_in_bytes();
        if bytes > self.len {
            candle_core::bail!("{elements} floats do not fit into a block of {} bytes", self.len);
        }
        Ok(bytes)
    }
}

impl Drop for FrameBlock {
    fn drop(&mut self) {
        // A GPU that has failed has nothing to give back.
        if self.device.enter().is_ok() {
            // SAFETY: allocated once and freed once; the driver waits for what still reads it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// What must have happened before a written block may be read.
pub struct Written {
    event: CudaEvent,
    device: Arc<FrameDevice>,
}

impl Written {
    /// Waits for it; false when the deadline passed first.
    pub fn wait(&self, deadline: Instant) -> bool {
        if self.device.enter().is_err() {
            return false;
        }
        let begun = Instant::now();
        loop {
            if self.event.is_complete() {
                return true;
            }
            let now = Instant::now();
            if now >= deadline {
                return false;
            }
            if now.duration_since(begun) < SPIN {
                std::thread::yield_now();
            } else {
                std::thread::sleep(NAP);
            }
        }
    }
}

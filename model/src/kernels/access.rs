//! Reading the numbers of a candle tensor on the CPU.
//!
//! Owns the step from a tensor to a slice. Invariant: a slice handed out starts at the tensor's
//! first element and runs to the end of its storage.

use candle_core::{CpuStorage, Error, Result, Storage, StorageRef, Tensor};

/// The shared lock on a tensor's storage, with where its elements begin.
pub(super) struct Access<'a> {
    storage: StorageRef<'a>,
    start: usize,
}

impl<'a> Access<'a> {
    /// Opens `tensor`, which may have any strides.
    pub(super) fn open(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, start: layout.start_offset() }
    }

    /// The f32 elements from the first on; longer than the tensor when it is a view.
    pub(super) fn f32(&self) -> Result<&[f32]> {
        self.cpu()?.as_slice::<f32>().map(|all| &all[self.start..])
    }

    /// The storage, whatever its type, with the index of the first element.
    pub(super) fn raw(&self) -> Result<(&CpuStorage, usize)> {
        Ok((self.cpu()?, self.start))
    }

    fn cpu(&self) -> Result<&CpuStorage> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(storage),
            _ => Err(Error::Msg("a cpu kernel was given a tensor of another device".into())),
        }
    }
}

/// Runs `with` on the elements of an f32 tensor in row-major order, copying only strided views.
pub(super) fn with_contiguous<R>(
    tensor: &Tensor,
    with: impl FnOnce(&[f32]) -> Result<R>,
) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let access = Access::open(&tensor);
    with(&access.f32()?[..tensor.elem_count()])
}

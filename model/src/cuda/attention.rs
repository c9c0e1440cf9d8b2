//! Attention with log-sum-exp: one launch in f32, two in bf16.
//!
//! Owns the shapes of launches and the bf16 copy of keys and values that lives during a call. The
//! arithmetic is the source's.
#![allow(unsafe_code)]

use candle_core::cuda_backend::WrapErr;
use candle_core::{CudaDevice, Result, Tensor};
use cudarc::driver::sys::CUfunction_attribute_enum as Attribute;
use cudarc::driver::{CudaFunction, CudaSlice, LaunchConfig, PushKernelArg};

use super::program::Program;
use super::{device_of, on_gpu, wrap};
use crate::attention::Precision;

/// Keys of a tile, and queries of a block in f32.
const TILE: usize = 64;
/// Widest head whose tiles fit in the shared memory of every GPU since 2020.
const HEAD_WIDTH_MAX: usize = 128;
/// Widest head, padded, at which a warp in bf16 has registers for 32 queries instead of 16.
const TWO_TILES_WIDTH_MAX: usize = 96;
/// Shared memory of a block that needs no permission, in bytes.
const SHARED_BYTES_PLAIN: usize = 48 << 10;

/// The elements of a tensor on the GPU from its first on, under a name.
macro_rules! view {
    ($name:ident, $tensor:expr) => {
        let held = $tensor.storage_and_layout();
        let $name = on_gpu(&held.0)?.as_cuda_slice::<f32>()?.slice(held.1.start_offset()..);
    };
}

/// As [`crate::kernels::flash_attention`], for f32 tensors on one GPU. `Ok(None)` when the heads
/// are too wide for the kernels.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    key_bias: Option<&Tensor>,
    precision: Precision,
) -> Result<Option<(Tensor, Tensor)>> {
    if q.dim(3)? > HEAD_WIDTH_MAX {
        return Ok(None);
    }
    let rows =
        |x: &Tensor| if x.stride().last() == Some(&1) { Ok(x.clone()) } else { x.contiguous() };
    let call = Call {
        device: device_of(q)?,
        q: rows(q)?,
        k: rows(k)?,
        v: rows(v)?,
        bias: key_bias.map(Tensor::contiguous).transpose()?,
        scale: scale as f32,
    };
    match precision {
        Precision::Full => call.full(),
        Precision::Half => call.half(),
    }
    .map(Some)
}

/// One call: every tensor's last stride is 1.
struct Call {
    device: CudaDevice,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Option<Tensor>,
    scale: f32,
}

/// Batch, token and head strides in elements.
fn strides(x: &Tensor) -> [i64; 3] {
    let mut strides = [0; 3];
    strides.iter_mut().zip(x.stride()).for_each(|(to, &from)| *to = from as i64);
    strides
}

impl Call {
    fn width(&self) -> Result<usize> {
        self.q.dim(3)
    }

    fn padded(&self) -> Result<usize> {
        Ok(self.width()?.next_multiple_of(16))
    }

    /// Batch rows times heads.
    fn stacks(&self) -> Result<u32> {
        let (batch, _, heads, _) = self.q.dims4()?;
        Ok((batch * heads) as u32)
    }

    /// A function of this width that may use `shared` bytes.
    fn function(&self, entry: &str, shared: usize) -> Result<CudaFunction> {
        let function = Program::Attention(self.width()?).function(&self.device, entry)?;
        if shared > SHARED_BYTES_PLAIN {
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, shared as i32).w()?;
        }
        Ok(function)
    }

    /// Memory for the result and its log-sum-exp.
    fn places(&self) -> Result<(CudaSlice<f32>, CudaSlice<f32>)> {
        let (batch, queries, heads, width) = self.q.dims4()?;
        // SAFETY: the kernels write every element of both before anything reads them.
        let out = unsafe { self.device.alloc::<f32>(batch * queries * heads * width)? };
        // SAFETY: as above.
        let lse = unsafe { self.device.alloc::<f32>(batch * heads * queries)? };
        Ok((out, lse))
    }

    fn finish(&self, out: CudaSlice<f32>, lse: CudaSlice<f32>) -> Result<(Tensor, Tensor)> {
        let (batch, queries, heads, width) = self.q.dims4()?;
        let out = wrap(out, &self.device, (batch, queries, heads, width));
        Ok((out, wrap(lse, &self.device, (batch, heads, queries))))
    }

    fn full(&self) -> Result<(Tensor, Tensor)> {
        let (_, queries, heads, width) = self.q.dims4()?;
        let (mut out, mut lse) = self.places()?;
        if self.q.elem_count() == 0 {
            return self.finish(out, lse);
        }
        let floats = 2 * width * TILE + TILE * self.padded()? + TILE * (TILE + 1);
        let shared = floats * size_of::<f32>();
        let function = self.function("attention_f32", shared)?;
        let stream = self.device.cuda_stream();
        view!(q, self.q);
        view!(k, self.k);
        view!(v, self.v);
        let all_strides = [strides(&self.q), strides(&self.k), strides(&self.v)];
        let counts = [queries as i32, self.k.dim(1)? as i32, heads as i32];
        let absent = 0u64;
        let bias = self.bias.as_ref().map(Tensor::storage_and_layout);
        let bias = match &bias {
            Some((storage, layout)) => {
                Some(on_gpu(storage)?.as_cuda_slice::<f32>()?.slice(layout.start_offset()..))
            }
            None => None,
        };
        let mut launch = stream.launch_builder(&function);
        for (view, strides) in [&q, &k, &v].into_iter().zip(&all_strides) {
            launch.arg(view).arg(&strides[0]).arg(&strides[1]).arg(&strides[2]);
        }
        match &bias {
            Some(bias) => launch.arg(bias),
            None => launch.arg(&absent),
        };
        launch.arg(&mut out).arg(&mut lse);
        launch.arg(&counts[0]).arg(&counts[1]).arg(&counts[2]).arg(&self.scale);
        let size = LaunchConfig {
            grid_dim: (queries.div_ceil(TILE) as u32, self.stacks()?, 1),
            block_dim: (256, 1, 1),
            shared_mem_bytes: shared as u32,
        };
        // SAFETY: shapes and strides are those of the tensors the views belong to; the kernel reads
        // tokens below `queries` and `keys` only and writes each query of each head once.
        unsafe { launch.launch(size) }.w()?;
        self.finish(out, lse)
    }

    /// 32-bit words of a packed tile of keys and values.
    fn tile_words(&self) -> Result<usize> {
        let padded = self.padded()?;
        Ok(TILE * (padded / 2 + 4) + padded * (TILE / 2 + 4))
    }

    /// Keys and values in bf16, tile by tile as the kernel wants them.
    fn packed(&self) -> Result<CudaSlice<u32>> {
        let (keys, heads) = (self.k.dim(1)?, self.q.dim(2)? as i32);
        let tiles = keys.div_ceil(TILE);
        let words = self.stacks()? as usize * tiles * self.tile_words()?;
        // SAFETY: the kernel below writes every word that the attention kernel uses.
        let mut packed = unsafe { self.device.alloc::<u32>(words)? };
        if words == 0 {
            return Ok(packed);
        }
        let function = self.function("pack_keys_values", 0)?;
        let stream = self.device.cuda_stream();
        view!(k, self.k);
        view!(v, self.v);
        let (k_strides, v_strides, keys) = (strides(&self.k), strides(&self.v), keys as i32);
        let mut launch = stream.launch_builder(&function);
        launch.arg(&k).arg(&k_strides[0]).arg(&k_strides[1]).arg(&k_strides[2]);
        launch.arg(&v).arg(&v_strides[0]).arg(&v_strides[1]).arg(&v_strides[2]);
        launch.arg(&mut packed).arg(&keys).arg(&heads);
        let size = LaunchConfig {
            grid_dim: (tiles as u32, self.stacks()?, 1),
            block_dim: (256, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: strides are those of the tensors, tokens below `keys` only are read, and there
        // is one block for each tile of `packed`.
        unsafe { launch.launch(size) }.w()?;
        Ok(packed)
    }

    fn half(&self) -> Result<(Tensor, Tensor)> {
        let (_, queries, heads, _) = self.q.dims4()?;
        let (mut out, mut lse) = self.places()?;
        if self.q.elem_count() == 0 {
            return self.finish(out, lse);
        }
        let packed = self.packed()?;
        let shared = 2 * self.tile_words()? * size_of::<u32>();
        let function = self.function("attention_bf16", shared)?;
        let stream = self.device.cuda_stream();
        view!(q, self.q);
        let q_strides = strides(&self.q);
        let counts = [queries as i32, self.k.dim(1)? as i32, heads as i32];
        let absent = 0u64;
        let bias = self.bias.as_ref().map(Tensor::storage_and_layout);
        let bias = match &bias {
            Some((storage, layout)) => {
                Some(on_gpu(storage)?.as_cuda_slice::<f32>()?.slice(layout.start_offset()..))
            }
            None => None,
        };
        let mut launch = stream.launch_builder(&function);
        launch.arg(&q).arg(&q_strides[0]).arg(&q_strides[1]).arg(&q_strides[2]).arg(&packed);
        match &bias {
            Some(bias) => launch.arg(bias),
            None => launch.arg(&absent),
        };
        launch.arg(&mut out).arg(&mut lse);
        launch.arg(&counts[0]).arg(&counts[1]).arg(&counts[2]).arg(&self.scale);
        let of_warp = if self.padded()? > TWO_TILES_WIDTH_MAX { 16 } else { 32 };
        let size = LaunchConfig {
            grid_dim: (queries.div_ceil(4 * of_warp) as u32, self.stacks()?, 1),
            block_dim: (128, 1, 1),
            shared_mem_bytes: shared as u32,
        };
        // SAFETY: as in `full`; `packed` holds all tiles of all heads.
        unsafe { launch.launch(size) }.w()?;
        self.finish(out, lse)
    }
}

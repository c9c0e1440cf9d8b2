//! Norm with modulation, and what follows a product, as one launch each.
#![allow(unsafe_code)]

use candle_core::cuda_backend::WrapErr;
use candle_core::{D, DType, Result, Tensor};
use cudarc::driver::{LaunchConfig, PushKernelArg};

use super::program::Program;
use super::{device_of, on_gpu, wrap};
use crate::kernels::Epilogue;

/// Threads of a block; the kernels are written for this many.
const THREADS: u32 = 256;

/// As [`crate::kernels::layer_norm_modulate`]: f32 `x` `[.., D]`, `shift` and `scale` `[D]`.
pub(crate) fn norm_modulate(
    x: &Tensor,
    shift: &Tensor,
    scale: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let (x, shift, scale) = (x.contiguous()?, shift.contiguous()?, scale.contiguous()?);
    let device = device_of(&x)?;
    let stream = device.cuda_stream();
    let width = x.dim(D::Minus1)?;
    let rows = x.elem_count() / width.max(1);
    let (x_data, x_layout) = x.storage_and_layout();
    let (shift_data, shift_layout) = shift.storage_and_layout();
    let (scale_data, scale_layout) = scale.storage_and_layout();
    let x_slice = on_gpu(&x_data)?.as_cuda_slice::<f32>()?.slice(x_layout.start_offset()..);
    let shift_slice =
        on_gpu(&shift_data)?.as_cuda_slice::<f32>()?.slice(shift_layout.start_offset()..);
    let scale_slice =
        on_gpu(&scale_data)?.as_cuda_slice::<f32>()?.slice(scale_layout.start_offset()..);
    // SAFETY: the kernel below writes every element before anything reads it.
    let mut y = unsafe { device.alloc::<f32>(rows * width)? };
    if rows > 0 {
        let function = Program::Rows.function(&device, "norm_modulate")?;
        let (columns, eps) = (width as i32, eps as f32);
        let mut launch = stream.launch_builder(&function);
        launch.arg(&x_slice).arg(&shift_slice).arg(&scale_slice).arg(&mut y);
        launch.arg(&columns).arg(&eps);
        let size = LaunchConfig {
            grid_dim: (rows as u32, 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: one block per row of `x` and `y`, `shift` and `scale` hold a row, all f32.
        unsafe { launch.launch(size) }.w()?;
    }
    Ok(wrap(y, &device, x.shape()))
}

/// Activation numbers of the kernel.
const NONE: i32 = 0;
const GELU_TANH: i32 = 1;
const SILU: i32 = 2;

/// `epilogue(product + bias)` in f32 `[.., out]`: `product` is f32 or bf16 of that shape, `bias`
/// f32 `[out]`.
pub(crate) fn epilogue(
    product: &Tensor,
    bias: Option<&Tensor>,
    epilogue: Epilogue<'_>,
) -> Result<Tensor> {
    let product = product.contiguous()?;
    let device = device_of(&product)?;
    let stream = device.cuda_stream();
    let (activation, gate, residual) = match epilogue {
        Epilogue::None => (NONE, None, None),
        Epilogue::GeluTanh => (GELU_TANH, None, None),
        Epilogue::Silu => (SILU, None, None),
        Epilogue::Residual { residual, gate } => (NONE, gate, Some(residual)),
    };
    let contiguous = |x: Option<&Tensor>| x.map(Tensor::contiguous).transpose();
    let (bias, gate) = (contiguous(bias)?, contiguous(gate)?);
    let residual = contiguous(residual)?;
    let (count, width) = (product.elem_count(), product.dim(D::Minus1)? as i32);
    let held = [&bias, &gate, &residual].map(|x| x.as_ref().map(Tensor::storage_and_layout));
    let mut views = Vec::with_capacity(held.len());
    for view in &held {
        views.push(match view {
            Some((storage, layout)) => {
                Some(on_gpu(storage)?.as_cuda_slice::<f32>()?.slice(layout.start_offset()..))
            }
            None => None,
        });
    }
    let (storage, layout) = product.storage_and_layout();
    let storage = on_gpu(&storage)?;
    // SAFETY: the kernel below writes every element before anything reads it.
    let mut y = unsafe { device.alloc::<f32>(count)? };
    if count == 0 {
        return Ok(wrap(y, &device, product.shape()));
    }
    let absent = 0u64;
    let blocks = count.div_ceil(THREADS as usize) as u32;
    let size =
        LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
    macro_rules! launch {
        ($type:ty, $entry:literal) => {{
            let input = storage.as_cuda_slice::<$type>()?.slice(layout.start_offset()..);
            let function = Program::Rows.function(&device, $entry)?;
            let mut launch = stream.launch_builder(&function);
            launch.arg(&input);
            for view in &views {
                match view {
                    Some(view) => launch.arg(view),
                    None => launch.arg(&absent),
                };
            }
            launch.arg(&mut y).arg(&width).arg(&count).arg(&activation);
            // SAFETY: one thread per element; the vectors hold a row, `residual` all elements
            // (checked by the caller), and an absent one is a null pointer the kernel tests for.
            unsafe { launch.launch(size) }.w()?;
        }};
    }
    match product.dtype() {
        DType::F32 => launch!(f32, "epilogue_f32"),
        DType::BF16 => launch!(half::bf16, "epilogue_bf16"),
        other => candle_core::bail!("a product of {other:?} has no epilogue on the gpu"),
    }
    Ok(wrap(y, &device, product.shape()))
}

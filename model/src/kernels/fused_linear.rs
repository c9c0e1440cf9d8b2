//! A linear layer with what follows it, in one go: bias, activation, gate and residual.
//!
//! Owns the product with weights in f32, f16 or bf16 and the epilogues, which run in place on the
//! product's rows. Activations are f32. Does not own weights or names.
//!
//! Half-precision weights stay as they are stored; a panel of at most [`PANEL_ELEMENTS_MAX`] of
//! them is widened to f32 at a time, so a call never holds a second copy of the layer.
#![allow(unsafe_code)]

use std::ops::Range;

use candle_core::{CpuStorage, Device, Result, Tensor};
use half::slice::HalfFloatSliceExt;

use super::access::{Access, with_contiguous};
use super::activation::{gelu_tanh_row, silu_row};
use super::gemm::{Destination, Matrix, packed_product, product};
use super::isa::{Isa, multiversion};
use super::packed::PackedWeight;
use super::parallel::{rows_in_place, threads};

/// Weights widened to f32 at a time (4 MiB of f32).
pub(super) const PANEL_ELEMENTS_MAX: usize = 1 << 20;
/// Elements a thread widens at a time.
const WIDEN_ELEMENTS: usize = 1 << 14;
/// Rows below which another thread is not worth waking for an epilogue.
const ROWS_PER_THREAD_MIN: usize = 8;

/// What happens to `y = x W^T + bias` before it is handed out.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// Nothing.
    None,
    /// `gelu(y)`, tanh form.
    GeluTanh,
    /// `y * sigmoid(y)`.
    Silu,
    /// `residual + gate * y`: `residual` has the shape of the result, `gate` is `[out]`.
    Residual {
        /// What is added to.
        residual: &'a Tensor,
        /// Factor per output feature; none means 1.
        gate: Option<&'a Tensor>,
    },
}

/// `epilogue(x W^T + bias)`: `x` f32 `[.., in]`, `weight` f32, f16 or bf16 `[out, in]`, `bias` f32
/// `[out]`; f32 `[.., out]`.
///
/// # Errors
/// When shapes or types do not fit, or candle fails.
pub fn fused_linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    epilogue: Epilogue<'_>,
) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    let shape = result_shape(x, in_features, out_features)?;
    check_epilogue(&shape, bias, epilogue)?;
    if !x.device().is_cpu() {
        return plain(x, weight, bias, epilogue);
    }
    with_product(x, shape, bias, epilogue, |x| times_transposed(x, weight))
}

/// The same with a weight that is packed, and some of its output features alone.
///
/// # Errors
/// As [`fused_linear`], and when `x` is not on the CPU or there are no such output features.
pub fn packed_linear(
    x: &Tensor,
    weight: &PackedWeight,
    outputs: Range<usize>,
    bias: Option<&Tensor>,
    epilogue: Epilogue<'_>,
) -> Result<Tensor> {
    let shape = result_shape(x, weight.inputs(), outputs.len())?;
    check_epilogue(&shape, bias, epilogue)?;
    let Some(columns) = weight.columns(outputs.clone()) else {
        candle_core::bail!("no outputs {outputs:?} among {}", weight.outputs())
    };
    with_product(x, shape, bias, epilogue, |x| {
        let len = x.rows * columns.len();
        let mut out: Vec<f32> = Vec::with_capacity(len);
        let start = out.spare_capacity_mut().as_mut_ptr().cast::<f32>();
        // SAFETY: `out` has room for these rows and columns and is exclusively owned; the product
        // writes all of them.
        unsafe {
            let destination = Destination { start, row_stride: columns.len() };
            packed_product(destination, x, columns, threads());
            out.set_len(len);
        }
        Ok(out)
    })
}

/// The shape of a result for `x`, which must have `inputs` features.
fn result_shape(x: &Tensor, inputs: usize, outputs: usize) -> Result<Vec<usize>> {
    let mut shape = x.dims().to_vec();
    match shape.last_mut() {
        Some(last) if *last == inputs => *last = outputs,
        _ => candle_core::bail!("linear layer of {inputs} inputs got {:?}", x.dims()),
    }
    Ok(shape)
}

/// What `product` makes of the rows of `x`, with bias and epilogue.
fn with_product(
    x: &Tensor,
    shape: Vec<usize>,
    bias: Option<&Tensor>,
    epilogue: Epilogue<'_>,
    product: impl FnOnce(Matrix<'_>) -> Result<Vec<f32>>,
) -> Result<Tensor> {
    let last = |shape: &[usize]| shape.last().copied().unwrap_or(0);
    let cols = last(x.dims());
    let rows = x.elem_count() / cols.max(1);
    let mut out = with_contiguous(x, |data| {
        product(Matrix { data, rows, cols, row_stride: cols, col_stride: 1 })
    })?;
    finish(&mut out, last(&shape), bias, epilogue)?;
    Tensor::from_vec(out, shape, &Device::Cpu)
}

fn check_epilogue(shape: &[usize], bias: Option<&Tensor>, epilogue: Epilogue<'_>) -> Result<()> {
    let width = &shape[shape.len() - 1..];
    let (residual, gate) = match epilogue {
        Epilogue::Residual { residual, gate } => (Some(residual), gate),
        _ => (None, None),
    };
    for vector in bias.iter().chain(gate.iter()) {
        if vector.dims() != width {
            candle_core::bail!("linear layer of {width:?} got a vector of {:?}", vector.dims());
        }
    }
    match residual {
        Some(residual) if residual.dims() != shape => {
            candle_core::bail!("result {shape:?} cannot be added to {:?}", residual.dims())
        }
        _ => Ok(()),
    }
}

/// The same with candle's operations, for devices that are not the CPU.
fn plain(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    epilogue: Epilogue<'_>,
) -> Result<Tensor> {
    // One product over all rows, whatever the batch.
    let rows = x.elem_count() / weight.dim(1)?.max(1);
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(weight.dim(0)?);
    let flat = x.reshape((rows, weight.dim(1)?))?.to_dtype(weight.dtype())?;
    let product = flat.matmul(&weight.t()?)?.reshape(shape)?;
    #[cfg(feature = "cuda")]
    if product.device().is_cuda()
        && matches!(product.dtype(), candle_core::DType::F32 | candle_core::DType::BF16)
    {
        return crate::cuda::epilogue(&product, bias, epilogue);
    }
    let mut y = product.to_dtype(x.dtype())?;
    if let Some(bias) = bias {
        y = y.broadcast_add(&bias.to_dtype(x.dtype())?)?;
    }
    match epilogue {
        Epilogue::None => Ok(y),
        Epilogue::GeluTanh => y.gelu(),
        Epilogue::Silu => y.silu(),
        Epilogue::Residual { residual, gate: None } => residual + y,
        Epilogue::Residual { residual, gate: Some(gate) } => residual + y.broadcast_mul(gate)?,
    }
}

/// `x W^T` as rows of `out` features.
fn times_transposed(x: Matrix<'_>, weight: &Tensor) -> Result<Vec<f32>> {
    let (out_features, in_features) = weight.dims2()?;
    let weight = weight.contiguous()?;
    let access = Access::open(&weight);
    let (storage, start) = access.raw()?;
    let len = x.rows * out_features;
    let mut out: Vec<f32> = Vec::with_capacity(len);
    let multiply = |first: usize, panel: &[f32], out: &mut Vec<f32>| {
        let panel = Matrix {
            data: panel,
            rows: panel.len() / in_features.max(1),
            cols: in_features,
            row_stride: in_features,
            col_stride: 1,
        };
        let start = out.spare_capacity_mut()[first.min(len)..].as_mut_ptr().cast::<f32>();
        // SAFETY: `out` has room for `rows * out_features` elements and is borrowed mutably;
        // columns `first .. first + panel.rows` lie within a row of `out_features`.
        unsafe {
            let destination = Destination { start, row_stride: out_features };
            product(destination, x, panel.transposed(), 1.0, false, threads());
        }
    };
    let elements = start..start + out_features * in_features;
    if in_features == 0 {
        return Ok(vec![0.0; len]);
    }
    match storage {
        CpuStorage::F32(all) => multiply(0, &all[elements], &mut out),
        CpuStorage::F16(all) => in_panels(&all[elements], in_features, |first, panel, buffer| {
            widen(panel, buffer, |from, to| from.convert_to_f32_slice(to));
            multiply(first, buffer, &mut out);
        }),
        CpuStorage::BF16(all) => in_panels(&all[elements], in_features, |first, panel, buffer| {
            widen(panel, buffer, |from, to| from.convert_to_f32_slice(to));
            multiply(first, buffer, &mut out);
        }),
        _ => candle_core::bail!("linear weights of type {:?} are not supported", weight.dtype()),
    }
    // SAFETY: the panels cover all output features, so every element of every row was written.
    unsafe { out.set_len(len) };
    Ok(out)
}

/// Hands the weights to `each` in panels of whole rows, with a buffer of the panel's size.
fn in_panels<T>(weights: &[T], row: usize, mut each: impl FnMut(usize, &[T], &mut [f32])) {
    let rows = (PANEL_ELEMENTS_MAX / row).max(1);
    let mut buffer = vec![0.0; (rows * row).min(weights.len())];
    for (index, panel) in weights.chunks(rows * row).enumerate() {
        each(index * rows, panel, &mut buffer[..panel.len()]);
    }
}

fn widen<T: Sync>(from: &[T], to: &mut [f32], convert: impl Fn(&[T], &mut [f32]) + Send + Sync) {
    let whole = to.len() / WIDEN_ELEMENTS * WIDEN_ELEMENTS;
    rows_in_place(&mut to[..whole], WIDEN_ELEMENTS, 2, |index, chunk| {
        convert(&from[index * WIDEN_ELEMENTS..][..WIDEN_ELEMENTS], chunk);
    });
    convert(&from[whole..], &mut to[whole..]);
}

/// Adds the bias and applies the epilogue in place.
fn finish(
    out: &mut [f32],
    width: usize,
    bias: Option<&Tensor>,
    epilogue: Epilogue<'_>,
) -> Result<()> {
    let isa = Isa::detect();
    let bias = vector_or(bias, width, 0.0)?;
    let rows = |out: &mut [f32], task: &(dyn Fn(usize, &mut [f32]) + Send + Sync)| {
        rows_in_place(out, width, ROWS_PER_THREAD_MIN, task);
    };
    match epilogue {
        Epilogue::None => rows(out, &|_, row| bias_row(isa, row, &bias)),
        Epilogue::GeluTanh => rows(out, &|_, row| {
            bias_row(isa, row, &bias);
            gelu_tanh_row(isa, row);
        }),
        Epilogue::Silu => rows(out, &|_, row| {
            bias_row(isa, row, &bias);
            silu_row(isa, row);
        }),
        Epilogue::Residual { residual, gate } => {
            let gate = vector_or(gate, width, 1.0)?;
            with_contiguous(residual, |residual| {
                rows(out, &|index, row| {
                    residual_row(isa, row, &bias, &gate, &residual[index * width..][..width]);
                });
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// The elements of a `[width]` vector, or `width` times `otherwise`.
fn vector_or(vector: Option<&Tensor>, width: usize, otherwise: f32) -> Result<Vec<f32>> {
    match vector {
        Some(vector) => with_contiguous(vector, |values| Ok(values.to_vec())),
        None => Ok(vec![otherwise; width]),
    }
}

multiversion! {
    fn bias_row(row: &mut [f32], bias: &[f32]) {
        for (value, &bias) in row.iter_mut().zip(bias) {
            *value += bias;
        }
    }
}

multiversion! {
    /// `residual + gate * (row + bias)` in place.
    fn residual_row(row: &mut [f32], bias: &[f32], gate: &[f32], residual: &[f32]) {
        let inputs = bias.iter().zip(gate).zip(residual);
        for (value, ((&bias, &gate), &residual)) in row.iter_mut().zip(inputs) {
            *value = gate * (*value + bias) + residual;
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    fn tensor(shape: &[usize], step: f32) -> Tensor {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * step).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).expect("tensor")
    }

    fn gap(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("gap")
    }

    #[test]
    fn every_epilogue_equals_plain_candle() -> Result<()> {
        let (x, w) = (tensor(&[2, 9, 20], 0.7), tensor(&[33, 20], 0.11));
        let (bias, gate) = (tensor(&[33], 0.5), tensor(&[33], 0.9));
        let residual = tensor(&[2, 9, 33], 0.3);
        for epilogue in [
            Epilogue::None,
            Epilogue::GeluTanh,
            Epilogue::Silu,
            Epilogue::Residual { residual: &residual, gate: None },
            Epilogue::Residual { residual: &residual, gate: Some(&gate) },
        ] {
            for bias in [None, Some(&bias)] {
                let got = fused_linear(&x, &w, bias, epilogue)?;
                assert!(gap(&got, &plain(&x, &w, bias, epilogue)?) < 2e-6, "{epilogue:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn packed_weights_give_the_same_to_the_bit_and_so_do_some_of_their_rows() -> Result<()> {
        let rows = if cfg!(debug_assertions) { [1, 9, 45] } else { [1, 9, 1100] };
        for (inputs, outputs) in [(20, 33), (200, 75), (193, 128), (400, 16)] {
            let w = tensor(&[outputs, inputs], 0.11);
            let Some(packed) = PackedWeight::new(&w)? else { return Ok(()) };
            for rows in rows {
                let x = tensor(&[rows, inputs], 0.7);
                let same = |outputs: Range<usize>| -> Result<()> {
                    let part = w.narrow(0, outputs.start, outputs.len())?;
                    let bias = tensor(&[outputs.len()], 0.5);
                    let want = fused_linear(&x, &part, Some(&bias), Epilogue::Silu)?;
                    let got =
                        packed_linear(&x, &packed, outputs.clone(), Some(&bias), Epilogue::Silu)?;
                    // Few rows or columns are the `gemm` crate's, when they are not packed.
                    let limit = if rows < 8 || outputs.len() < 16 { 1e-5 } else { 0.0 };
                    let gap = gap(&got, &want);
                    assert!(gap <= limit, "{rows} x {inputs}, {outputs:?}: {gap}");
                    Ok(())
                };
                same(0..outputs)?;
                same(3..outputs - 2)?;
                same(outputs / 2..outputs)?;
                same(5..9)?;
            }
        }
        Ok(())
    }

    #[test]
    fn packed_weights_are_split_over_threads_without_a_difference() -> Result<()> {
        let (x, w) = (tensor(&[50, 230], 0.7), tensor(&[150, 230], 0.11));
        let Some(packed) = PackedWeight::new(&w)? else { return Ok(()) };
        let run = || packed_linear(&x, &packed, 7..145, None, Epilogue::None);
        let once = run()?.to_vec2::<f32>()?;
        for threads in [2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            assert_eq!(pool.install(run)?.to_vec2::<f32>()?, once, "{threads} threads");
        }
        Ok(())
    }

    #[test]
    fn half_weights_are_widened_exactly_in_panels() -> Result<()> {
        let width = PANEL_ELEMENTS_MAX / 2 - 5;
        let x = tensor(&[3, width], 0.37);
        for dtype in [DType::F16, DType::BF16] {
            let w = tensor(&[5, width], 0.013).to_dtype(dtype)?;
            let got = fused_linear(&x, &w, None, Epilogue::None)?;
            let want = fused_linear(&x, &w.to_dtype(DType::F32)?, None, Epilogue::None)?;
            let size = want.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(gap(&got, &want) < 1e-5 * size, "{dtype:?}");
        }
        Ok(())
    }

    #[test]
    fn misfits_are_errors_that_name_both_sizes() {
        let (x, w) = (tensor(&[2, 20], 0.7), tensor(&[33, 21], 0.1));
        let error = fused_linear(&x, &w, None, Epilogue::None).expect_err("sizes differ");
        assert!(error.to_string().contains("21") && error.to_string().contains("20"), "{error}");
        let bias = tensor(&[4], 0.1);
        let w = tensor(&[33, 20], 0.1);
        assert!(fused_linear(&x, &w, Some(&bias), Epilogue::None).is_err());
    }
}

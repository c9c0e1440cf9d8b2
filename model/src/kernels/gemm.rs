//! Matrix products in f32, on the current rayon pool.
//!
//! Owns the checks that make a product safe and the choice of who computes it: our own blocked
//! kernels ([`super::blocked`]), or the `gemm` crate where there are few rows or columns, or no
//! AVX2. Does not own attention ([`super::flash`]) or weights in other types
//! ([`super::fused_linear`]).
#![allow(unsafe_code)]

use candle_core::{DType, Device, Result, Tensor};

use super::access::Access;
use super::blocked::{Right, blocked_product, suits};
use super::isa::Isa;
use super::packed::PackedColumns;
use super::parallel::threads;

/// A matrix inside a slice: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl Matrix<'_> {
    /// The same numbers with rows and columns exchanged.
    pub(super) fn transposed(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Rows `first .. first + count`.
    pub(super) fn rows_from(self, first: usize, count: usize) -> Self {
        let data = self.data.get(first * self.row_stride..).unwrap_or_default();
        Self { data, rows: count, ..self }
    }

    fn check(&self) {
        let last = self.rows.saturating_sub(1) * self.row_stride
            + self.cols.saturating_sub(1) * self.col_stride;
        let empty = self.rows == 0 || self.cols == 0;
        assert!(empty || last < self.data.len(), "matrix reaches beyond its slice");
    }
}

/// Where a product goes: `out[i * row_stride + j]`, as a raw place that may be uninitialised.
#[derive(Clone, Copy)]
pub(super) struct Destination {
    pub(super) start: *mut f32,
    pub(super) row_stride: usize,
}

// SAFETY: a place to write to; who shares it between threads vouches that they write apart.
unsafe impl Send for Destination {}
// SAFETY: as above.
unsafe impl Sync for Destination {}

impl Destination {
    /// The part that begins at a row and column, which must lie within the place.
    pub(super) fn at(self, row: usize, column: usize) -> Self {
        Self { start: self.start.wrapping_add(row * self.row_stride + column), ..self }
    }
}

/// `out = scale * a b`, or `out += scale * a b` with `accumulate`.
///
/// # Safety
/// `out` must be valid for writes at `i * row_stride + j` for all rows `i` of `a` and columns `j`
/// of `b`, not be accessed by anybody else meanwhile, and hold numbers when `accumulate` is set.
pub(super) unsafe fn product(
    out: Destination,
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    accumulate: bool,
    threads: usize,
) {
    // SAFETY: passed on to the caller.
    unsafe { product_on(Isa::detect(), out, a, b, scale, accumulate, threads) }
}

/// The same with the kernels of `isa`.
///
/// # Safety
/// As [`product`].
unsafe fn product_on(
    isa: Isa,
    out: Destination,
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    accumulate: bool,
    threads: usize,
) {
    assert_eq!(a.cols, b.rows, "inner sizes of a product differ");
    a.check();
    b.check();
    if suits(isa, a.rows, b.cols) {
        // SAFETY: the set is supported; the rest is passed on to the caller.
        unsafe { blocked_product(isa, out, a, Right::Plain(b), scale, accumulate, threads) };
        return;
    }
    let parallelism = match threads {
        0 | 1 => gemm::Parallelism::None,
        _ => gemm::Parallelism::Rayon(threads),
    };
    // SAFETY: `check` proved that every element read lies inside the slices, the caller vouches
    // for `out`; strides are those of the slices, which hold fewer than isize::MAX elements.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.start,
            1,
            out.row_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `out = a b` with columns that are packed.
///
/// # Safety
/// As [`product`].
pub(super) unsafe fn packed_product(
    out: Destination,
    a: Matrix<'_>,
    b: PackedColumns<'_>,
    threads: usize,
) {
    assert_eq!(a.cols, b.depth(), "inner sizes of a product differ");
    a.check();
    let isa = b.isa();
    // SAFETY: what is packed is packed for a set that is supported and not portable; the rest is
    // passed on to the caller.
    unsafe { blocked_product(isa, out, a, Right::Packed(b), 1.0, false, threads) };
}

/// `a b` for f32 `[.., m, k]` and `[.., k, n]` of equal leading dimensions, any strides.
///
/// Takes its threads from the current rayon pool, unlike `Tensor::matmul`.
///
/// # Errors
/// When the shapes do not fit, or candle fails.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !a.device().is_cpu() || a.dtype() != DType::F32 || b.dtype() != DType::F32 {
        // Of strides GPUs take few.
        return a.contiguous()?.matmul(&b.contiguous()?);
    }
    let rank = a.rank();
    if rank < 2 || b.rank() != rank || a.dims()[..rank - 2] != b.dims()[..rank - 2] {
        candle_core::bail!("matmul of {:?} and {:?}", a.dims(), b.dims());
    }
    let (m, k, n) = (a.dims()[rank - 2], a.dims()[rank - 1], b.dims()[rank - 1]);
    if b.dims()[rank - 2] != k {
        candle_core::bail!("matmul of {:?} and {:?}", a.dims(), b.dims());
    }
    let batches: usize = a.dims()[..rank - 2].iter().product();
    let len = batches * m * n;
    let mut out: Vec<f32> = Vec::with_capacity(len);
    let (a_access, b_access) = (Access::open(a), Access::open(b));
    for batch in 0..batches {
        let start = out.spare_capacity_mut()[batch * m * n..].as_mut_ptr().cast::<f32>();
        let (a_matrix, b_matrix) =
            (nth_matrix(a, a_access.f32()?, batch), nth_matrix(b, b_access.f32()?, batch));
        // SAFETY: `start` begins batch `batch` of an exclusively owned buffer of `batches * m * n`
        // elements, and rows are `n` apart.
        unsafe {
            let destination = Destination { start, row_stride: n };
            product(destination, a_matrix, b_matrix, 1.0, false, threads());
        }
    }
    // SAFETY: each of the `batches` products wrote all of its `m * n` elements.
    unsafe { out.set_len(len) };
    let mut shape = a.dims().to_vec();
    shape[rank - 1] = n;
    Tensor::from_vec(out, shape, &Device::Cpu)
}

/// Matrix number `batch` of a tensor, counted over its leading dimensions in row-major order.
fn nth_matrix<'a>(tensor: &Tensor, data: &'a [f32], batch: usize) -> Matrix<'a> {
    let (dims, strides) = (tensor.dims(), tensor.stride());
    let rank = dims.len();
    let (mut rest, mut offset) = (batch, 0);
    for axis in (0..rank - 2).rev() {
        offset += rest % dims[axis] * strides[axis];
        rest /= dims[axis];
    }
    Matrix {
        data: data.get(offset..).unwrap_or_default(),
        rows: dims[rank - 2],
        cols: dims[rank - 1],
        row_stride: strides[rank - 2],
        col_stride: strides[rank - 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize]) -> Tensor {
        let count: usize = shape.iter().product();
        let values: Vec<f32> =
            (0..count).map(|i| ((i * 7919) % 613) as f32 / 300.0 - 1.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).expect("tensor")
    }

    fn gap(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("gap")
    }

    #[test]
    fn equals_candle_for_batches_views_and_transposes() -> Result<()> {
        let a = tensor(&[2, 3, 20, 17]);
        let b = tensor(&[2, 3, 17, 9]);
        assert!(gap(&matmul(&a, &b)?, &a.matmul(&b)?) < 1e-4);
        let swapped = tensor(&[2, 20, 3, 17]).transpose(1, 2)?;
        let want = swapped.contiguous()?.matmul(&b)?;
        assert!(gap(&matmul(&swapped, &b)?, &want) < 1e-4);
        let narrow = tensor(&[40, 60]).narrow(1, 10, 20)?.t()?;
        let right = tensor(&[40, 5]);
        let want = narrow.contiguous()?.matmul(&right)?;
        assert!(gap(&matmul(&narrow, &right)?, &want) < 1e-4);
        Ok(())
    }

    #[test]
    fn empty_sizes_and_misfits() -> Result<()> {
        assert_eq!(matmul(&tensor(&[0, 4]), &tensor(&[4, 3]))?.dims(), [0, 3]);
        let zeros = matmul(&tensor(&[2, 0]), &tensor(&[0, 3]))?;
        assert_eq!(zeros.to_vec2::<f32>()?, [[0.0; 3]; 2]);
        assert!(matmul(&tensor(&[2, 4]), &tensor(&[3, 3])).is_err());
        assert!(matmul(&tensor(&[2, 4]), &tensor(&[1, 4, 3])).is_err());
        Ok(())
    }

    /// `a b^T` twice over, by the kernels of `isa` with `threads` threads.
    fn product_twice(isa: Isa, a: &Tensor, b: &Tensor, threads: usize) -> Result<Vec<f32>> {
        let (rows, cols) = (a.dim(0)?, b.dim(0)?);
        let mut out = vec![f32::NAN; rows * cols];
        let (left, right) = (Access::open(a), Access::open(b));
        for accumulate in [false, true] {
            let left = nth_matrix(a, left.f32()?, 0);
            let right = nth_matrix(b, right.f32()?, 0).transposed();
            let to = Destination { start: out.as_mut_ptr(), row_stride: cols };
            // SAFETY: `out` is `[rows, cols]` and written by the first product.
            unsafe { product_on(isa, to, left, right, 1.0, accumulate, threads) };
        }
        Ok(out)
    }

    #[test]
    fn instruction_sets_agree_at_any_size() -> Result<()> {
        for (m, k, n) in [(8, 1, 16), (9, 200, 75), (37, 193, 33), (261, 20, 48), (25, 400, 131)] {
            let (a, b) = (tensor(&[m, k]), tensor(&[n, k]));
            let want = (a.matmul(&b.t()?)? * 2.0)?;
            let size = want.abs()?.max_all()?.to_scalar::<f32>()?;
            let runs = [Isa::Portable, Isa::Avx2, Isa::Avx512]
                .map(|isa| product_twice(isa, &a, &b, 1).expect("product"));
            for run in &runs {
                let run = Tensor::from_slice(run, (m, n), &Device::Cpu)?;
                assert!(gap(&run, &want) < 2e-6 * size, "{m} x {k} x {n}");
            }
            if Isa::Avx512.supported() {
                assert_eq!(runs[1], runs[2], "{m} x {k} x {n}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_row_does_not_depend_on_threads_or_on_the_other_rows() -> Result<()> {
        let (a, b) = (tensor(&[200, 230]), tensor(&[150, 230]));
        let isa = Isa::detect();
        if isa == Isa::Portable {
            return Ok(());
        }
        let once = product_twice(isa, &a, &b, 1)?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("pool");
        for threads in [2, 3, 8] {
            let split = pool.install(|| product_twice(isa, &a, &b, threads))?;
            assert!(once == split, "{threads} threads");
        }
        let part = product_twice(isa, &a.narrow(0, 31, 90)?, &b, 1)?;
        assert!(once[31 * 150..][..90 * 150] == part[..]);
        Ok(())
    }
}

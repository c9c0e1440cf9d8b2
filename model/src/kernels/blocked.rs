//! Large matrix products in f32, blocked for caches and registers.
//!
//! Owns the loops over packed blocks and the split over threads. Does not own small products or
//! processors without AVX2, which [`super::gemm`] gives to the `gemm` crate.
//!
//! The left side is packed [`LEFT_ELEMENTS`] or so at a time over its whole depth; of the right
//! side one block of two registers' columns and [`DEPTH`] rows, which stays in the first-level
//! cache while all packed rows pass over it.
//!
//! Invariant: an element is the sum, in order, of chains of at most [`DEPTH`] multiply-adds; it
//! depends on its row and column alone, not on the size of the product, the threads, or whether
//! AVX2 or AVX-512 computes it.
#![allow(unsafe_code)]

use super::gemm::{Destination, Matrix};
use super::isa::Isa;
use super::micro::{COLUMN_STEP, Left, block_width, pack, product_rows};
use super::parallel::for_each_with;
use super::vector::Vector;

/// Steps of one chain of multiply-adds: a block of 32 columns is 24 KiB.
const DEPTH: usize = 192;
/// Packed elements of the left side that are aimed at (3 MiB).
const LEFT_ELEMENTS: usize = 3 << 18;
/// Bounds on the rows packed together: packing a block of the right side must pay.
const ROWS_TOGETHER: std::ops::RangeInclusive<usize> = 340..=1020;
/// Rows and columns of a thread's part are multiples of these, where there are as many.
const ROW_GRAIN: usize = 12;
const COLUMN_GRAIN: usize = 32;

/// Fewest rows for which packing the right side pays.
const ROWS_MIN: usize = 8;
/// Fewest columns for which packing the left side pays.
const COLUMNS_MIN: usize = 16;

/// Whether [`blocked_product`] is made for a product of this size with this instruction set.
pub(super) fn suits(isa: Isa, rows: usize, columns: usize) -> bool {
    isa != Isa::Portable && isa.supported() && rows >= ROWS_MIN && columns >= COLUMNS_MIN
}

/// `out = scale * a b`, or `out += scale * a b` with `accumulate`, over `threads` threads of the
/// current pool.
///
/// # Safety
/// As [`super::gemm::product`]; `isa` must be supported and not portable.
pub(super) unsafe fn blocked_product(
    isa: Isa,
    out: Destination,
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    accumulate: bool,
    threads: usize,
) {
    let [down, across] = split(a.rows, b.cols, threads);
    let size = |all: usize, parts: usize, grain: usize| all.div_ceil(parts).next_multiple_of(grain);
    let (tall, wide) = (size(a.rows, down, ROW_GRAIN), size(b.cols, across, COLUMN_GRAIN));
    let (down, across) = (a.rows.div_ceil(tall), b.cols.div_ceil(wide));
    for_each_with(down * across, Memory::new, |memory, part| {
        let (row, column) = (part / across * tall, part % across * wide);
        let a = a.rows_from(row, tall.min(a.rows - row));
        let b = b.transposed().rows_from(column, wide.min(b.cols - column)).transposed();
        // SAFETY: the parts do not overlap and lie within what the caller vouches for.
        unsafe {
            let out = out.at(row, column);
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => avx512(memory, out, a, b, scale, accumulate),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => avx2(memory, out, a, b, scale, accumulate),
                _ => unreachable!("a blocked product needs AVX2"),
            }
        }
    });
}

/// How many parts `threads` threads take rows and columns in: as square as they get, since every
/// part packs its rows and its columns for itself.
fn split(rows: usize, columns: usize, threads: usize) -> [usize; 2] {
    let cost = |down: usize| {
        let across = threads.div_ceil(down);
        let (tall, wide) = (rows.div_ceil(down), columns.div_ceil(across));
        (tall * wide).saturating_add(64 * (tall + wide))
    };
    let down = (1..=threads.max(1)).min_by_key(|&down| cost(down)).unwrap_or(1);
    [down, threads.div_ceil(down).max(1)]
}

/// Packed sides of one thread.
type Memory = Vec<f32>;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
unsafe fn avx512(
    memory: &mut Memory,
    out: Destination,
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    accumulate: bool,
) {
    use std::arch::x86_64::{__m256, __m512};
    // SAFETY: this function enables the sets of both types; the caller vouches for `out`.
    unsafe { part::<__m512, __m256, 12, 4>(memory, out, a, b, scale, accumulate) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(
    memory: &mut Memory,
    out: Destination,
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    accumulate: bool,
) {
    use std::arch::x86_64::__m256;
    // SAFETY: this function enables the set of the type; the caller vouches for `out`.
    unsafe { part::<__m256, __m256, 6, 2>(memory, out, a, b, scale, accumulate) }
}

/// One thread's part.
///
/// # Safety
/// The processor has the sets of `W` and `H`; `out` as for [`blocked_product`].
#[inline(always)]
unsafe fn part<W: Vector, H: Vector, const ROWS: usize, const REST: usize>(
    memory: &mut Memory,
    out: Destination,
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    accumulate: bool,
) {
    const { assert!(H::LANES == COLUMN_STEP && ROWS.is_multiple_of(REST)) };
    let most = (LEFT_ELEMENTS / a.cols.max(1)).clamp(*ROWS_TOGETHER.start(), *ROWS_TOGETHER.end());
    let passes = a.rows.div_ceil(most).max(1);
    let together = a.rows.div_ceil(passes).next_multiple_of(ROW_GRAIN);
    let block = DEPTH * 2 * W::LANES;
    let edge = ROWS * 2 * W::LANES;
    memory.resize(together.next_multiple_of(REST) * a.cols + block + edge, 0.0);
    let (left, rest) = memory.split_at_mut(together.next_multiple_of(REST) * a.cols);
    let (right, edge) = rest.split_at_mut(block);
    let group = |left: usize| if left >= ROWS { ROWS } else { REST };
    for first in (0..a.rows).step_by(together) {
        let count = together.min(a.rows - first);
        let rows = count.next_multiple_of(REST);
        for depth in (0..a.cols).step_by(DEPTH) {
            let steps = DEPTH.min(a.cols - depth);
            let from = a.rows_from(first, count).transposed().rows_from(depth, steps);
            pack(from, rows, scale, &mut left[depth * rows..], group);
        }
        let mut column = 0;
        while column < b.cols {
            let inside = (2 * W::LANES).min(b.cols - column);
            for depth in (0..a.cols).step_by(DEPTH) {
                let steps = DEPTH.min(a.cols - depth);
                let from = b.rows_from(depth, steps).transposed().rows_from(column, inside);
                let columns = inside.next_multiple_of(COLUMN_STEP);
                let blocks = |left| block_width(W::LANES, left);
                pack(from.transposed(), columns, 1.0, right, blocks);
                let sides = Sides {
                    left: &left[depth * rows..][..rows * steps],
                    right: &right[..columns * steps],
                    steps,
                    inside,
                    count,
                    add: accumulate || depth > 0,
                };
                // SAFETY: `out` has these rows and columns; the sets are there.
                unsafe { sides.multiply::<W, H, ROWS, REST>(out.at(first, column), edge) };
            }
            column += inside;
        }
    }
    if a.cols == 0 && !accumulate {
        for row in 0..a.rows {
            for column in 0..b.cols {
                // SAFETY: within what the caller vouches for.
                unsafe { out.at(row, column).start.write(0.0) };
            }
        }
    }
}

/// Packed rows and one packed block of columns, over the same steps.
struct Sides<'a> {
    left: &'a [f32],
    right: &'a [f32],
    steps: usize,
    /// Columns that are stored.
    inside: usize,
    /// Rows that are stored.
    count: usize,
    add: bool,
}

impl Sides<'_> {
    /// # Safety
    /// The processor has the sets of `W` and `H`; `out` has `count` rows and `inside` columns.
    #[inline(always)]
    unsafe fn multiply<W: Vector, H: Vector, const ROWS: usize, const REST: usize>(
        &self,
        out: Destination,
        edge: &mut [f32],
    ) {
        let mut row = 0;
        while row < self.count {
            // SAFETY: as the caller vouches for; the left side holds whole groups of rows.
            unsafe {
                if self.count.next_multiple_of(REST) - row >= ROWS {
                    self.rows::<W, H, ROWS>(row, out.at(row, 0), edge);
                    row += ROWS;
                } else {
                    self.rows::<W, H, REST>(row, out.at(row, 0), edge);
                    row += REST;
                }
            }
        }
    }

    /// A group of `ROWS` rows, through `edge` where it or its columns hang over the end.
    ///
    /// # Safety
    /// As [`Sides::multiply`]; `out` begins at `row`.
    #[inline(always)]
    unsafe fn rows<W: Vector, H: Vector, const ROWS: usize>(
        &self,
        row: usize,
        out: Destination,
        edge: &mut [f32],
    ) {
        let left = Left {
            start: self.left[row * self.steps..][..ROWS * self.steps].as_ptr(),
            row_stride: 1,
            step_stride: ROWS,
        };
        let (right, columns) = (self.right.as_ptr(), self.right.len() / self.steps.max(1));
        let steps = self.steps;
        let count = ROWS.min(self.count - row);
        if count == ROWS && columns == self.inside {
            // SAFETY: the whole group lies within `out`; the sides are as long as they say.
            unsafe {
                product_rows::<W, H, ROWS>(
                    steps,
                    left,
                    right,
                    columns,
                    out.start,
                    out.row_stride,
                    self.add,
                );
            }
            return;
        }
        let whole = edge[..ROWS * columns].as_mut_ptr();
        // SAFETY: `edge` has room for the whole group.
        unsafe { product_rows::<W, H, ROWS>(steps, left, right, columns, whole, columns, false) };
        for index in 0..count {
            for column in 0..self.inside {
                let value = edge[index * columns + column];
                // SAFETY: this row and column lie within `out`.
                unsafe {
                    let place = out.at(index, column).start;
                    place.write(if self.add { place.read() + value } else { value });
                }
            }
        }
    }
}

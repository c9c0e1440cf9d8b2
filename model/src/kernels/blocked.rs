//! Large matrix products in f32, blocked for caches and registers.
//!
//! Owns the loops over packed blocks and the split over threads. Does not own small products or
//! processors without AVX2, which [`super::gemm`] gives to the `gemm` crate.
//!
//! The left side is packed some rows and up to [`SPAN_MAX`] steps at a time, which stay in the
//! second-level cache; of the right side one block of two registers' columns and [`DEPTH`] rows,
//! which stays in the first-level cache while all packed rows pass over it. A weight comes packed
//! already ([`super::packed`]); then the next block is fetched meanwhile.
//!
//! Invariant: an element is the sum, in order, of chains of at most [`DEPTH`] multiply-adds; it
//! depends on its row and column alone, not on the size of the product, the threads, or whether
//! AVX2 or AVX-512 computes it.
#![allow(unsafe_code)]

use std::ops::{Range, RangeInclusive};

use super::gemm::{Destination, Matrix};
use super::isa::Isa;
use super::micro::{COLUMN_STEP, Left, block_width, pack, product_rows};
use super::packed::{PackedBlock, PackedColumns};
use super::parallel::for_each_with;
use super::vector::{Octet, Vector};

/// Steps of one chain of multiply-adds: a block of 32 columns is 24 KiB.
pub(super) const DEPTH: usize = 192;
/// Packed elements of the left side that are aimed at: 1 MiB, which stays in the second-level
/// cache.
const LEFT_ELEMENTS: usize = 1 << 18;
/// Most steps of the left side packed at a time, so that there are rows enough to share a block of
/// the right side.
const SPAN_MAX: usize = 6 * DEPTH;
/// Bounds on the rows packed together.
const ROWS_TOGETHER: RangeInclusive<usize> = 96..=1020;
/// Elements of a cache line.
const LINE: usize = 16;
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

/// Elements of the registers that columns are blocked for; not for [`Isa::Portable`].
pub(super) fn register_lanes(isa: Isa) -> usize {
    if isa == Isa::Avx512 { 16 } else { 8 }
}

/// The right side of a product.
pub(super) enum Right<'a> {
    /// Is packed block by block while it is read.
    Plain(Matrix<'a>),
    /// Was packed beforehand, for the same instruction set.
    Packed(PackedColumns<'a>),
}

impl Right<'_> {
    fn columns(&self) -> usize {
        match self {
            Self::Plain(b) => b.cols,
            Self::Packed(columns) => columns.len(),
        }
    }

    fn part(&self, first: usize, count: usize) -> Self {
        match self {
            Self::Plain(b) => Self::Plain(b.transposed().rows_from(first, count).transposed()),
            Self::Packed(columns) => Self::Packed(columns.part(first, count)),
        }
    }
}

/// `out = scale * a b`, or `out += scale * a b` with `accumulate`, over `threads` threads of the
/// current pool.
///
/// # Safety
/// As [`super::gemm::product`]; `isa` must be supported, not portable, and that of a packed `b`;
/// the sides must be as deep and lie within their slices.
pub(super) unsafe fn blocked_product(
    isa: Isa,
    out: Destination,
    a: Matrix<'_>,
    b: Right<'_>,
    scale: f32,
    accumulate: bool,
    threads: usize,
) {
    let columns = b.columns();
    let [down, across] = split(a.rows, columns, threads);
    let size = |all: usize, parts: usize, grain: usize| all.div_ceil(parts).next_multiple_of(grain);
    let (tall, wide) = (size(a.rows, down, ROW_GRAIN), size(columns, across, COLUMN_GRAIN));
    let (down, across) = (a.rows.div_ceil(tall), columns.div_ceil(wide));
    for_each_with(down * across, Memory::new, |memory, part| {
        let (row, column) = (part / across * tall, part % across * wide);
        let a = a.rows_from(row, tall.min(a.rows - row));
        let b = b.part(column, wide.min(columns - column));
        // SAFETY: the parts do not overlap and lie within what the caller vouches for.
        unsafe {
            let out = out.at(row, column);
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => avx512(memory, out, a, &b, scale, accumulate),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => avx2(memory, out, a, &b, scale, accumulate),
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
    b: &Right<'_>,
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
    b: &Right<'_>,
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
unsafe fn part<W: Vector, H: Octet, const ROWS: usize, const REST: usize>(
    memory: &mut Memory,
    out: Destination,
    a: Matrix<'_>,
    b: &Right<'_>,
    scale: f32,
    accumulate: bool,
) {
    const { assert!(H::LANES == COLUMN_STEP && ROWS.is_multiple_of(REST)) };
    let spans = a.cols.div_ceil(SPAN_MAX).max(1);
    let span = a.cols.div_ceil(spans).next_multiple_of(DEPTH);
    let most = LEFT_ELEMENTS / span.min(a.cols).max(1);
    let most = most.clamp(*ROWS_TOGETHER.start(), *ROWS_TOGETHER.end());
    let passes = a.rows.div_ceil(most).max(1);
    let together = a.rows.div_ceil(passes).next_multiple_of(ROW_GRAIN);
    let (columns, block_columns) = (b.columns(), 2 * W::LANES);
    let block = DEPTH * block_columns;
    let edge = ROWS * 2 * W::LANES;
    let panel = together.next_multiple_of(REST) * span.min(a.cols);
    memory.resize(panel + block + edge, 0.0);
    let (left, rest) = memory.split_at_mut(panel);
    let (right, edge) = rest.split_at_mut(block);
    let group = |left: usize| if left >= ROWS { ROWS } else { REST };
    let pieces = |span: &Range<usize>| span.clone().step_by(DEPTH);
    for first in (0..a.rows).step_by(together) {
        let count = together.min(a.rows - first);
        let rows = count.next_multiple_of(REST);
        for start in (0..a.cols).step_by(span) {
            let span = start..a.cols.min(start + span);
            let steps = |depth: usize| DEPTH.min(span.end - depth);
            for depth in pieces(&span) {
                let from = a.rows_from(first, count).transposed().rows_from(depth, steps(depth));
                let to = &mut left[(depth - start) * rows..];
                // SAFETY: the sets are there.
                unsafe { pack::<H>(from, rows, scale, to, group) };
            }
            let mut column = 0;
            while column < columns {
                let block = match b {
                    Right::Plain(b) => Block::Plain(*b, block_columns.min(columns - column)),
                    Right::Packed(all) => Block::Packed(all.block(column)),
                };
                let (skipped, inside) = match &block {
                    Block::Plain(_, inside) => (0, *inside),
                    Block::Packed(block) => (block.skipped, block.inside),
                };
                for depth in pieces(&span) {
                    let steps = steps(depth);
                    let (right, next): (_, &[f32]) = match &block {
                        Block::Packed(block) => {
                            let next = match depth + DEPTH < span.end {
                                true => block.from(depth + DEPTH),
                                false => block.after(start),
                            };
                            (block.piece(depth, steps), next)
                        }
                        Block::Plain(b, _) => {
                            let from = b.rows_from(depth, steps).transposed();
                            let from = from.rows_from(column, inside).transposed();
                            let padded = inside.next_multiple_of(COLUMN_STEP);
                            let blocks = |left| block_width(W::LANES, left);
                            // SAFETY: the sets are there.
                            unsafe { pack::<H>(from, padded, 1.0, right, blocks) };
                            (&right[..padded * steps], &[])
                        }
                    };
                    let sides = Sides {
                        left: &left[(depth - start) * rows..][..rows * steps],
                        right,
                        next,
                        steps,
                        skipped,
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
    }
    if a.cols == 0 && !accumulate {
        for row in 0..a.rows {
            for column in 0..columns {
                // SAFETY: within what the caller vouches for.
                unsafe { out.at(row, column).start.write(0.0) };
            }
        }
    }
}

/// Columns that pass over the packed rows together.
enum Block<'a> {
    /// So many columns of a matrix, to be packed.
    Plain(Matrix<'a>, usize),
    Packed(PackedBlock<'a>),
}

/// Packed rows and one packed block of columns, over the same steps.
struct Sides<'a> {
    left: &'a [f32],
    right: &'a [f32],
    /// What is read next on the right, to be fetched meanwhile.
    next: &'a [f32],
    steps: usize,
    /// Columns of the block that are not stored, before those that are.
    skipped: usize,
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
    unsafe fn multiply<W: Vector, H: Octet, const ROWS: usize, const REST: usize>(
        &self,
        out: Destination,
        edge: &mut [f32],
    ) {
        let mut row = 0;
        let share = (self.right.len() * ROWS).div_ceil(self.count).next_multiple_of(LINE);
        while row < self.count {
            let at = row / ROWS * share;
            for place in (at..(at + share).min(self.next.len())).step_by(LINE) {
                self.next.get(place).into_iter().for_each(|element| H::prefetch(element));
            }
            self.fetch_out::<H>(row..self.count.min(row + ROWS), out);
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

    /// Fetches the places that rows are added to while their product is computed: each row is in
    /// lines and, of wide products, in a page of its own.
    #[inline(always)]
    fn fetch_out<H: Octet>(&self, rows: Range<usize>, out: Destination) {
        let last = self.inside.saturating_sub(1);
        for row in rows {
            // Three: two registers may lie across lines.
            for column in [0, LINE.min(last), last] {
                H::prefetch_near(out.at(row, column).start);
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
                let value = edge[index * columns + self.skipped + column];
                // SAFETY: this row and column lie within `out`.
                unsafe {
                    let place = out.at(index, column).start;
                    place.write(if self.add { place.read() + value } else { value });
                }
            }
        }
    }
}

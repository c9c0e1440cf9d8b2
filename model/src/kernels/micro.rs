//! Register-tiled products of packed matrices: what attention is made of.
//!
//! Owns the packed layout and the micro-kernel. A packed matrix is cut into blocks of columns; a
//! block of `w` columns is `[depth, w]`, row-major, and blocks follow each other, so the block that
//! begins with column `c` begins at element `depth * c`.
//!
//! Invariant: an element of a product is one chain of multiply-adds in the order of the depth,
//! whatever the blocks, so results do not depend on how rows and columns are cut.
#![allow(unsafe_code)]

use super::gemm::Matrix;
use super::vector::{Octet, Vector};

/// Columns of a packed right side are filled up with zeros to a multiple of this.
pub(super) const COLUMN_STEP: usize = 8;

/// Where a micro-kernel reads its left side: element `(row, step)` at `row * row_stride + step *
/// step_stride`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) start: *const f32,
    pub(super) row_stride: usize,
    pub(super) step_stride: usize,
}

/// Width of the block that begins when `left` columns are left: two registers, one, or the rest.
#[inline(always)]
pub(super) fn block_width(lanes: usize, left: usize) -> usize {
    if left >= 2 * lanes {
        2 * lanes
    } else if left >= lanes {
        lanes
    } else {
        COLUMN_STEP
    }
}

/// Packs `scale * from` into `to`, block by block as wide as `width` says of the columns left;
/// columns beyond the matrix are zero. `columns` is their number with those.
///
/// # Safety
/// The processor has the set of `H`.
#[inline(always)]
pub(super) unsafe fn pack<H: Octet>(
    from: Matrix<'_>,
    columns: usize,
    scale: f32,
    to: &mut [f32],
    width: impl Fn(usize) -> usize,
) {
    let mut first = 0;
    while first < columns {
        let wide = width(columns - first);
        let block = &mut to[from.rows * first..][..from.rows * wide];
        let inside = from.cols.saturating_sub(first).min(wide);
        if inside < wide {
            block.fill(0.0);
        }
        if from.col_stride == 1 {
            for (row, out) in block.chunks_exact_mut(wide).enumerate() {
                let line = &from.data[row * from.row_stride + first..][..inside];
                for (out, value) in out.iter_mut().zip(line) {
                    *out = value * scale;
                }
            }
        } else {
            // SAFETY: passed on to the caller.
            unsafe { pack_apart::<H>(from, first, inside, wide, scale, block) };
        }
        first += wide;
    }
}

/// Packs columns that are apart in memory: four of them and eight rows at a time where rows are
/// adjacent.
///
/// # Safety
/// The processor has the set of `H`.
#[inline(always)]
unsafe fn pack_apart<H: Octet>(
    from: Matrix<'_>,
    first: usize,
    inside: usize,
    wide: usize,
    scale: f32,
    block: &mut [f32],
) {
    const COLUMNS: usize = 4;
    const { assert!(H::LANES == COLUMN_STEP) };
    let across = if from.row_stride == 1 { inside / COLUMNS * COLUMNS } else { 0 };
    let deep = from.rows / H::LANES * H::LANES;
    for column in (0..across).step_by(COLUMNS) {
        for row in (0..deep).step_by(H::LANES) {
            let out = &mut block[row * wide + column..][..(H::LANES - 1) * wide + COLUMNS];
            let line = |index: usize| {
                let at = (first + column + index) * from.col_stride + row;
                // SAFETY: the slice has the lanes that are read.
                unsafe { H::load(from.data[at..][..H::LANES].as_ptr()).mul(H::splat(scale)) }
            };
            // SAFETY: the slice has four elements at each of the eight multiples of `wide`.
            unsafe {
                H::store_across([line(0), line(1), line(2), line(3)], out.as_mut_ptr(), wide);
            }
        }
    }
    for column in 0..inside {
        let rows = if column < across { deep..from.rows } else { 0..from.rows };
        for row in rows {
            let at = row * from.row_stride + (first + column) * from.col_stride;
            block[row * wide + column] = from.data[at] * scale;
        }
    }
}

/// `out = left right`, or `out += left right` with `add`: `ROWS` rows, `columns` columns (a
/// multiple of [`COLUMN_STEP`]) of a packed right side of `depth` rows, whose blocks are those of
/// [`block_width`] for `W::LANES`.
///
/// # Safety
/// The processor has the sets of `W` and `H`; `left` is readable for `ROWS` rows and `depth`
/// steps, `right` for `depth * columns` elements; `out` is writable (and, with `add`, readable) at
/// `row * out_stride + column` and nobody else touches it.
#[inline(always)]
pub(super) unsafe fn product_rows<W: Vector, H: Vector, const ROWS: usize>(
    depth: usize,
    left: Left,
    right: *const f32,
    columns: usize,
    out: *mut f32,
    out_stride: usize,
    add: bool,
) {
    let mut first = 0;
    while first < columns {
        let wide = block_width(W::LANES, columns - first);
        // SAFETY: the block lies within what the caller vouches for; a width that is no multiple
        // of W's lanes is COLUMN_STEP, the lanes of H.
        unsafe {
            let (right, out) = (right.add(depth * first), out.add(first));
            if wide == 2 * W::LANES {
                micro::<W, ROWS, 2>(depth, left, right, out, out_stride, add);
            } else if wide == W::LANES {
                micro::<W, ROWS, 1>(depth, left, right, out, out_stride, add);
            } else {
                micro::<H, ROWS, 1>(depth, left, right, out, out_stride, add);
            }
        }
        first += wide;
    }
}

/// One block: `ROWS` rows of `REGISTERS` registers, held in registers over the whole depth.
///
/// # Safety
/// As [`product_rows`], for one block.
#[inline(always)]
unsafe fn micro<V: Vector, const ROWS: usize, const REGISTERS: usize>(
    depth: usize,
    left: Left,
    mut right: *const f32,
    out: *mut f32,
    out_stride: usize,
    add: bool,
) {
    // SAFETY: all places lie within what the caller vouches for.
    unsafe {
        let mut sums = [[V::splat(0.0); REGISTERS]; ROWS];
        let mut at = left.start;
        // The compiler would work out the bound of the loop anew in every step.
        let depth = std::hint::black_box(depth);
        for _ in 0..depth {
            let mut columns = [V::splat(0.0); REGISTERS];
            for (index, column) in columns.iter_mut().enumerate() {
                *column = V::load(right.add(index * V::LANES));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = V::splat(*at.add(row * left.row_stride));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = sum.fma(factor, column);
                }
            }
            at = at.add(left.step_stride);
            right = right.add(REGISTERS * V::LANES);
        }
        for (row, sums) in sums.iter().enumerate() {
            for (index, &sum) in sums.iter().enumerate() {
                let place = out.add(row * out_stride + index * V::LANES);
                let sum = if add { V::load(place).add(sum) } else { sum };
                sum.store(place);
            }
        }
    }
}

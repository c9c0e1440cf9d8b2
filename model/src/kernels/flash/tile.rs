//! One thread's share of attention: some queries of one head over all keys.
//!
//! Owns the tile's memory, the walk over keys and the online softmax, once per instruction set.
//! Keys, values and queries are packed a tile at a time; products are those of
//! [`crate::kernels::micro`]. Does not own where results go.
#![allow(unsafe_code)]

use super::{Job, KEY_TILE};
use crate::kernels::exp::exp;
use crate::kernels::isa::Isa;
use crate::kernels::micro::{COLUMN_STEP, Left, block_width, pack, product_rows};
use crate::kernels::softmax::{LANES, exp_and_sum, max_of};
use crate::kernels::vector::{Octet, Plain, Vector};

/// Elements between rows of scores: not a power of two, whose rows would share cache sets.
const SCORE_STRIDE: usize = KEY_TILE + 16;
/// Most queries that share a pass over keys.
const ROWS_MAX: usize = 12;
/// The next power of two.
const LANES_OF_ROWS: usize = ROWS_MAX.next_power_of_two();
/// Queries are filled up with zeros to a multiple of this.
const ROW_STEP: usize = 4;
/// Queries at a time of the portable kernel: what the target's registers hold.
const PLAIN_ROWS: usize = if cfg!(target_arch = "aarch64") { 4 } else { 2 };

/// Memory of one tile, with the unnormalised result.
pub(super) struct Tile {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
    /// The result's width, filled up to the packed one.
    pub(super) stride: usize,
    pub(super) largest: Vec<f32>,
    pub(super) sums: Vec<f32>,
    pub(super) total: Vec<f32>,
}

impl Tile {
    /// Room for up to `queries` queries.
    pub(super) fn new(job: &Job<'_>, queries: usize) -> Self {
        let rows = queries.next_multiple_of(ROW_STEP);
        let keys = KEY_TILE.min(job.keys);
        let stride = job.v.width.next_multiple_of(COLUMN_STEP);
        Self {
            queries: vec![0.0; rows * job.q.width],
            keys: vec![0.0; keys.next_multiple_of(COLUMN_STEP) * job.q.width],
            values: vec![0.0; keys * stride],
            scores: vec![0.0; ROWS_MAX * SCORE_STRIDE],
            stride,
            largest: vec![0.0; rows],
            sums: vec![0.0; rows],
            total: vec![0.0; rows * stride],
        }
    }

    /// Runs `count` queries from `first` of head `h` in batch row `b` over all keys.
    pub(super) fn attend(&mut self, job: &Job<'_>, b: usize, h: usize, first: usize, count: usize) {
        #[cfg(target_arch = "x86_64")]
        match job.isa {
            // SAFETY: the guard checked that the processor has every enabled feature.
            Isa::Avx512 if job.isa.supported() => unsafe { avx512(self, job, b, h, first, count) },
            // SAFETY: as above.
            Isa::Avx2 if job.isa.supported() => unsafe { avx2(self, job, b, h, first, count) },
            _ => portable(self, job, b, h, first, count),
        }
        #[cfg(not(target_arch = "x86_64"))]
        portable(self, job, b, h, first, count);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
fn avx512(tile: &mut Tile, job: &Job<'_>, b: usize, h: usize, first: usize, count: usize) {
    use std::arch::x86_64::{__m256, __m512};
    // SAFETY: this function enables the sets of both types.
    unsafe { attend::<__m512, __m256, 12, 4>(tile, job, b, h, first, count) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(tile: &mut Tile, job: &Job<'_>, b: usize, h: usize, first: usize, count: usize) {
    use std::arch::x86_64::__m256;
    // SAFETY: this function enables the set of the type.
    unsafe { attend::<__m256, __m256, 6, 2>(tile, job, b, h, first, count) }
}

fn portable(tile: &mut Tile, job: &Job<'_>, b: usize, h: usize, first: usize, count: usize) {
    // SAFETY: the type needs no instruction set of its own.
    unsafe { attend::<Plain, Plain, PLAIN_ROWS, PLAIN_ROWS>(tile, job, b, h, first, count) }
}

/// `ROWS` queries at a time, `REST` at a time at the end.
///
/// # Safety
/// The processor has the sets of `W` and `H`.
#[inline(always)]
unsafe fn attend<W: Vector, H: Octet, const ROWS: usize, const REST: usize>(
    tile: &mut Tile,
    job: &Job<'_>,
    b: usize,
    h: usize,
    first: usize,
    count: usize,
) {
    const { assert!(ROWS <= ROWS_MAX && ROWS.is_multiple_of(REST)) };
    const { assert!(ROW_STEP.is_multiple_of(REST)) };
    const { assert!(H::LANES == COLUMN_STEP && W::LANES % H::LANES == 0) };
    let group = |left: usize| if left >= ROWS { ROWS } else { REST };
    let rows = count.next_multiple_of(REST);
    tile.largest.fill(f32::NEG_INFINITY);
    tile.sums.fill(0.0);
    tile.total.fill(0.0);
    let queries = job.q.tokens(b, h, first, count).transposed();
    // SAFETY: the sets are there.
    unsafe { pack::<H>(queries, rows, job.scale, &mut tile.queries, group) };
    for start in (0..job.keys).step_by(KEY_TILE) {
        let keys = KEY_TILE.min(job.keys - start);
        let columns = keys.next_multiple_of(COLUMN_STEP);
        let blocks = |left| block_width(W::LANES, left);
        let from = job.k.tokens(b, h, start, keys).transposed();
        let values = job.v.tokens(b, h, start, keys);
        // SAFETY: the sets are there.
        unsafe {
            pack::<H>(from, columns, 1.0, &mut tile.keys, blocks);
            pack::<H>(values, tile.stride, 1.0, &mut tile.values, blocks);
        }
        let bias = job.bias.map(|bias| &bias[b * job.keys + start..][..keys]);
        let mut row = 0;
        while row < rows {
            // SAFETY: the sets are there; a group lies within the rows, which fill up `count` to
            // a multiple of REST and which `tile` has room for, as for the keys packed above.
            unsafe {
                if rows - row >= ROWS {
                    step::<W, H, ROWS>(tile, row, keys, job.q.width, bias);
                    row += ROWS;
                } else {
                    step::<W, H, REST>(tile, row, keys, job.q.width, bias);
                    row += REST;
                }
            }
        }
    }
}

/// `ROWS` queries from `row` over the `keys` keys that are packed.
///
/// # Safety
/// The processor has the sets of `W` and `H`; the tile holds the rows and the packed keys, of which
/// there are at most `KEY_TILE`, and values.
#[inline(always)]
unsafe fn step<W: Vector, H: Vector, const ROWS: usize>(
    tile: &mut Tile,
    row: usize,
    keys: usize,
    depth: usize,
    bias: Option<&[f32]>,
) {
    let stride = tile.stride;
    let queries = Left {
        start: tile.queries[row * depth..][..ROWS * depth].as_ptr(),
        row_stride: 1,
        step_stride: ROWS,
    };
    let columns = keys.next_multiple_of(COLUMN_STEP);
    let packed = tile.keys[..depth * columns].as_ptr();
    let scores = tile.scores[..ROWS * SCORE_STRIDE].as_mut_ptr();
    // SAFETY: the slices above are as long as the product reads and writes.
    unsafe {
        product_rows::<W, H, ROWS>(depth, queries, packed, columns, scores, SCORE_STRIDE, false);
    }
    online_softmax::<ROWS>(tile, row, keys, bias);
    let weights = Left { start: tile.scores.as_ptr(), row_stride: SCORE_STRIDE, step_stride: 1 };
    let values = tile.values[..keys * stride].as_ptr();
    let total = tile.total[row * stride..][..ROWS * stride].as_mut_ptr();
    // SAFETY: as above; scores were written by the first product.
    unsafe { product_rows::<W, H, ROWS>(keys, weights, values, stride, total, stride, true) };
}

/// Turns the first `keys` scores of `ROWS` rows into weights relative to the rows' running maxima,
/// and brings sums and totals, which were relative to the old maxima, onto the new ones.
#[inline(always)]
fn online_softmax<const ROWS: usize>(
    tile: &mut Tile,
    row: usize,
    keys: usize,
    bias: Option<&[f32]>,
) {
    // Of all rows together, so that their exponentials are one vector's.
    let (mut reference, mut keep) = ([0f32; LANES_OF_ROWS], [0f32; LANES_OF_ROWS]);
    for index in 0..ROWS {
        let scores = &mut tile.scores[index * SCORE_STRIDE..][..keys.next_multiple_of(LANES)];
        scores[keys..].fill(f32::NEG_INFINITY);
        if let Some(bias) = bias {
            for (score, &bias) in scores.iter_mut().zip(bias) {
                *score += bias;
            }
        }
        let (of_tile, largest) = (max_of(scores), &mut tile.largest[row + index]);
        let now = if of_tile > *largest { of_tile } else { *largest };
        // All scores so far are -inf (or NaN, which exp keeps): weigh against 0 instead.
        reference[index] = if now == f32::NEG_INFINITY { 0.0 } else { now };
        keep[index] = *largest - reference[index];
        *largest = now;
    }
    for keep in &mut keep {
        *keep = exp(*keep);
    }
    for index in 0..ROWS {
        let scores = &mut tile.scores[index * SCORE_STRIDE..][..keys.next_multiple_of(LANES)];
        let (keep, sum) = (keep[index], &mut tile.sums[row + index]);
        if keep != 1.0 {
            for value in &mut tile.total[(row + index) * tile.stride..][..tile.stride] {
                *value *= keep;
            }
        }
        *sum = *sum * keep + exp_and_sum(scores, reference[index]);
    }
}

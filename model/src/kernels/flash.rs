//! Exact attention in tiles on the CPU (FlashAttention's online softmax, arXiv 2205.14135).
//!
//! Owns the walk over tiles and the online softmax. Both products of a tile are `gemm` calls that
//! read queries, keys and values by their strides, so views of a fused projection cost no copy.
//! Does not own the checks of shapes and types: see [`crate::attention`].
//!
//! Invariants: memory is one tile of scores per thread, whatever the number of tokens; a row of
//! the result depends on the tile sizes, not on the number of threads.
#![allow(unsafe_code)]

use candle_core::{Device, Result, Tensor};

use super::access::{Access, with_contiguous};
use super::exp::exp;
use super::gemm::{Destination, Matrix, product};
use super::isa::{Isa, multiversion};
use super::parallel::for_each_with;
use super::softmax::{exp_and_sum, max_of};

/// Queries of one tile.
const QUERY_TILE: usize = 256;
/// Keys of one tile.
const KEY_TILE: usize = 256;

/// Attention of f32 `q` `[B, n, H, d]` over `k` `[B, m, H, d]` and `v` `[B, m, H, e]`, all with any
/// strides, scores scaled by `scale` and shifted by `key_bias` f32 `[B, m]`.
///
/// Returns the result f32 `[B, n, H, e]` and the log-sum-exp of the scores f32 `[B, H, n]`; where
/// every score is `-inf`, or there is no key, they are 0 and `-inf`.
///
/// # Errors
/// When a tensor is not f32 on the CPU or shapes disagree.
pub fn flash_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    key_bias: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    let (batch, queries, heads, _) = q.dims4()?;
    let (keys, width) = (k.dim(1)?, v.dim(3)?);
    check(q, k, v, key_bias)?;
    let bias = match key_bias {
        Some(bias) => Some(with_contiguous(bias, |bias| Ok(bias.to_vec()))?),
        None => None,
    };
    let (q_access, k_access, v_access) = (Access::open(q), Access::open(k), Access::open(v));
    let job = Job {
        isa: Isa::detect(),
        q: Heads { data: q_access.f32()?, strides: strides_of(q), width: q.dim(3)? },
        k: Heads { data: k_access.f32()?, strides: strides_of(k), width: k.dim(3)? },
        v: Heads { data: v_access.f32()?, strides: strides_of(v), width },
        bias: bias.as_deref(),
        scale: scale as f32,
        heads,
        queries,
        keys,
    };
    let mut out: Vec<f32> = Vec::with_capacity(batch * queries * heads * width);
    let mut lse: Vec<f32> = Vec::with_capacity(batch * heads * queries);
    let places = Places { out: out.as_mut_ptr(), lse: lse.as_mut_ptr() };
    let tiles = queries.div_ceil(QUERY_TILE);
    for_each_with(
        batch * heads * tiles,
        || Scratch::new(&job),
        |scratch, task| {
            let (stack, tile) = (task / tiles, task % tiles);
            let (b, h) = (stack / heads, stack % heads);
            let first = tile * QUERY_TILE;
            scratch.attend(&job, b, h, first, QUERY_TILE.min(queries - first));
            // SAFETY: the buffers have room for all tasks, and no two tasks share a row of a head.
            unsafe { places.store(&job, scratch, b, h, first) };
        },
    );
    // SAFETY: the tasks covered every batch row, head and query, and stored each exactly once.
    unsafe {
        out.set_len(batch * queries * heads * width);
        lse.set_len(batch * heads * queries);
    }
    let out = Tensor::from_vec(out, (batch, queries, heads, width), &Device::Cpu)?;
    Ok((out, Tensor::from_vec(lse, (batch, heads, queries), &Device::Cpu)?))
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, key_bias: Option<&Tensor>) -> Result<()> {
    let (batch, _, heads, width) = q.dims4()?;
    let (k_batch, keys, k_heads, k_width) = k.dims4()?;
    let (v_batch, v_keys, v_heads, _) = v.dims4()?;
    let fits = [k_batch, k_heads, k_width] == [batch, heads, width]
        && [v_batch, v_keys, v_heads] == [batch, keys, heads]
        && key_bias.is_none_or(|bias| bias.dims() == [batch, keys]);
    if !fits {
        candle_core::bail!(
            "attention of q {:?}, k {:?}, v {:?}, key bias {:?}",
            q.dims(),
            k.dims(),
            v.dims(),
            key_bias.map(Tensor::dims)
        );
    }
    Ok(())
}

fn strides_of(tensor: &Tensor) -> [usize; 4] {
    let mut strides = [0; 4];
    strides.iter_mut().zip(tensor.stride()).for_each(|(to, &from)| *to = from);
    strides
}

/// A `[B, n, H, width]` tensor of any strides.
struct Heads<'a> {
    data: &'a [f32],
    strides: [usize; 4],
    width: usize,
}

impl<'a> Heads<'a> {
    /// Tokens `first .. first + count` of one head as a matrix `[count, width]`.
    fn tokens(&self, b: usize, h: usize, first: usize, count: usize) -> Matrix<'a> {
        let [batch, token, head, element] = self.strides;
        let offset = b * batch + first * token + h * head;
        Matrix {
            data: self.data.get(offset..).unwrap_or_default(),
            rows: count,
            cols: self.width,
            row_stride: token,
            col_stride: element,
        }
    }
}

/// What all tiles of one call share.
struct Job<'a> {
    isa: Isa,
    q: Heads<'a>,
    k: Heads<'a>,
    v: Heads<'a>,
    bias: Option<&'a [f32]>,
    scale: f32,
    heads: usize,
    queries: usize,
    keys: usize,
}

/// Where results go; shared by the threads, which write to disjoint rows.
struct Places {
    out: *mut f32,
    lse: *mut f32,
}

// SAFETY: the pointers are only written through, each row by one task (see `store`).
unsafe impl Send for Places {}
// SAFETY: as above.
unsafe impl Sync for Places {}

impl Places {
    /// Stores a finished tile: queries from `first` on, of head `h` in batch row `b`.
    ///
    /// # Safety
    /// `out` must have room for `[B, queries, heads, width]`, `lse` for `[B, heads, queries]`, and
    /// nobody else may touch the rows of this tile meanwhile.
    unsafe fn store(&self, job: &Job<'_>, tile: &Scratch, b: usize, h: usize, first: usize) {
        let width = job.v.width;
        for row in 0..tile.rows {
            let token = b * job.queries + first + row;
            let sum = tile.sums[row];
            let lse = if sum == 0.0 { f32::NEG_INFINITY } else { tile.largest[row] + sum.ln() };
            let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            // SAFETY: token, head and element are within the sizes the caller vouches for.
            unsafe {
                self.lse.add((b * job.heads + h) * job.queries + first + row).write(lse);
                let out = self.out.add((token * job.heads + h) * width);
                for (element, value) in tile.total[row * width..][..width].iter().enumerate() {
                    out.add(element).write(value * inverse);
                }
            }
        }
    }
}

/// One thread's tile: scores, running maxima and sums, and the unnormalised result.
struct Scratch {
    rows: usize,
    scores: Vec<f32>,
    largest: Vec<f32>,
    sums: Vec<f32>,
    total: Vec<f32>,
}

impl Scratch {
    fn new(job: &Job<'_>) -> Self {
        let rows = QUERY_TILE.min(job.queries);
        Self {
            rows,
            scores: vec![0.0; rows * KEY_TILE.min(job.keys)],
            largest: vec![0.0; rows],
            sums: vec![0.0; rows],
            total: vec![0.0; rows * job.v.width],
        }
    }

    /// Runs `count` queries of one head over all keys.
    fn attend(&mut self, job: &Job<'_>, b: usize, h: usize, first: usize, count: usize) {
        let width = job.v.width;
        self.rows = count;
        self.largest.fill(f32::NEG_INFINITY);
        self.sums.fill(0.0);
        self.total.fill(0.0);
        let queries = job.q.tokens(b, h, first, count);
        for start in (0..job.keys).step_by(KEY_TILE) {
            let tile = KEY_TILE.min(job.keys - start);
            let keys = job.k.tokens(b, h, start, tile);
            let values = job.v.tokens(b, h, start, tile);
            let scores = &mut self.scores[..count * tile];
            let to = Destination { start: scores.as_mut_ptr(), row_stride: tile };
            // SAFETY: `scores` is `[count, tile]`, exclusively borrowed.
            unsafe { product(to, queries, keys.transposed(), job.scale, false, 1) };
            let bias = job.bias.map(|bias| &bias[b * job.keys + start..][..tile]);
            let total = &mut self.total[..count * width];
            online_softmax(job.isa, scores, bias, &mut self.largest, &mut self.sums, total, width);
            let weights =
                Matrix { data: scores, rows: count, cols: tile, row_stride: tile, col_stride: 1 };
            let to = Destination { start: total.as_mut_ptr(), row_stride: width };
            // SAFETY: `total` is `[count, width]`, exclusively borrowed and initialised.
            unsafe { product(to, weights, values, 1.0, true, 1) };
        }
    }
}

multiversion! {
    /// Turns a tile of scores into weights relative to each row's running maximum, and brings the
    /// row's sum and total, which were relative to the old maximum, onto the new one.
    fn online_softmax(
        scores: &mut [f32],
        bias: Option<&[f32]>,
        largest: &mut [f32],
        sums: &mut [f32],
        total: &mut [f32],
        width: usize,
    ) {
        let rows = total.len() / width.max(1);
        let tile = scores.len() / rows.max(1);
        for row in 0..rows {
            let scores = &mut scores[row * tile..][..tile];
            if let Some(bias) = bias {
                for (score, &bias) in scores.iter_mut().zip(bias) {
                    *score += bias;
                }
            }
            let tile_largest = max_of(scores);
            let before = largest[row];
            let now = if tile_largest > before { tile_largest } else { before };
            // All scores so far are -inf (or NaN, which exp keeps): weigh against 0 instead.
            let reference = if now == f32::NEG_INFINITY { 0.0 } else { now };
            let keep = exp(before - reference);
            if keep != 1.0 {
                for value in &mut total[row * width..][..width] {
                    *value *= keep;
                }
            }
            sums[row] = sums[row] * keep + exp_and_sum(scores, reference);
            largest[row] = now;
        }
    }
}

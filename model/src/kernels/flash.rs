//! Exact attention in tiles on the CPU (FlashAttention's online softmax, arXiv 2205.14135).
//!
//! Owns the split into tiles and where results go. Queries, keys and values are read by their
//! strides, so views of a fused projection cost no copy. Does not own the arithmetic of a tile
//! ([`tile`]) or the checks of an entry point ([`crate::attention`]).
//!
//! Invariants: memory is one tile per thread, whatever the number of tokens; a row of the result
//! depends on [`KEY_TILE`] alone, not on the number of queries or of threads. AVX2 and AVX-512
//! agree to the bit, the portable path but for the rounding inside multiply-adds.
#![allow(unsafe_code)]

use candle_core::{Device, Result, Tensor};

mod tile;

use self::tile::Tile;
use super::access::{Access, with_contiguous};
use super::gemm::Matrix;
use super::isa::Isa;
use super::parallel::{for_each_with, threads};

/// Most queries of one tile: they share the packing of keys, and their totals stay in cache.
const QUERY_TILE_MAX: usize = 512;
/// Fewest queries of one tile, unless there are fewer.
const QUERY_TILE_MIN: usize = 96;
/// Tiles per thread that even out their ends.
const TILES_PER_THREAD: usize = 4;
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
    flash_attention_on(Isa::detect(), q, k, v, scale, key_bias)
}

/// The same with the kernels of `isa`, or the portable ones where the processor lacks it.
pub(crate) fn flash_attention_on(
    isa: Isa,
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
        isa,
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
    let size = query_tile(queries, batch * heads);
    let tiles = queries.div_ceil(size);
    for_each_with(
        batch * heads * tiles,
        || Tile::new(&job, size),
        |memory, task| {
            let (stack, tile) = (task / tiles, task % tiles);
            let (b, h) = (stack / heads, stack % heads);
            let first = tile * size;
            let count = size.min(queries - first);
            memory.attend(&job, b, h, first, count);
            // SAFETY: the buffers have room for all tasks, and no two tasks share a row of a head.
            unsafe { places.store(&job, memory, b, h, first, count) };
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

/// Queries of one tile: few enough that every thread gets some of the `stacks` heads' tiles.
fn query_tile(queries: usize, stacks: usize) -> usize {
    let wanted = (threads() * TILES_PER_THREAD).div_ceil(stacks.max(1));
    let tiles = queries.div_ceil(QUERY_TILE_MAX).max(wanted.min(queries / QUERY_TILE_MIN)).max(1);
    queries.div_ceil(tiles).max(1)
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
    /// Stores a finished tile: `count` queries from `first` on, of head `h` in batch row `b`.
    ///
    /// # Safety
    /// `out` must have room for `[B, queries, heads, width]`, `lse` for `[B, heads, queries]`, and
    /// nobody else may touch the rows of this tile meanwhile.
    unsafe fn store(
        &self,
        job: &Job<'_>,
        tile: &Tile,
        b: usize,
        h: usize,
        first: usize,
        count: usize,
    ) {
        let width = job.v.width;
        for row in 0..count {
            let token = b * job.queries + first + row;
            let sum = tile.sums[row];
            let lse = if sum == 0.0 { f32::NEG_INFINITY } else { tile.largest[row] + sum.ln() };
            let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            // SAFETY: token, head and element are within the sizes the caller vouches for.
            unsafe {
                self.lse.add((b * job.heads + h) * job.queries + first + row).write(lse);
                let out = self.out.add((token * job.heads + h) * width);
                for (element, value) in tile.total[row * tile.stride..][..width].iter().enumerate()
                {
                    out.add(element).write(value * inverse);
                }
            }
        }
    }
}

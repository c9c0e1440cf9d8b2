//! Times a PixArt block and its attention against the same in plain candle operations.
//!
//! `RAYON_NUM_THREADS=1 cargo bench --profile dev -p ditmesh-model --bench block [-- NAME]`
//!
//! One thread, f32, both sides in turn in one run; prints medians with quartiles, and the ratio of
//! the medians.
#![allow(clippy::print_stdout, missing_docs)]

#[path = "block/fixture.rs"]
mod fixture;

use std::time::Instant;

use candle_core::{DType, Result, Tensor};
use ditmesh_model::attention::attention;
use ditmesh_model::kernels;

use fixture::{Block, Size, plain_attention, plain_norm, plain_softmax, random};

/// Seconds spent on one comparison.
const BUDGET: f64 = 6.0;

const SIZES: [Size; 2] = [
    Size { name: "1152x16x1024", hidden: 1152, heads: 16, side: 32 },
    Size { name: "384x6x256", hidden: 384, heads: 6, side: 16 },
];

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let threads = candle_core::utils::get_num_threads();
    println!(
        "instruction set {:?}, plain candle would use {threads} threads",
        kernels::Isa::detect()
    );
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    for size in &SIZES {
        pool.install(|| compare(size, &only))?;
    }
    Ok(())
}

fn compare(size: &Size, only: &str) -> candle_core::Result<()> {
    let wanted = |what: &str| only.is_empty() || what.contains(only);
    if wanted("attention") {
        compare_attention(size)?;
    }
    if wanted("block") {
        compare_block(size)?;
    }
    if wanted("kernels") {
        compare_kernels(size)?;
    }
    Ok(())
}

/// Runs both in turn until the budget is spent.
fn race(
    name: &str,
    size: &Size,
    mut ours: impl FnMut() -> Result<Tensor>,
    mut plain: impl FnMut() -> Result<Tensor>,
) -> Result<()> {
    let gap = relative(&ours()?, &plain()?)?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while a.len() < 7 || (start.elapsed().as_secs_f64() < BUDGET && a.len() < 2000) {
        a.push(timed(&mut ours)?);
        b.push(timed(&mut plain)?);
    }
    let runs = a.len();
    let (a, b) = (quartiles(a), quartiles(b));
    println!(
        "{:14} {name:22} ours {:8.3} ms [{:.3}..{:.3}]  candle {:8.3} ms [{:.3}..{:.3}]  \
         ratio {:.2}  ({runs} runs, difference {gap:.1e})",
        size.name,
        a[1],
        a[0],
        a[2],
        b[1],
        b[0],
        b[2],
        b[1] / a[1]
    );
    Ok(())
}

fn timed(run: &mut impl FnMut() -> Result<Tensor>) -> Result<f64> {
    let start = Instant::now();
    let out = run()?;
    let elapsed = start.elapsed().as_secs_f64() * 1e3;
    std::hint::black_box(out);
    Ok(elapsed)
}

/// First quartile, median, third quartile.
fn quartiles(mut times: Vec<f64>) -> [f64; 3] {
    times.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| times[times.len() * quarter / 4])
}

fn relative(a: &Tensor, b: &Tensor) -> Result<f64> {
    let square = |t: &Tensor| t.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>();
    Ok((square(&(a - b)?)? / square(b)?).sqrt())
}

fn compare_attention(size: &Size) -> Result<()> {
    let (n, width) = (size.side * size.side, size.hidden / size.heads);
    let fused = random(&[1, n, 3, size.heads, width], 1.0)?;
    let part = |i: usize| fused.narrow(2, i, 1)?.squeeze(2);
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let scale = 1.0 / (width as f64).sqrt();
    let ours = || Ok(attention(&q, &k, &v, scale, None).map_err(candle_core::Error::wrap)?.out);
    race("attention", size, ours, || plain_attention(&q, &k, &v, scale, None))
}

fn compare_kernels(size: &Size) -> Result<()> {
    let (n, c) = (size.side * size.side, size.hidden);
    let wide = random(&[n, 4 * c], 1.0)?;
    race("gelu", size, || kernels::gelu_tanh(&wide), || wide.gelu())?;
    let scores = random(&[size.heads, n, n], 1.0)?;
    race("softmax", size, || kernels::softmax_last_dim(&scores), || plain_softmax(&scores))?;
    let (x, w) = (random(&[n, c], 1.0)?, random(&[c, 4 * c], 0.1)?);
    race("matmul", size, || kernels::matmul(&x, &w), || x.matmul(&w))?;
    let (shift, scale) = (random(&[c], 1.0)?, random(&[c], 1.0)?);
    let ours = || kernels::layer_norm_modulate(&x, &shift, &scale, 1e-6);
    race("norm and modulation", size, ours, || plain_norm(&x, &shift, &scale))
}

fn compare_block(size: &Size) -> Result<()> {
    let bench = Block::new(size)?;
    race("block", size, || bench.ours(), || bench.plain())
}

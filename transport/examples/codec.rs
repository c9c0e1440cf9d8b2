//! What it costs to write and read activations in fewer bytes, beside a plain copy: median of
//! interleaved rounds on one core. `cargo run -p ditmesh-transport --example codec`.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use ditmesh_transport::{Dtype, codec};

/// A token of PixArt, and how many of them.
const ROW: usize = 1152;
const ROWS: usize = 4096;
const ROUNDS: usize = 15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let values: Vec<f32> = (0..ROW * ROWS).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
    let mut held = vec![0.0; values.len()];
    let mut back = vec![0.0; values.len()];
    let dtypes = [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::I8Rows];
    let mut seconds = vec![[const { Vec::new() }; 4]; dtypes.len()];
    for _ in 0..ROUNDS {
        for (dtype, seconds) in dtypes.into_iter().zip(&mut seconds) {
            let mut payload = vec![0; ROWS * dtype.row_bytes(ROW)];
            let mut timed = |index: usize, start: Instant| {
                if let Some(times) = seconds.get_mut(index) {
                    times.push(start.elapsed().as_secs_f64());
                }
            };
            let start = Instant::now();
            codec::encode(dtype, ROW, &values, &mut payload)?;
            timed(0, start);
            let start = Instant::now();
            codec::decode(dtype, ROW, &payload, &mut back)?;
            timed(1, start);
            let start = Instant::now();
            codec::encode_change(dtype, ROW, &values, &mut held, &mut payload)?;
            timed(2, start);
            let start = Instant::now();
            codec::decode_change(dtype, ROW, &payload, &mut held)?;
            timed(3, start);
        }
    }
    let bytes = (values.len() * size_of::<f32>()) as f64;
    println!(
        "{} f32 in rows of {ROW}: GB/s of f32, median of {ROUNDS} (slowest-fastest)\n",
        values.len()
    );
    println!("| | write | read | write change | read change |\n|---|---|---|---|---|");
    for (dtype, seconds) in dtypes.into_iter().zip(seconds) {
        let cells = seconds.map(|mut times| {
            times.sort_by(f64::total_cmp);
            let rate = |index: usize| bytes / times.get(index).copied().unwrap_or(f64::NAN) / 1e9;
            format!("{:.1} ({:.1}-{:.1})", rate(ROUNDS / 2), rate(ROUNDS - 1), rate(0))
        });
        println!("| {dtype:?} | {} |", cells.join(" | "));
    }
    Ok(())
}

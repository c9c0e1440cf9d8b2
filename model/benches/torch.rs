//! Times our kernels and PyTorch in turns, one thread each, f32, and prints the ratios.
//!
//! `taskset -c 1 env TORCH_PYTHON=/tmp/torchenv/bin/python \
//!  cargo bench --profile dev -p ditmesh-model --bench torch [-- [--compile] [--rounds N] CASE ..]`
//!
//! A case is named as in `torch_block.py`, which says how to set PyTorch up; a part of a name
//! picks the known cases that contain it. A round runs ours and then PyTorch's. Times are those of
//! the computing thread on the processor (of the clock where the system does not tell), which other
//! processes disturb less; the ratio is PyTorch's time over ours, by round: median and quartiles,
//! then the ratio of the least times and, in brackets, the median by the clock.
#![allow(clippy::print_stdout, missing_docs)]

#[path = "block/fixture.rs"]
mod fixture;
#[path = "block/torch_server.rs"]
mod torch_server;

use std::error::Error;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use ditmesh_model::attention::attention;
use ditmesh_model::kernels::Isa;
use ditmesh_model::linear::{Linear, LinearWeight};

use fixture::{Block, Size, TEXT, random};
use torch_server::TorchServer;

const CASES: [&str; 10] = [
    "block-1152x16x1024x120",
    "block-384x6x256x120",
    "attention-4096x4096x16x72",
    "attention-1024x1024x16x72",
    "attention-256x256x6x64",
    "attention-1024x300x16x72",
    "linear-1024x1152x4608",
    "linear-1024x4608x1152",
    "linear-256x384x1536",
    "linear-256x1152x1152",
];
const ROUNDS: usize = 9;
/// Runs of a short case in one round last about this long.
const ROUND_SECONDS: f64 = 0.1;

type Work = Box<dyn FnMut() -> candle_core::Result<Tensor> + Send>;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (mut names, mut rounds, mut mode) = (Vec::new(), ROUNDS, "eager");
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--compile" => mode = "compile",
            "--rounds" => rounds = arguments.next().ok_or("--rounds needs a number")?.parse()?,
            _ => names.push(argument),
        }
    }
    let known = |case: &&str| names.is_empty() || names.iter().any(|name| case.contains(name));
    let mut cases: Vec<String> = CASES.into_iter().filter(known).map(str::to_owned).collect();
    cases.extend(names.iter().filter(|name| !CASES.iter().any(|c| c.contains(*name))).cloned());
    let mut torch = TorchServer::start()?;
    println!("ours {:?}, torch {}, {mode}, {rounds} rounds", Isa::detect(), torch.about());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    for case in &cases {
        compare(case, mode, rounds, &mut torch, &pool)?;
    }
    Ok(())
}

fn compare(
    case: &str,
    mode: &str,
    rounds: usize,
    torch: &mut TorchServer,
    pool: &rayon::ThreadPool,
) -> Result<(), Box<dyn Error>> {
    let (mut work, flops) = ours(case)?;
    let mut time = |repeat: usize| -> candle_core::Result<[f64; 2]> {
        pool.install(|| {
            let (start, thread) = (Instant::now(), thread_seconds());
            for _ in 0..repeat {
                std::hint::black_box(work()?);
            }
            let wall = start.elapsed().as_secs_f64();
            let cpu = thread.zip(thread_seconds()).map_or(wall, |(from, to)| to - from);
            Ok([wall / repeat as f64, cpu / repeat as f64])
        })
    };
    time(1)?;
    let repeat = ((ROUND_SECONDS / time(1)?[1]) as usize).clamp(1, 200);
    torch.seconds(case, mode, 1)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(time(repeat)?);
        theirs.push(torch.seconds(case, mode, repeat)?);
    }
    let ratios = |clock: usize| {
        sorted(ours.iter().zip(&theirs).map(|(ours, torch)| torch[clock] / ours[clock]))
    };
    let [by_clock, by_thread] = [ratios(0), ratios(1)];
    let [ours, theirs] = [&ours, &theirs].map(|times| sorted(times.iter().map(|time| time[1])));
    println!(
        "{case:25} ours {:8.3} ms (least {:8.3}, {:5.1} Gflop/s)  torch {:8.3} ms \
         (least {:8.3})  ratio {:.2} [{:.2}..{:.2}], of least {:.2} ({:.2})",
        quartile(&ours, 2) * 1e3,
        ours[0] * 1e3,
        flops / ours[0] / 1e9,
        quartile(&theirs, 2) * 1e3,
        theirs[0] * 1e3,
        quartile(&by_thread, 2),
        quartile(&by_thread, 1),
        quartile(&by_thread, 3),
        theirs[0] / ours[0],
        quartile(&by_clock, 2),
    );
    Ok(())
}

/// Seconds that this thread has spent on a processor, where Linux tells.
fn thread_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse::<f64>().ok().map(|nanoseconds| nanoseconds / 1e9)
}

fn quartile(times: &[f64], quarter: usize) -> f64 {
    times[(times.len() * quarter / 4).min(times.len() - 1)]
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Our side of a case, with its floating-point operations.
fn ours(case: &str) -> Result<(Work, f64), Box<dyn Error>> {
    let (kind, sizes) = case.split_once('-').ok_or("a case is KIND-SIZES")?;
    let sizes = sizes.split('x').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    let flops = |factors: &[usize]| 2.0 * factors.iter().map(|&f| f as f64).product::<f64>();
    match (kind, &sizes[..]) {
        ("block", &[hidden, heads, tokens, TEXT]) if tokens.isqrt().pow(2) == tokens => {
            let block = Block::new(&Size { name: "", hidden, heads, side: tokens.isqrt() })?;
            let products = flops(&[tokens, hidden, 14 * hidden + 2 * tokens + 2 * TEXT]);
            Ok((Box::new(move || block.ours()), products))
        }
        ("attention", &[queries, keys, heads, width]) => {
            let part = |tokens, index| {
                random(&[1, tokens, 3, heads, width], 1.0)?.narrow(2, index, 1)?.squeeze(2)
            };
            let (q, kv) = (part(queries, 0)?, random(&[1, keys, 3, heads, width], 1.0)?);
            let (k, v) = (kv.narrow(2, 1, 1)?.squeeze(2)?, kv.narrow(2, 2, 1)?.squeeze(2)?);
            let scale = 1.0 / (width as f64).sqrt();
            let work = move || match attention(&q, &k, &v, scale, None) {
                Ok(attended) => Ok(attended.out),
                Err(error) => Err(candle_core::Error::wrap(error)),
            };
            Ok((Box::new(work), flops(&[2, queries, keys, heads, width])))
        }
        ("linear", &[rows, inputs, outputs]) => {
            let (x, weight) = (random(&[rows, inputs], 1.0)?, random(&[outputs, inputs], 0.05)?);
            let bias = Tensor::zeros(outputs, DType::F32, &Device::Cpu)?;
            let weight = LinearWeight::new(weight).map_err(candle_core::Error::wrap)?;
            let layer = Linear::new(weight, Some(bias));
            let work = move || layer.forward(&x).map_err(candle_core::Error::wrap);
            Ok((Box::new(work), flops(&[rows, inputs, outputs])))
        }
        _ => {
            Err(format!("no case is called {case} (a block has square tokens, text {TEXT})").into())
        }
    }
}

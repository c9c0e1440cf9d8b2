//! `bench scaling`: one rank against two, interleaved.
//!
//! Owns the order of runs. What they amount to is in [`report`]. Invariants: every rank has one
//! thread, pinned to a core, or a GPU; in each round everything is measured once, beginning with
//! another part each time, and all ratios are between runs of one round.

mod report;
mod text;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ditmesh::manifest::DeviceSection;
use ditmesh::{Degrees, Dtype, GenerateRequest, Generation};

use super::bed::{self, Bed};
use super::cores;
use super::method::Method;
use super::random_model::{RandomModel, TEXT_TOKENS};
use super::torch::Torch;
use crate::cli::args::ScalingArgs;
use crate::cli::failure::Failure;
use crate::cli::interrupt::Interrupt;
use crate::cli::outcome::Outcome;
use crate::cli::terminal::Terminal;
use report::{Report, Round, RunSample, Setting};

/// Steps at the beginning of each run that are dropped.
const DROPPED_STEPS: u32 = 2;

/// Measures and prints.
pub(super) fn run(args: &ScalingArgs, terminal: &Terminal) -> Result<(), Failure> {
    let started = Instant::now();
    let ranks = ranks(args)?;
    let mut interrupt = Interrupt::new()?;
    let model = RandomModel::write(&args.size)?;
    let mut field = Field::open(args, &ranks, &model, &mut interrupt, terminal)?;
    let budget = Duration::from_secs(60 * u64::from(args.minutes));
    let mut rounds = Vec::new();
    for round in 0..args.rounds {
        let spent = started.elapsed();
        if round > 0 && spent + spent / round > budget {
            terminal.note(&format!("{round} of {} rounds fit the time", args.rounds));
            break;
        }
        terminal.note(&format!("round {} of {}", round + 1, args.rounds));
        rounds.push(field.round(round as usize, &mut interrupt, terminal)?);
    }
    let torch = field.torch.as_ref().map(|torch| torch.version.clone());
    drop(field);
    let setting = Setting {
        steps: args.steps as usize,
        dropped: DROPPED_STEPS as usize,
        blocks: args.size.blocks as usize,
        torch,
        model: describe(args),
        transport: args.place.transport.name(),
        ranks: ranks.words,
    };
    let report = Report::of(setting, &rounds)
        .ok_or_else(|| Failure::failed("a run reported no times of its steps"))?;
    if args.json {
        let json = serde_json::to_string_pretty(&report).map_err(Failure::failed)?;
        return terminal.result(&json);
    }
    terminal.result(&text::describe(&report))
}

/// What the two ranks compute on.
struct Ranks {
    devices: [DeviceSection; 2],
    /// The core of what is measured beside ranks; none where they are GPUs.
    core: Option<usize>,
    words: String,
}

fn ranks(args: &ScalingArgs) -> Result<Ranks, Failure> {
    match args.gpus.as_deref() {
        Some(&[a, b]) => {
            let words = format!("gpus {a} and {b}");
            Ok(Ranks { devices: [a, b].map(bed::on_gpu), core: None, words })
        }
        Some(given) => Err(Failure::usage(format!("--gpus {given:?} are not two"))),
        None => {
            let [a, b] = cores::two(args.place.cores.as_deref())?;
            let words = format!("one thread per rank, cores {a} and {b}");
            Ok(Ranks { devices: [a, b].map(bed::on_core), core: Some(a), words })
        }
    }
}

fn describe(args: &ScalingArgs) -> String {
    let size = &args.size;
    let tokens = (size.latent / 2).pow(2);
    format!(
        "PixArt, hidden {} x {} heads, {} blocks, {tokens} tokens, guided, {} weights, random",
        size.hidden,
        size.heads,
        size.blocks,
        format!("{:?}", args.dtype).to_lowercase()
    )
}

/// What is measured, part by part of a round.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// One rank alone, then two jobs of one rank at once.
    Single,
    /// Two ranks.
    Two(Method),
    /// PyTorch.
    Torch,
}

/// Where everything runs.
struct Field {
    /// Two devices: one rank alone, and all meshes of two.
    pair: Bed,
    /// A device on the second core, for the second of two jobs at once.
    lone: Bed,
    torch: Option<Torch>,
    request: GenerateRequest,
    parts: Vec<Part>,
    /// Methods that cannot be run.
    refused: Vec<Method>,
}

impl Field {
    fn open(
        args: &ScalingArgs,
        ranks: &Ranks,
        model: &RandomModel,
        interrupt: &mut Interrupt,
        terminal: &Terminal,
    ) -> Result<Self, Failure> {
        let (path, dir, transport) = (model.path(), model.work_dir(), args.place.transport);
        let methods = args.only.clone().unwrap_or_else(|| Method::ALL.to_vec());
        let first = methods.first().map_or(Degrees::default(), |method| method.degrees());
        let model_of_bed = (path.as_path(), Dtype::from(args.dtype));
        let mut bed = |name: &str, devices: &[DeviceSection], degrees: Degrees| {
            let place = (transport, devices);
            Bed::start(name, model_of_bed, dir, place, degrees, (&mut *interrupt, terminal))
        };
        let pair = bed("pair", &ranks.devices, first)?;
        let lone = bed("lone", &ranks.devices[1..], Degrees::default())?;
        let size = &args.size;
        let tokens = (size.latent / 2).pow(2);
        let case = format!("block-{}x{}x{tokens}x{TEXT_TOKENS}", size.hidden, size.heads);
        let torch = match ranks.core.map(|core| Torch::start(&args.python, core, case)) {
            None => None,
            Some(Ok(torch)) => Some(torch),
            Some(Err(cause)) => {
                terminal.note(&format!("torch is not measured: {cause}"));
                None
            }
        };
        let parts = [Part::Single].into_iter().chain(methods.into_iter().map(Part::Two));
        let parts = parts.chain(torch.as_ref().map(|_| Part::Torch)).collect();
        let request = model.request(args.steps + DROPPED_STEPS);
        Ok(Self { pair, lone, torch, request, parts, refused: Vec::new() })
    }

    /// Everything once, beginning with part `index`.
    fn round(
        &mut self,
        index: usize,
        interrupt: &mut Interrupt,
        terminal: &Terminal,
    ) -> Result<Round, Failure> {
        let mut order = self.parts.clone();
        let parts = order.len();
        order.rotate_left(index % parts);
        let single = GenerateRequest { degrees: Some(Degrees::default()), ..self.request.clone() };
        let (mut alone, mut at_once) = (RunSample::default(), Vec::new());
        let (mut methods, mut torch) = (BTreeMap::new(), None);
        for part in order {
            match part {
                Part::Single => {
                    alone = generate(&self.pair, single.clone(), interrupt)?;
                    let beds = [&self.pair, &self.lone];
                    at_once = both(beds, &single, interrupt)?;
                }
                Part::Two(method) if self.refused.contains(&method) => {}
                Part::Two(method) => {
                    let request = method.applied_to(&self.request);
                    match generate(&self.pair, request, interrupt) {
                        Ok(run) => drop(methods.insert(method, run)),
                        // The model or this version cannot do it; the others are measured.
                        Err(Failure { outcome: Outcome::Usage, message }) => {
                            terminal.note(&format!("{} is not measured: {message}", method.name()));
                            self.refused.push(method);
                        }
                        Err(failure) => return Err(failure),
                    }
                }
                Part::Torch => torch = self.measure_torch()?,
            }
        }
        Ok(Round { alone, at_once, methods, torch })
    }

    fn measure_torch(&mut self) -> Result<Option<f64>, Failure> {
        let Some(torch) = &mut self.torch else { return Ok(None) };
        let seconds = torch.measure();
        let seconds = seconds.map_err(|cause| Failure::failed(format!("torch: {cause}")))?;
        Ok(super::statistics::median(seconds))
    }
}

/// One run to its end.
fn generate(
    bed: &Bed,
    request: GenerateRequest,
    interrupt: &mut Interrupt,
) -> Result<RunSample, Failure> {
    let handle = bed.generate(request)?;
    Ok(sample(interrupt.guard(handle.finish())??))
}

/// The same run on two beds at once.
fn both(
    [a, b]: [&Bed; 2],
    request: &GenerateRequest,
    interrupt: &mut Interrupt,
) -> Result<Vec<RunSample>, Failure> {
    let (a, b) = (a.generate(request.clone())?, b.generate(request.clone())?);
    let (a, b) = interrupt.guard(async { tokio::join!(a.finish(), b.finish()) })?;
    Ok(vec![sample(a?), sample(b?)])
}

fn sample(generation: Generation) -> RunSample {
    RunSample { ranks: generation.report.ranks }
}

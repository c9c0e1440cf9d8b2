//! `bench recovery`: what the loss of a device in the middle of a run costs.
//!
//! Owns the measurement: a cluster of real processes (two nodes of one device each), a run in the
//! middle of which one of them is really killed or stopped, and the clock of a client. Detection is
//! as a user has it, by the defaults of the manifest.
//!
//! A loss is noticed when the coordinator says so ([`Resumption::seconds`] before the run goes on);
//! the run is denoising again when its next step begins, which is one step's time before it is
//! done.

mod joining;

use std::fmt::Write;
use std::time::{Duration, Instant};

use ditmesh::{ClusterStatus, Degrees, Event, GenerateRequest, Resumption};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use super::bed::{Running, two_nodes};
use super::cores;
use super::random_model::RandomModel;
use super::statistics::{Spread, median};
use crate::cli::args::{RecoveryArgs, SizeArgs};
use crate::cli::failure::Failure;
use crate::cli::interrupt::Interrupt;
use crate::cli::terminal::Terminal;

/// The random model: steps of some tens of milliseconds.
const SIZE: SizeArgs = SizeArgs { hidden: 384, heads: 8, blocks: 6, latent: 32 };

/// Far more steps than a round looks at; the request is then dropped.
const STEPS: u32 = 1000;

/// Steps before the disturbance.
const STEPS_BEFORE: u32 = 6;

/// New steps after it.
const STEPS_AFTER: usize = 4;

/// Longest time for one round, and for the mesh to be whole again.
const ROUND_MAX: Duration = Duration::from_secs(60);

/// Between looks at the cluster.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Aims: seconds of [`Report`]'s fields.
const DETECT_EXIT_AIM_S: f64 = 0.3;
const DETECT_STUCK_AIM_S: f64 = 2.0;
const RESUME_AIM_S: f64 = 1.0;

/// One disturbance.
struct Round {
    detect_s: f64,
    resume_s: f64,
    overhead_s: f64,
    steps_redone: u32,
    extra_sync_steps: u32,
}

/// Medians of all rounds; the most for steps.
#[derive(Debug, Serialize)]
struct Report {
    /// From `kill -9` of a worker until the coordinator knows.
    detect_exit_s: f64,
    /// From `SIGSTOP` of an agent until the coordinator knows.
    detect_stuck_s: f64,
    /// From there until the next step begins: the next mesh, weights loaded, caches made anew.
    resume_s: f64,
    /// Steps that were done before and were done again, at most.
    steps_redone: u32,
    /// Synchronous steps more than in an undisturbed run, at most.
    extra_sync_steps: u32,
    /// From the kill until the first step begins that had not been done: the time that was lost.
    overhead_s: f64,
    /// From the start of `ditmesh join` on a new machine until its device can be used.
    join_s: f64,
    spread: Spreads,
    rounds: u32,
}

#[derive(Debug, Serialize)]
struct Spreads {
    detect_exit_s: Option<Spread>,
    detect_stuck_s: Option<Spread>,
    resume_s: Option<Spread>,
    overhead_s: Option<Spread>,
    join_s: Option<Spread>,
}

/// Measures and prints.
pub(super) fn run(args: &RecoveryArgs, terminal: &Terminal) -> Result<(), Failure> {
    let cores = cores::two(args.cores.as_deref())?;
    let model = RandomModel::write(&SIZE)?;
    let mut interrupt = Interrupt::new()?;
    let (mut exits, mut stops, mut joins) = (Vec::new(), Vec::new(), Vec::new());
    for (name, degrees) in [
        ("ulysses2", Degrees { ulysses_degree: 2, ..Degrees::default() }),
        ("pipefusion2", Degrees { pipefusion_degree: 2, ..Degrees::default() }),
    ] {
        let manifest = two_nodes(name, &model.path(), model.work_dir(), &cores, degrees);
        let running = Running::start(manifest, (&mut interrupt, terminal))?;
        let request = model.request(STEPS);
        for round in 1..=args.rounds {
            terminal.note(&format!("{name}, round {round}: a worker is killed"));
            let worker = |status: &ClusterStatus| process(status, true);
            exits.push(disturbed(&running, &request, (worker, Signal::SIGKILL), &mut interrupt)?);
            terminal.note(&format!("{name}, round {round}: an agent is stopped"));
            let agent = |status: &ClusterStatus| process(status, false);
            stops.push(disturbed(&running, &request, (agent, Signal::SIGSTOP), &mut interrupt)?);
        }
        terminal.note(&format!("{name}: a node joins"));
        joins.push(joining::measure(&running, &model.work_dir().join(name), &mut interrupt)?);
    }
    let report = summed(&exits, &stops, &joins, args.rounds)
        .ok_or_else(|| Failure::failed("no round was measured"))?;
    if args.json {
        let json = serde_json::to_string_pretty(&report).map_err(Failure::failed)?;
        return terminal.result(&json);
    }
    terminal.result(&describe(&report))
}

/// The second node's agent, or its worker.
fn process(status: &ClusterStatus, worker: bool) -> Option<u32> {
    let node = status.nodes.get(1)?;
    if worker { node.devices.first().map(|device| device.process) } else { Some(node.process) }
}

/// One run, disturbed after some steps; the mesh is whole before and after.
fn disturbed(
    running: &Running,
    request: &GenerateRequest,
    (victim, signal): (impl Fn(&ClusterStatus) -> Option<u32>, Signal),
    interrupt: &mut Interrupt,
) -> Result<Round, Failure> {
    let work = async {
        let status = whole(running).await?;
        let victim = victim(&status)
            .and_then(|process| i32::try_from(process).ok())
            .filter(|&process| process > 0)
            .ok_or_else(|| Failure::failed("the cluster does not say who runs"))?;
        let signalled = |signal| {
            let failed = |error| Failure::failed(format!("cannot signal {victim}: {error}"));
            kill(Pid::from_raw(victim), signal).map_err(failed)
        };
        let round = watch(running, request, || signalled(signal)).await;
        if signal == Signal::SIGSTOP {
            signalled(Signal::SIGCONT)?;
        }
        round
    };
    let late = |_| Failure::failed(format!("a round took longer than {ROUND_MAX:?}"));
    interrupt.guard(async { tokio::time::timeout(ROUND_MAX, work).await.map_err(late)? })?
}

/// Waits until both devices are in the mesh.
async fn whole(running: &Running) -> Result<ClusterStatus, Failure> {
    loop {
        let status = running.client()?.status().await?;
        if status.running == 0 && status.mesh.as_ref().is_some_and(|mesh| mesh.ranks.len() == 2) {
            return Ok(status);
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

async fn watch(
    running: &Running,
    request: &GenerateRequest,
    disturb: impl FnOnce() -> Result<(), Failure>,
) -> Result<Round, Failure> {
    let mut handle = running.client()?.generate(request.clone());
    let over = || Failure::failed("the run ended before it was measured");
    loop {
        match handle.next_event().await.ok_or_else(over)? {
            Event::Step { step, .. } if step >= STEPS_BEFORE => break,
            _ => {}
        }
    }
    let disturbance = Instant::now();
    disturb()?;
    let (resumption, resumed) = loop {
        if let Event::Resumed(resumption) = handle.next_event().await.ok_or_else(over)? {
            break (resumption, Instant::now());
        }
    };
    let mut steps = Vec::new();
    let mut new_steps = 0;
    while new_steps < STEPS_AFTER {
        if let Event::Step { step, .. } = handle.next_event().await.ok_or_else(over)? {
            new_steps += usize::from(step >= resumption.lost_at_step);
            steps.push((step, Instant::now()));
        }
    }
    round(disturbance, resumed, &resumption, &steps).ok_or_else(over)
}

fn round(
    disturbance: Instant,
    resumed: Instant,
    resumption: &Resumption,
    steps: &[(u32, Instant)],
) -> Option<Round> {
    let paces = steps.windows(2).filter_map(|pair| match pair {
        [(_, before), (_, after)] => Some((*after - *before).as_secs_f64()),
        _ => None,
    });
    let pace = median(paces)?;
    let since = |moment: Instant| (moment - disturbance).as_secs_f64();
    let detect_s = (since(resumed) - resumption.seconds).max(0.0);
    let (_, first) = steps.first()?;
    let (_, new) = steps.iter().find(|(step, _)| *step >= resumption.lost_at_step)?;
    Some(Round {
        detect_s,
        resume_s: (since(*first) - pace - detect_s).max(0.0),
        overhead_s: (since(*new) - pace).max(0.0),
        steps_redone: resumption.steps_redone(),
        extra_sync_steps: resumption.extra_sync_steps,
    })
}

fn summed(exits: &[Round], stops: &[Round], joins: &[f64], rounds: u32) -> Option<Report> {
    let all = || exits.iter().chain(stops);
    let detect = |rounds: &[Round]| Spread::of(rounds.iter().map(|round| round.detect_s));
    let spread = Spreads {
        detect_exit_s: detect(exits),
        detect_stuck_s: detect(stops),
        resume_s: Spread::of(all().map(|round| round.resume_s)),
        // What a silent one costs is mostly the silence, which is the manifest's to choose.
        overhead_s: Spread::of(exits.iter().map(|round| round.overhead_s)),
        join_s: Spread::of(joins.iter().copied()),
    };
    Some(Report {
        detect_exit_s: spread.detect_exit_s?.median,
        detect_stuck_s: spread.detect_stuck_s?.median,
        resume_s: spread.resume_s?.median,
        steps_redone: all().map(|round| round.steps_redone).max()?,
        extra_sync_steps: all().map(|round| round.extra_sync_steps).max()?,
        overhead_s: spread.overhead_s?.median,
        join_s: spread.join_s?.median,
        spread,
        rounds,
    })
}

fn describe(report: &Report) -> String {
    let Spreads { detect_exit_s, detect_stuck_s, resume_s, overhead_s, join_s } = &report.spread;
    let mut text = String::from("two nodes of one device each, seconds, median [least..most]:\n");
    let rows = [
        ("a killed worker is noticed after", detect_exit_s, Some(DETECT_EXIT_AIM_S)),
        ("a stopped agent is noticed after", detect_stuck_s, Some(DETECT_STUCK_AIM_S)),
        ("and the next step begins after", resume_s, Some(RESUME_AIM_S)),
        ("a killed worker costs in all", overhead_s, None),
        ("a node that joins is usable after", join_s, None),
    ];
    for (what, spread, aim) in rows {
        let Some(spread) = spread else { continue };
        let aim = aim.map_or(String::new(), |aim| format!(" (at most {aim})"));
        let _ = writeln!(text, "  {what:34} {spread}{aim}");
    }
    let _ = writeln!(
        text,
        "  steps done again: {} at most; synchronous steps more: {} at most",
        report.steps_redone, report.extra_sync_steps
    );
    text
}

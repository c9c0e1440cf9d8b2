//! `bench overhead`: what a step costs beside computing and moving bytes.
//!
//! Owns the comparison: ranks whose transformer computes nothing ([`idle`]) walk their real
//! programs over real links, and what their timelines charge to neither arithmetic nor frames is
//! set against a step of the same size that is computed. Self-attention lies outside of a
//! transformer and is still computed; it is charged to arithmetic. The control plane takes no part
//! in a step and none in this.

mod idle;
mod ranks;

use std::fmt::Write;

use ditmesh::{Degrees, GenerateRequest, RankReport};
use serde::Serialize;

use super::cores;
use super::method::Method;
use super::random_model::RandomModel;
use super::statistics::median;
use crate::cli::args::OverheadArgs;
use crate::cli::failure::Failure;
use crate::cli::outcome::Outcome;
use crate::cli::terminal::Terminal;
use ranks::Ranks;

/// Share of a step that orchestration may take.
const TARGET: f64 = 0.01;
/// Steps computed for the comparison, and those of them that are dropped.
const COMPUTED: (u32, usize) = (3, 1);

/// One mesh.
#[derive(Debug, Serialize)]
struct Measured {
    method: &'static str,
    /// Seconds per step of the slower rank: neither arithmetic nor waiting nor frames.
    orchestration_s: f64,
    /// Seconds per step of handing frames to the transport and copying them.
    frames_s: f64,
    /// `orchestration_s` over half a step of one rank.
    share: f64,
    misses: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Seconds of a computed step on one rank.
    t1_s: f64,
    transport: &'static str,
    steps: u32,
    target: f64,
    meshes: Vec<Measured>,
}

/// Measures and prints.
pub(super) fn run(args: &OverheadArgs, terminal: &Terminal) -> Result<(), Failure> {
    let cores = cores::two(args.place.cores.as_deref())?;
    let model = RandomModel::write(&args.size)?;
    let ranks = Ranks::new(&model.path(), args.place.transport, cores)?;
    let (steps, dropped) = COMPUTED;
    let single = GenerateRequest { degrees: Some(Degrees::default()), ..model.request(steps) };
    terminal.note("one rank that computes");
    let computed = ranks.run(&single, false)?;
    let t1_s = computed
        .first()
        .and_then(|rank| median(rank.time.step_seconds.iter().skip(dropped).copied()));
    let t1_s = t1_s.ok_or_else(|| Failure::failed("a run reported no times of its steps"))?;
    let mut meshes = Vec::new();
    for method in Method::ALL {
        terminal.note(&format!("{} without computing", method.name()));
        let request = method.applied_to(&model.request(args.steps));
        match ranks.run(&request, true) {
            Ok(reports) => meshes.push(measured(method, &reports, args.steps, t1_s)),
            Err(Failure { outcome: Outcome::Usage, message }) => {
                terminal.note(&format!("{} is not measured: {message}", method.name()));
            }
            Err(failure) => return Err(failure),
        }
    }
    let transport = args.place.transport.name();
    let report = Report { t1_s, transport, steps: args.steps, target: TARGET, meshes };
    if args.json {
        let json = serde_json::to_string_pretty(&report).map_err(Failure::failed)?;
        return terminal.result(&json);
    }
    terminal.result(&describe(&report))
}

/// The slower rank's orchestration, prologue and end of the run included.
fn measured(method: Method, ranks: &[RankReport], steps: u32, t1_s: f64) -> Measured {
    let per_step = |of: fn(&ditmesh_actors::request::OpTime) -> f64| {
        let sums = ranks.iter().map(|rank| rank.time.ops.iter().map(of).sum::<f64>());
        sums.fold(0.0, f64::max) / f64::from(steps)
    };
    let between = ranks.iter().map(|rank| rank.time.elsewhere_s).fold(0.0, f64::max);
    let orchestration_s = per_step(|op| op.overhead_s) + between / f64::from(steps);
    let share = orchestration_s / (t1_s / 2.0);
    Measured {
        method: method.name(),
        orchestration_s,
        frames_s: per_step(|op| op.send_s + op.serialise_s),
        share,
        misses: share >= TARGET,
    }
}

fn describe(report: &Report) -> String {
    let Report { t1_s, transport, steps, target, .. } = report;
    let mut text = format!(
        "a step of one rank takes {t1_s:.3} s; over {transport}, {steps} steps without computing, \
         per step of the slower rank:\n"
    );
    for mesh in &report.meshes {
        let _ = writeln!(
            text,
            "  {:12} orchestration {:9.3} ms, {:.3} % of a step on two ranks{}; frames {:9.3} ms",
            mesh.method,
            1e3 * mesh.orchestration_s,
            100.0 * mesh.share,
            if mesh.misses {
                format!(" (to stay under {} %)", 100.0 * target)
            } else {
                String::new()
            },
            1e3 * mesh.frames_s,
        );
    }
    text
}

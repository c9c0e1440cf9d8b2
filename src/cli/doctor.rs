//! `doctor`: what makes a link slow or broken, and the command that fixes it.
//!
//! Owns the order of the checks and how findings are shown. Changes nothing on the host. Exit code
//! 0: nothing that breaks a link; 1: something does.

mod cluster;
mod finding;
mod host;

use ditmesh::manifest;
use serde::Serialize;

use super::args::DoctorArgs;
use super::failure::Failure;
use super::outcome::Outcome;
use super::terminal::Terminal;
use finding::{Finding, Level};

#[derive(Serialize)]
struct Report {
    /// Whether no finding is a problem.
    sound: bool,
    findings: Vec<Finding>,
}

/// Checks and prints.
pub(crate) fn run(args: &DoctorArgs, terminal: &Terminal) -> Result<(), Failure> {
    let mut findings = host::check();
    if let Some(path) = &args.cluster {
        let manifest = manifest::parse::load(path)?;
        findings.extend(cluster::check(&manifest));
    }
    let sound = findings.iter().all(|finding| finding.level != Level::Problem);
    if args.json {
        let report = Report { sound, findings };
        terminal.result(&serde_json::to_string_pretty(&report).map_err(Failure::failed)?)?;
    } else {
        let lines: Vec<_> = findings.iter().map(Finding::text).collect();
        terminal.result(&lines.join("\n"))?;
    }
    if sound {
        return Ok(());
    }
    Err(Failure { outcome: Outcome::Failed, message: String::new() })
}

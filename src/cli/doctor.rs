//! `doctor`: what makes a link slow or broken, and the command that fixes it.
//!
//! Owns the order of the checks and how findings are shown. Changes nothing on any host. Exit code
//! 0: nothing that breaks a link; 1: something does.

mod clocks;
mod cluster;
mod nics;
mod paths;

use ditmesh::manifest;
use ditmesh_actors::examine::host;
use ditmesh_actors::protocol::examine::{Finding, Level};
use serde::Serialize;

use super::args::DoctorArgs;
use super::failure::Failure;
use super::outcome::Outcome;
use super::terminal::Terminal;

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
        findings.extend(cluster::check(&manifest, path));
    }
    let sound = findings.iter().all(|finding| finding.level != Level::Problem);
    if args.json {
        let report = Report { sound, findings };
        terminal.result(&serde_json::to_string_pretty(&report).map_err(Failure::failed)?)?;
    } else {
        let lines: Vec<_> = findings.iter().map(text).collect();
        terminal.result(&lines.join("\n"))?;
    }
    if sound {
        return Ok(());
    }
    Err(Failure { outcome: Outcome::Failed, message: String::new() })
}

/// For people: one line, and one with the command.
fn text(finding: &Finding) -> String {
    let Finding { check, level, node, found, fix } = finding;
    let level = match level {
        Level::Ok => "ok",
        Level::Slow => "slow",
        Level::Unknown => "?",
        Level::Problem => "PROBLEM",
    };
    let from = node.as_ref().map_or(String::new(), |node| format!("on node {node}: "));
    let line = format!("{level:8}{check:14}{from}{found}");
    match fix {
        Some(fix) => format!("{line}\n{:22}{fix}", ""),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_where_it_is_and_what_fixes_it() {
        let amiss = Finding::amiss("UDP send", Level::Slow, "too small", "sysctl -w a=1");
        assert_eq!(
            text(&amiss.on(Some("b"))),
            format!("slow    UDP send      on node b: too small\n{:22}sysctl -w a=1", "")
        );
        assert_eq!(text(&Finding::ok("clock", "right")), "ok      clock         right");
    }
}

//! `--trace`: the timelines of all pictures in one file.

use std::path::Path;

use ditmesh::trace_file::{self, RunTimeline};

use super::output;
use crate::cli::failure::Failure;
use crate::cli::terminal::Terminal;

/// Pictures of one timeline, at most: a rank's part of one can have megabytes.
const TRACED_PICTURES_MAX: usize = 32;

/// Refuses what could not be written later.
pub(super) fn check(path: &Path, pictures: usize) -> Result<(), Failure> {
    if pictures > TRACED_PICTURES_MAX {
        return Err(Failure::usage(format!(
            "--trace keeps the timelines of {TRACED_PICTURES_MAX} pictures at most, not of \
             {pictures}; ask for fewer"
        )));
    }
    output::check(path)
}

/// Writes the file.
pub(super) fn write(
    path: &Path,
    runs: Vec<RunTimeline>,
    terminal: &Terminal,
) -> Result<(), Failure> {
    let left_out: u64 = runs.iter().map(RunTimeline::left_out).sum();
    if left_out > 0 {
        terminal.note(&format!("the timeline is coarser than asked: {left_out} spans left out"));
    }
    let bytes = trace_file::encode(runs).map_err(Failure::failed)?;
    ditmesh::atomic_file::write(path, &bytes).map_err(|error| Failure::write(path, &error))
}

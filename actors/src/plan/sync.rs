//! Which denoising steps are synchronous, where a run has more than one patch.
//!
//! Owns the rule and nothing else. A synchronous step runs the whole image through all stages and
//! so renews every key and value; an asynchronous one goes patch by patch against keys and values
//! of the step before. Pure.

use crate::protocol::RunSpec;

/// Whether `step` (from 0) is synchronous: the first `sync_steps` are, and of those that follow
/// every `sync_every`-th, which are the steps `sync_steps + k * sync_every - 1` for `k = 1, 2, ..`.
///
/// With `sync_steps` 1 and `sync_every` 4 these are 0, 4, 8, 12, ..: three asynchronous steps
/// between two synchronous ones. `sync_every` 1 makes all steps synchronous, 0 adds none.
///
/// A run that goes on from a checkpoint has no keys and values, so its first step is synchronous
/// whatever the rule says.
pub fn is_sync(run: &RunSpec, step: usize) -> bool {
    step == run.first_step as usize || is_sync_by_rule(run, step)
}

/// The same for a run that is never interrupted.
pub(crate) fn is_sync_by_rule(run: &RunSpec, step: usize) -> bool {
    let (first, every) = (run.sync_steps as usize, run.sync_every as usize);
    step < first || (every > 0 && (step - first + 1).is_multiple_of(every))
}

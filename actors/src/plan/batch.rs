//! Runs of several pictures: which requests can be one run, and the run they become.
//!
//! Owns the rule that the pictures of a run differ in their prompts and seeds only. Their latents
//! are rows of one batch, branch by branch (`[uncond x n, cond x n]`); a picture of a batch equals
//! the picture alone up to the order of float additions. Pure.

use super::PlanError;
use crate::protocol::RunSpec;

/// Pictures of one run, at most.
pub const BATCH_IMAGES_MAX: usize = 8;

/// Longest prompts of a picture in a batch; the prompts of a run travel in one control message.
pub const BATCH_PROMPT_BYTES_MAX: usize = 16 << 10;

/// Equal for runs that can be one; `None` for a run that stays alone: with tensors of its own, with
/// a step cache (whose decisions would depend on the others).
pub fn shape(run: &RunSpec) -> Option<u64> {
    let long = run
        .images
        .iter()
        .any(|image| image.prompt.len() + image.negative_prompt.len() > BATCH_PROMPT_BYTES_MAX);
    if long || is_alone(run) {
        return None;
    }
    Some(super::fnv(&format!("{:?}", RunSpec { images: Vec::new(), ..run.clone() })))
}

/// One run of the pictures of several of one shape; `None` for none. A batch is decoded picture by
/// picture, on one rank.
pub fn join<'a>(runs: impl IntoIterator<Item = &'a RunSpec>) -> Option<RunSpec> {
    let mut runs = runs.into_iter();
    let first = runs.next()?.clone();
    Some(runs.fold(first, |mut batch, run| {
        batch.images.extend_from_slice(&run.images);
        batch.vae_parallel = false;
        batch
    }))
}

/// Checks the number of pictures.
pub(super) fn check(run: &RunSpec) -> Result<(), PlanError> {
    let images = run.images.len();
    if !(1..=BATCH_IMAGES_MAX).contains(&images) {
        let what = format!("a run of {images} pictures is outside 1..={BATCH_IMAGES_MAX}");
        return Err(PlanError::Value(what));
    }
    if images > 1 && (is_alone(run) || run.vae_parallel) {
        return Err(PlanError::Value(format!(
            "a run of {images} pictures has tensors, a step cache or bands of one; run them one by \
             one"
        )));
    }
    Ok(())
}

fn is_alone(run: &RunSpec) -> bool {
    run.latents_given || run.embeds_tokens.is_some() || run.step_cache.is_some()
}

//! The newest complete checkpoint of a run: its latents after one step.
//!
//! Owns the rule of what counts: a step counts when the rows of every sequence rank are there, and
//! replaces the step before. Holds no solver history yet, so nothing resumes from it.

use std::sync::{Mutex, PoisonError};

use crate::plan::Plan;
use crate::plan::message::Message;
use crate::plan::program::Patch;
use crate::request::FloatTensor;

/// Latents after a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The step they are the result of, from 0.
    pub step: usize,
    /// f32 `[1, C, F, H, W]`.
    pub latents: FloatTensor,
}

/// Collects the rows of a run as its ranks send them. One store serves one run.
#[derive(Debug, Default)]
pub struct CheckpointStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The step that is being collected, its latents and the token rows that are still missing.
    open: Option<(Checkpoint, usize)>,
    complete: Option<Checkpoint>,
}

impl CheckpointStore {
    /// The newest complete checkpoint.
    pub fn newest(&self) -> Option<Checkpoint> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).complete.clone()
    }

    /// Takes the rows that `rank` sent as `message`.
    pub(crate) fn put(&self, plan: &Plan, rank: usize, message: &Message, rows: &[f32]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let step = usize::from(message.step);
        let token_rows = plan.grid.token_rows();
        let (mut checkpoint, missing) = match state.open.take() {
            Some((open, missing)) if open.step == step => (open, missing),
            _ => {
                let shape = plan.latent_shape(1, token_rows);
                let data = vec![0.0; shape.iter().product()];
                (Checkpoint { step, latents: FloatTensor { shape, data } }, token_rows)
            }
        };
        let own = plan.rows(plan.mesh.coordinates(rank).sp, Patch::All);
        let grid = &plan.grid;
        // One token row of one channel and frame: `patch_size` latent rows, contiguous.
        let line = grid.patch_size * grid.width;
        for plane in 0..grid.channels * grid.frames {
            for (position, row) in own.ranges().iter().cloned().flatten().enumerate() {
                let from = (plane * own.len() + position) * line;
                let to = (plane * token_rows + row) * line;
                let target = checkpoint.latents.data.get_mut(to..to + line);
                if let (Some(target), Some(source)) = (target, rows.get(from..from + line)) {
                    target.copy_from_slice(source);
                }
            }
        }
        match missing.saturating_sub(own.len()) {
            0 => state.complete = Some(checkpoint),
            missing => state.open = Some((checkpoint, missing)),
        }
    }
}

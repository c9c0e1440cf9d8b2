//! Checkpoints of a run, and a run that goes on from one.
//!
//! Owns which steps are kept, what a checkpoint holds and where a run begins. A checkpoint is taken
//! strip by strip, by the ranks that compute the strip's next latents, right after they did. It
//! holds what a scheduler step reads: latents and the solver's history. Noise is drawn once, before
//! the first step, and solvers here draw none; keys and values are not kept: a run that goes on
//! makes its first step a synchronous one ([`super::sync`]). Pure.

use super::mesh::Coordinates;
use super::message::{Message, MessageKind};
use super::program::{Op, Patch};
use super::{Plan, sync};

impl Plan {
    /// The first step to do; those before are in a checkpoint.
    pub fn first_step(&self) -> usize {
        self.run.first_step as usize
    }

    /// Synchronous steps that the run has only because it goes on from a checkpoint: 0 or 1.
    pub fn extra_sync_steps(&self) -> u32 {
        let first = self.first_step();
        let goes_on = first > 0 && first < self.steps() && self.strips.len() > 1;
        u32::from(goes_on && !sync::is_sync_by_rule(&self.run, first))
    }

    /// What a run that does not begin with the first step goes on from: latents of all pictures,
    /// then the solver's history, oldest first, of all pictures each.
    pub fn resume_message(&self) -> Option<Message> {
        let last = self.first_step().checked_sub(1)?;
        let shape = self.latent_shape(self.checkpoint_batch(last), self.grid.token_rows());
        Some(Message::once(MessageKind::Resume, shape))
    }

    /// Rows of a batch that a checkpoint after `step` has: latents and history of every picture.
    /// After the last step nobody asks the solver again.
    pub fn checkpoint_batch(&self, step: usize) -> usize {
        let goes_on = step + 1 < self.steps();
        let history = if goes_on { self.model.solver_history.min(step + 1) } else { 0 };
        (1 + history) * self.images()
    }

    /// The rows of the rank at `at` after a pass of `step`, when the step is one that is kept:
    /// every `checkpoint_every`-th, and the last one, so that a picture can be decoded again.
    pub(super) fn checkpoint(&self, at: Coordinates, step: usize, patch: Patch) -> Option<Op> {
        let every = self.run.checkpoint_every as usize;
        let last = step + 1 == self.steps();
        let kept = if last { !self.run.latent_output } else { (step + 1).is_multiple_of(every) };
        let rows = self.rows(at.sp, patch).len();
        (every > 0 && kept && at.cfg == 0 && rows > 0).then(|| {
            let shape = self.latent_shape(self.checkpoint_batch(step), rows);
            let message = Message::of_patch(MessageKind::Checkpoint, step, patch.strip(), shape);
            Op::Checkpoint { peer: self.controller(), message }
        })
    }
}

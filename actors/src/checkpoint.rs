//! Checkpoints of a run: what it goes on from when a device is lost.
//!
//! Owns the rule of what counts: a step counts when all rows of all strips are there, and replaces
//! the step before. Does not own which steps are kept ([`crate::plan::resume`]), nor who goes on.

use std::sync::{Arc, Mutex, PoisonError};

use crate::plan::Plan;
use crate::plan::message::Message;
use crate::request::FloatTensor;

/// Latents after a step, and what the solver knows of earlier ones.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Checkpoint {
    /// The step they are the result of, from 0.
    pub step: usize,
    /// Pictures.
    pub images: usize,
    /// f32 `[(1 + history) * images, C, F, H, W]`: latents, then the solver's outputs, oldest
    /// first.
    pub state: FloatTensor,
}

impl Checkpoint {
    fn new(plan: &Plan, step: usize) -> Self {
        let shape = plan.latent_shape(plan.checkpoint_batch(step), plan.grid.token_rows());
        let data = vec![0.0; shape.iter().product()];
        Self { step, images: plan.images(), state: FloatTensor { shape, data } }
    }

    /// Elements of one picture's latents.
    fn picture(&self) -> usize {
        self.state.shape.iter().skip(1).product()
    }

    /// Latents alone, f32 `[images, C, F, H, W]`.
    pub fn latents(&self) -> FloatTensor {
        let mut shape = self.state.shape.clone();
        shape.iter_mut().take(1).for_each(|batch| *batch = self.images);
        let data = self.state.data.iter().take(self.images * self.picture());
        FloatTensor { shape, data: data.copied().collect() }
    }

    /// That of picture `index` alone; `None` when there is no such picture.
    pub fn of_image(&self, index: usize) -> Option<Self> {
        let picture = self.picture();
        if index >= self.images || picture == 0 {
            return None;
        }
        let pictures = self.state.data.chunks_exact(picture).skip(index).step_by(self.images);
        let data: Vec<f32> = pictures.flatten().copied().collect();
        let mut shape = self.state.shape.clone();
        shape.iter_mut().take(1).for_each(|batch| *batch /= self.images);
        Some(Self { step: self.step, images: 1, state: FloatTensor { shape, data } })
    }

    /// One of the pictures of several of one step and shape, in order; `None` when they differ or
    /// there are none.
    pub fn join(parts: &[Arc<Self>]) -> Option<Arc<Self>> {
        let first = parts.first()?;
        let alike = |part: &Arc<Self>| {
            (part.step, part.images, &part.state.shape) == (first.step, 1, &first.state.shape)
        };
        if !parts.iter().all(alike) {
            return None;
        }
        if parts.len() == 1 {
            return Some(first.clone());
        }
        let picture = first.picture().max(1);
        let mut data = Vec::with_capacity(first.state.data.len() * parts.len());
        for held in 0..first.state.data.len() / picture {
            for part in parts {
                data.extend_from_slice(part.state.data.get(held * picture..(held + 1) * picture)?);
            }
        }
        let mut shape = first.state.shape.clone();
        shape.iter_mut().take(1).for_each(|batch| *batch *= parts.len());
        let state = FloatTensor { shape, data };
        Some(Arc::new(Self { step: first.step, images: parts.len(), state }))
    }
}

/// Takes a checkpoint that is complete; must not block for long.
pub(crate) type OnComplete = Box<dyn Fn(&Arc<Checkpoint>) + Send + Sync>;

/// Collects the rows of a run as its ranks send them. One store serves one run.
#[derive(Default)]
pub struct CheckpointStore {
    state: Mutex<State>,
    on_complete: Option<OnComplete>,
}

impl std::fmt::Debug for CheckpointStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckpointStore").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct State {
    /// The step that is being collected, and the token rows that are still missing.
    open: Option<(Checkpoint, usize)>,
    complete: Option<Arc<Checkpoint>>,
}

impl CheckpointStore {
    /// A store that hands on what is complete.
    pub(crate) fn that_tells(on_complete: OnComplete) -> Self {
        Self { on_complete: Some(on_complete), ..Self::default() }
    }

    /// The newest complete checkpoint.
    pub fn newest(&self) -> Option<Arc<Checkpoint>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).complete.clone()
    }

    /// Takes the rows that `rank` sent as `message`.
    pub(crate) fn put(&self, plan: &Plan, rank: usize, message: &Message, rows: &[f32]) {
        let complete = self.take(plan, rank, message, rows);
        if let (Some(on_complete), Some(complete)) = (&self.on_complete, complete) {
            on_complete(&complete);
        }
    }

    /// The checkpoint that is complete with these rows.
    fn take(
        &self,
        plan: &Plan,
        rank: usize,
        message: &Message,
        rows: &[f32],
    ) -> Option<Arc<Checkpoint>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let step = usize::from(message.step);
        let token_rows = plan.grid.token_rows();
        let (mut checkpoint, missing) = match state.open.take() {
            Some((open, missing)) if open.step == step => (open, missing),
            _ => (Checkpoint::new(plan, step), token_rows),
        };
        let own = plan.rows(plan.mesh.coordinates(rank).sp, message.patch());
        let grid = &plan.grid;
        // One token row of one channel and frame: `patch_size` latent rows, contiguous.
        let line = grid.patch_size * grid.width;
        for plane in 0..plan.checkpoint_batch(step) * grid.channels * grid.frames {
            for (position, row) in own.ranges().iter().cloned().flatten().enumerate() {
                let from = (plane * own.len() + position) * line;
                let to = (plane * token_rows + row) * line;
                let target = checkpoint.state.data.get_mut(to..to + line);
                if let (Some(target), Some(source)) = (target, rows.get(from..from + line)) {
                    target.copy_from_slice(source);
                }
            }
        }
        match missing.saturating_sub(own.len()) {
            0 => state.complete = Some(Arc::new(checkpoint)),
            missing => {
                state.open = Some((checkpoint, missing));
                return None;
            }
        }
        state.complete.clone()
    }
}

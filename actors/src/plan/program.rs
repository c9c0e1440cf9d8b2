//! What one rank does in a run: a straight list of coarse operations.
//!
//! Owns the vocabulary. A program never branches on data; which frames a rank sends and receives,
//! and in which order, is fixed before the run starts.

use std::ops::Range;

use super::message::Message;

/// Rows an operation covers: one strip, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Patch {
    /// Every strip (synchronous steps).
    All,
    /// One strip (asynchronous steps).
    Strip(usize),
}

impl Patch {
    /// The strip's index, if it is one strip.
    pub fn strip(self) -> Option<usize> {
        match self {
            Self::All => None,
            Self::Strip(index) => Some(index),
        }
    }
}

/// One operation. `peer` is a rank, or the world size for the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Encode the prompts (this rank holds the text encoder).
    Encode,
    /// Draw this rank's rows of the initial noise from the seed.
    Noise,
    /// Take this rank's rows from the latents that were received.
    TakeLatents,
    /// Take this rank's rows, and what the solver knows of them, from the checkpoint that was
    /// received.
    Restore,
    /// Give the partition its text: prepares cross-attention keys and values.
    Condition,
    /// Wait for a frame.
    Recv {
        /// Who sends it.
        peer: usize,
        /// What comes.
        message: Message,
    },
    /// Send a frame.
    Send {
        /// Who gets it.
        peer: usize,
        /// What goes.
        message: Message,
    },
    /// Run this rank's blocks over some rows.
    Forward {
        /// Denoising step.
        step: usize,
        /// Rows.
        patch: Patch,
        /// Blocks, counted over the whole model.
        blocks: Range<usize>,
    },
    /// Swap predicted noise with the same rank of the other guidance branch.
    Exchange {
        /// The other rank.
        peer: usize,
        /// What goes both ways.
        message: Message,
    },
    /// Step cache: decide whether the blocks after the first are run over some rows. Later
    /// operations follow what was decided; which frames they send does not depend on it.
    Decide {
        /// Denoising step.
        step: usize,
        /// Rows.
        patch: Patch,
    },
    /// Guidance and noise scheduler on some rows.
    Denoise {
        /// Denoising step.
        step: usize,
        /// Rows.
        patch: Patch,
    },
    /// The step is complete on this rank (the reporting rank tells the user).
    StepDone {
        /// Denoising step.
        step: usize,
    },
    /// Send this rank's latent rows of some rows after a step, with the solver's history, to the
    /// controller, which keeps the newest complete set.
    Checkpoint {
        /// The controller.
        peer: usize,
        /// What goes.
        message: Message,
    },
    /// Put this rank's rows and those received together to the whole latent.
    Gather,
    /// Decode this rank's band of latent rows (all of them, when pictures are not decoded in
    /// bands).
    Decode,
    /// Put this rank's pixel rows and those received together to the whole picture.
    Assemble,
}

impl Op {
    /// Its name in accounts of time and in traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Encode => "encode",
            Self::Noise => "noise",
            Self::TakeLatents => "take_latents",
            Self::Restore => "restore",
            Self::Condition => "condition",
            Self::Recv { .. } => "receive",
            Self::Send { .. } => "send",
            Self::Forward { .. } => "forward",
            Self::Exchange { .. } => "exchange",
            Self::Decide { .. } => "decide",
            Self::Denoise { .. } => "denoise",
            Self::StepDone { .. } => "step_done",
            Self::Checkpoint { .. } => "checkpoint",
            Self::Gather => "gather",
            Self::Decode => "decode",
            Self::Assemble => "assemble",
        }
    }
}

/// One rank's operations in order, cut into the units of [`super::interleave`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// The operations.
    pub ops: Vec<Op>,
    /// Where each unit ends; the same number of units on every rank. The controller has none.
    pub unit_ends: Vec<usize>,
}

impl Program {
    /// The operations of one unit; none for a unit there is not.
    pub fn unit(&self, unit: usize) -> &[Op] {
        let end = |unit: usize| self.unit_ends.get(unit).copied();
        let start = unit.checked_sub(1).map_or(Some(0), end);
        let range = start.zip(end(unit)).map(|(start, end)| start..end);
        range.and_then(|range| self.ops.get(range)).unwrap_or_default()
    }
}

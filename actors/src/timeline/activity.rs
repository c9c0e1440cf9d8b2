//! What a rank can be doing, and what operations and phases count as by themselves.

use ditmesh_model::phase::Phase;

use super::{Key, Where};
use crate::plan::program::{Op, Patch};
use crate::request::{NOWHERE, SpanKind};

/// Kinds of [`Activity`].
pub const ACTIVITIES: usize = 5;

/// What a compute thread does at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Activity {
    /// Arithmetic.
    Compute,
    /// Nothing: a frame has not come yet, or has not been taken yet.
    Wait,
    /// Handing frames to the transport, posting places for those to come.
    Send,
    /// Copies between tensors and frames, splitting and joining for an exchange included.
    Serialise,
    /// Everything else: walking the program, checks, bookkeeping.
    Overhead,
}

impl Activity {
    /// How it is recorded when it is done with a message.
    pub(super) fn of_message(self) -> Option<(&'static str, SpanKind)> {
        match self {
            Self::Wait => Some(("wait", SpanKind::Wait)),
            Self::Send => Some(("send", SpanKind::Send)),
            Self::Serialise => Some(("serialise", SpanKind::Serialise)),
            Self::Compute | Self::Overhead => None,
        }
    }
}

/// What an operation is charged as where nothing in it says otherwise.
pub(super) fn of_op(op: &Op) -> (Key, Activity) {
    let key = |part| Key { op: op.name(), part };
    match op {
        Op::Recv { message, .. }
        | Op::Send { message, .. }
        | Op::Checkpoint { message, .. }
        | Op::Exchange { message, .. } => (key(message.kind.name()), Activity::Overhead),
        Op::StepDone { .. } => (key(""), Activity::Overhead),
        _ => (key(""), Activity::Compute),
    }
}

/// The same for a phase of a forward pass.
pub(super) fn of_phase(phase: &Phase) -> (Key, Activity) {
    let key = Key { op: "forward", part: phase.name() };
    match phase {
        Phase::Start(_) | Phase::Wait(_) => (key, Activity::Serialise),
        _ => (key, Activity::Compute),
    }
}

/// Step and patch of an operation.
pub(super) fn place_of_op(op: &Op) -> Where {
    match op {
        Op::Forward { step, patch, .. } | Op::Denoise { step, patch } => place(*step, *patch),
        Op::Recv { message, .. } | Op::Send { message, .. } | Op::Exchange { message, .. }
            if message.is_of_a_step() =>
        {
            place(usize::from(message.step), message.patch())
        }
        Op::StepDone { step } => place(*step, Patch::All),
        Op::Checkpoint { message, .. } => place(usize::from(message.step), message.patch()),
        _ => Where::NOWHERE,
    }
}

fn place(step: usize, patch: Patch) -> Where {
    let patch = patch.strip().map_or(NOWHERE, |strip| strip as u16);
    Where { step: step as u16, patch, ..Where::NOWHERE }
}

/// Block of a phase.
pub(super) fn place_of_phase(phase: &Phase) -> Where {
    let block = match phase {
        Phase::ProjectQkv(work) => work.block,
        Phase::Attend(work) => work.block,
        Phase::ProjectOut(block) => *block,
        Phase::Start(transfer) | Phase::Wait(transfer) => transfer.id.block,
        _ => return Where::NOWHERE,
    };
    Where { block: block as u16, ..Where::NOWHERE }
}

//! What a rank can be doing, and what operations and phases count as by themselves.

use ditmesh_model::phase::Phase;

use super::Key;
use crate::plan::program::Op;

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
        Phase::Exchange(_) => (key, Activity::Serialise),
        _ => (key, Activity::Compute),
    }
}

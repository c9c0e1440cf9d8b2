//! PipeFusion (arXiv 2405.14430): stages of blocks, patches that flow through them.
//!
//! Emits what travels between stages: hidden states from each stage to the next, and the new
//! latent rows from the last stage back to the first, which starts the next step on them at once.
//! With one stage nothing travels. A sequence rank that owns no row of a patch sends nothing.

use crate::plan::Plan;
use crate::plan::mesh::Coordinates;
use crate::plan::message::{Message, MessageKind};
use crate::plan::program::{Op, Patch};

/// What a stage waits for before its forward pass.
pub(crate) fn receive(plan: &Plan, at: Coordinates, step: usize, patch: Patch, ops: &mut Vec<Op>) {
    if at.stage > 0 {
        let peer = plan.mesh.rank(Coordinates { stage: at.stage - 1, ..at });
        let message = activation(plan, at, step, patch);
        return ops.extend(message.map(|message| Op::Recv { peer, message }));
    }
    if plan.mesh.stages() == 1 || step == plan.first_step() {
        return;
    }
    let peer = plan.mesh.rank(Coordinates { stage: plan.mesh.stages() - 1, ..at });
    let mut take = |patch| {
        ops.extend(sample(plan, at, step, patch).map(|message| Op::Recv { peer, message }));
    };
    // The latent comes as the step before left it: whole after a synchronous step, strip by strip
    // after an asynchronous one, whichever way this step goes on.
    match (plan.is_async(step - 1), patch) {
        (true, Patch::All) => (0..plan.strips.len()).map(Patch::Strip).for_each(take),
        (true, strip) => take(strip),
        (false, Patch::All | Patch::Strip(0)) => take(Patch::All),
        (false, Patch::Strip(_)) => {}
    }
}

/// Hidden states to the next stage.
pub(crate) fn hand_on(plan: &Plan, at: Coordinates, step: usize, patch: Patch, ops: &mut Vec<Op>) {
    let peer = plan.mesh.rank(Coordinates { stage: at.stage + 1, ..at });
    ops.extend(activation(plan, at, step, patch).map(|message| Op::Send { peer, message }));
}

/// New latent rows to the first stage, unless this was the last step.
pub(crate) fn return_sample(
    plan: &Plan,
    at: Coordinates,
    step: usize,
    patch: Patch,
    ops: &mut Vec<Op>,
) {
    if plan.mesh.stages() == 1 || step + 1 == plan.steps() {
        return;
    }
    let peer = plan.mesh.rank(Coordinates { stage: 0, ..at });
    ops.extend(sample(plan, at, step + 1, patch).map(|message| Op::Send { peer, message }));
}

fn activation(plan: &Plan, at: Coordinates, step: usize, patch: Patch) -> Option<Message> {
    let tokens = plan.rows(at.sp, patch).len() * plan.grid.tokens_per_row();
    let shape = vec![plan.batch(), tokens, plan.model.hidden()];
    let message = Message::of_patch(MessageKind::Activation, step, patch.strip(), shape);
    // Nobody holds rows of an earlier step in the first one, so it cannot travel as a change.
    let whole = step > 0 && step == plan.first_step();
    (tokens > 0).then(|| if whole { message } else { message.on_wire(&plan.run.wire) })
}

fn sample(plan: &Plan, at: Coordinates, step: usize, patch: Patch) -> Option<Message> {
    let rows = plan.rows(at.sp, patch).len();
    let shape = plan.latent_shape(plan.images(), rows);
    let message = Message::of_patch(MessageKind::Sample, step, patch.strip(), shape);
    (rows > 0).then_some(message)
}

//! CFG parallelism: the two guidance branches on two copies of the rest of the mesh.
//!
//! After each step (each patch under PipeFusion) the last stages of the pair swap the predicted
//! noise, and both apply guidance and the same scheduler step, so that both hold the same latent
//! and nothing else has to cross.

use crate::plan::Plan;
use crate::plan::mesh::Coordinates;
use crate::plan::message::{Message, MessageKind};
use crate::plan::program::{Op, Patch};

/// The swap of predicted noise, when the branches run apart.
pub(crate) fn exchange(plan: &Plan, at: Coordinates, step: usize, patch: Patch, ops: &mut Vec<Op>) {
    if plan.mesh.branches() < 2 {
        return;
    }
    let peer = plan.mesh.rank(Coordinates { cfg: 1 - at.cfg, ..at });
    let shape = plan.latent_shape(plan.images(), plan.rows(at.sp, patch).len());
    let message = Message::of_patch(MessageKind::Prediction, step, patch.strip(), shape);
    let message = message.on_wire(&plan.run.wire);
    ops.push(Op::Exchange { peer, message });
}

//! The step cache over a mesh: who measures, who decides, who is told.
//!
//! The first block of the first stage always runs. Its ranks (both guidance branches, all sequence
//! ranks) send the sums of their residual's change to one rank, rank 0 of the replica; that rank
//! decides for the rows of the pass and tells every other rank in the metadata of a frame without
//! payload. So the decision depends on the whole residual, not on how the mesh cuts it, and all
//! ranks of a pass do the same. On reuse every frame of the blocks that are not run is sent all
//! the same, without payload: which frames there are never depends on data.
//!
//! Decided once per step and patch: a patch of an asynchronous step is compared with itself, as the
//! others of the step do not exist yet. Where a run has patches its synchronous steps are never
//! reused (they are there to renew keys and values), without patches every step but the first may
//! be; a run that goes on from a checkpoint computes its first step. Keys and values of blocks that
//! are not run stay as they are in the patch KV cache.

use crate::plan::mesh::Coordinates;
use crate::plan::message::{Message, MessageKind};
use crate::plan::program::{Op, Patch};
use crate::plan::resolve::PlanError;
use crate::plan::{Plan, sync};
use crate::protocol::RunSpec;
use crate::request::StepCache;

/// Most decisions of one run; each is an entry of the report.
pub const STEP_DECISIONS_MAX: usize = 16_384;

/// Whether a pass over patch `patch` of `step` is reused, given the relative change of the first
/// block's residual and how many passes over these rows were reused since one was computed.
pub fn reuses(cache: &StepCache, step: usize, patch: usize, change: f64, in_a_row: u32) -> bool {
    let named = |list: &[crate::request::StepDecision]| {
        let (step, patch) = (step as u32, patch as u32);
        list.iter().any(|d| d.step == step && d.patch == patch && d.reuse)
    };
    match &cache.replay {
        Some(decisions) => named(decisions),
        None => in_a_row < cache.reuses_max && change < f64::from(cache.threshold),
    }
}

/// Whether passes of `step` are decided on; the others are computed.
pub(crate) fn decides(plan: &Plan, step: usize) -> bool {
    let first = plan.run.first_step as usize;
    let may_reuse = step > first && (plan.strips.len() == 1 || plan.is_async(step));
    plan.run.step_cache.is_some() && may_reuse
}

/// The forward passes of a rank over `patch`, with what is measured and told around them.
pub(crate) fn forward(plan: &Plan, at: Coordinates, step: usize, patch: Patch, ops: &mut Vec<Op>) {
    let blocks = plan.blocks(at.stage);
    if plan.run.step_cache.is_none() {
        return ops.push(Op::Forward { step, patch, blocks });
    }
    let told = Op::Recv { peer: decider(plan, at), message: decision(step, patch) };
    if at.stage > 0 {
        ops.extend(decides(plan, step).then_some(told));
        return ops.push(Op::Forward { step, patch, blocks });
    }
    let first = blocks.start..blocks.start + 1;
    ops.push(Op::Forward { step, patch, blocks: first.clone() });
    if decides(plan, step) {
        if plan.mesh.rank(at) == decider(plan, at) {
            decide(plan, at, step, patch, ops);
        } else {
            ops.push(Op::Send { peer: decider(plan, at), message: change(step, patch) });
            ops.push(told);
        }
    }
    ops.push(Op::Forward { step, patch, blocks: first.end..blocks.end });
}

/// The deciding rank's part.
fn decide(plan: &Plan, at: Coordinates, step: usize, patch: Patch, ops: &mut Vec<Op>) {
    let own = plan.mesh.rank(at);
    let replica = 0..plan.mesh.world_size();
    let others: Vec<(usize, Coordinates)> = replica
        .map(|rank| (rank, plan.mesh.coordinates(rank)))
        .filter(|(rank, other)| *rank != own && other.data == at.data)
        .collect();
    let measuring = others.iter().filter(|(_, other)| other.stage == 0);
    let measured = measuring.map(|&(peer, _)| Op::Recv { peer, message: change(step, patch) });
    ops.extend(measured);
    ops.push(Op::Decide { step, patch });
    ops.extend(others.iter().map(|&(peer, _)| Op::Send { peer, message: decision(step, patch) }));
}

/// The rank that decides for the replica of the rank at `at`.
fn decider(plan: &Plan, at: Coordinates) -> usize {
    plan.mesh.rank(Coordinates { data: at.data, cfg: 0, stage: 0, sp: 0 })
}

/// Sums of the change of a rank's part of the residual: difference and reference.
fn change(step: usize, patch: Patch) -> Message {
    Message::of_patch(MessageKind::ResidualChange, step, patch.strip(), vec![2])
}

/// A decision: no payload, the metadata says it.
fn decision(step: usize, patch: Patch) -> Message {
    Message::of_patch(MessageKind::Decision, step, patch.strip(), vec![0])
}

/// Checks a run's step cache against a model of `blocks` blocks and a picture in `patches` strips.
///
/// # Errors
/// [`PlanError::Value`].
pub(crate) fn check(run: &RunSpec, blocks: usize, patches: usize) -> Result<(), PlanError> {
    let Some(cache) = &run.step_cache else { return Ok(()) };
    let refuse = |why: String| Err(PlanError::Value(why));
    if !cache.threshold.is_finite() || cache.threshold <= 0.0 {
        return refuse(format!(
            "step_cache threshold {} reuses nothing; give a relative change above 0, or no step cache",
            cache.threshold
        ));
    }
    if blocks < 2 {
        return refuse(format!(
            "a step cache with a model of {blocks} block: nothing follows the first one"
        ));
    }
    let decisions = run.num_inference_steps as usize * patches;
    if decisions > STEP_DECISIONS_MAX {
        return refuse(format!(
            "a step cache decides for every patch of every step, at most {STEP_DECISIONS_MAX} times; \
             {} steps of {patches} patches are {decisions}",
            run.num_inference_steps
        ));
    }
    let decided = |step: usize| step > 0 && (patches == 1 || !sync::is_sync_by_rule(run, step));
    for replayed in cache.replay.iter().flatten().filter(|decision| decision.reuse) {
        let (step, patch) = (replayed.step as usize, replayed.patch as usize);
        if step >= run.num_inference_steps as usize || patch >= patches || !decided(step) {
            return refuse(format!(
                "step_cache replays a reuse of patch {patch} in step {step}, which this run of {} \
                 steps and {patches} patches computes",
                run.num_inference_steps
            ));
        }
    }
    Ok(())
}

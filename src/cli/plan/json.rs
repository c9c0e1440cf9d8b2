//! A plan for programs.

use serde_json::{Value, json};

use super::Planned;

/// The plan as JSON with a final newline.
pub(super) fn of(planned: &Planned) -> String {
    let best = planned.best();
    let ranks: Vec<Value> = planned
        .memory
        .iter()
        .enumerate()
        .map(|(rank, memory)| {
            let at = planned.plan.mesh.coordinates(rank);
            let blocks = planned.plan.blocks(at.stage);
            let device = planned.cluster.devices.get(rank);
            let times = best.and_then(|best| best.ranks.get(rank)).copied().unwrap_or_default();
            json!({
                "rank": rank,
                "device": device.map(|device| &device.name),
                "flops_per_s": device.and_then(|device| device.flops_per_s(planned.wish.dtype)),
                "cfg": at.cfg, "stage": at.stage, "sp": at.sp,
                "blocks": [blocks.start, blocks.end],
                "bytes": memory, "total_bytes": memory.total(),
                "busy_s": times.busy, "send_s": times.send, "wait_s": times.wait,
            })
        })
        .collect();
    let links: Vec<Value> = best
        .into_iter()
        .flat_map(|best| &best.step_bytes)
        .map(|((from, to), bytes)| json!({"from": from, "to": to, "bytes_per_step": bytes}))
        .collect();
    let trials: Vec<Value> = planned
        .decision
        .trials
        .iter()
        .map(|trial| {
            json!({
                "mesh": trial.candidate, "seconds": trial.seconds, "bound_s": trial.bound,
                "step_s": trial.step_seconds, "bytes_per_step": trial.bytes_per_step(),
                "crossing_bytes_per_step": trial.crossing_step_bytes,
                "why": best.map(|best| trial.why_it_lost(best)),
            })
        })
        .collect();
    let rejected: Vec<Value> = planned
        .decision
        .rejected
        .iter()
        .map(|rejected| json!({"mesh": rejected.candidate, "why": rejected.why}))
        .collect();
    let text = json!({
        "model": planned.model.name,
        "runs": planned.model.runs,
        "height": planned.wish.height,
        "width": planned.wish.width,
        "steps": planned.wish.num_inference_steps,
        "mesh": best.map(|best| best.candidate),
        "seconds": best.map(|best| best.seconds),
        "step_s": best.map(|best| best.step_seconds),
        "simulated_s": best.map(|best| best.simulated_seconds),
        "ranks": ranks,
        "links": links,
        "meshes": trials.get(1..).unwrap_or_default(),
        "rejected": rejected,
        "considered": planned.decision.considered,
        "unsimulated": planned.decision.unsimulated,
        "devices_measured": planned.cluster.unmeasured() == 0,
        "wire": planned.wish.wire,
        "carriers": {"same_host": planned.carriers[0], "other_host": planned.carriers[1]},
        "links_known": planned.cluster.links_known,
    });
    format!("{text:#}\n")
}

//! A plan for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use ditmesh_actors::planner::Trial;

use super::Planned;
use crate::cli::mesh_text::{speed, table};

/// Rows of the table of ranks, of links and of meshes that lost, at most.
const ROWS_MAX: usize = 32;

/// The whole text; `explain` adds the meshes that lost and what the prediction rests on.
pub(super) fn of(planned: &Planned, explain: bool) -> String {
    let Some(best) = planned.best() else { return String::new() };
    let mut text = headline(planned, best);
    text.push_str(&ranks(planned, best));
    text.push_str(&links(planned, best));
    if explain {
        text.push_str(&others(planned, best));
        text.push_str(&foundations(planned));
    }
    text
}

fn headline(planned: &Planned, best: &Trial) -> String {
    let Planned { model, cluster, wish, decision, .. } = planned;
    let (used, there) = (best.candidate.degrees.world_size(), cluster.devices.len());
    let mut text = format!(
        "{}: {} x {} pixels, {} steps, {}, weights in {:?}, sent in {}\n\
         fastest of {} meshes: {}\n\
         predicted: {:.3} s in all, {:.4} s a step in the steady state\n",
        model.name,
        wish.height,
        wish.width,
        wish.num_inference_steps,
        if wish.guided { "guided" } else { "one branch" },
        wish.dtype,
        wish.wire,
        decision.considered,
        best.candidate,
        best.seconds,
        best.step_seconds,
    );
    // Writing to a string does not fail.
    if used < there {
        let replicas = there / used;
        let _ = writeln!(
            text,
            "uses {used} of {there} devices; the others would not make one picture faster{}",
            if replicas > 1 {
                format!(", but could serve {} more replicas", replicas - 1)
            } else {
                String::new()
            }
        );
    }
    if !model.runs {
        let _ = writeln!(text, "this build plans {} and does not run it", model.name);
    }
    text
}

fn ranks(planned: &Planned, best: &Trial) -> String {
    let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
    let head = [
        "rank",
        "device",
        "speed",
        "branch",
        "stage",
        "sp",
        "blocks",
        "weights MB",
        "text+vae MB",
        "kept MB",
        "activations MB",
        "busy %",
        "wait %",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mesh = planned.plan.mesh;
    for (rank, memory) in planned.memory.iter().enumerate().take(ROWS_MAX) {
        let at = mesh.coordinates(rank);
        let blocks = planned.plan.blocks(at.stage);
        let device = planned.cluster.devices.get(rank);
        let measured = device.and_then(|device| device.flops_per_s(planned.wish.dtype));
        let device = device.map_or("", |device| &device.name);
        let times = best.ranks.get(rank).copied().unwrap_or_default();
        let share = |seconds: f64| format!("{:.0}", 100.0 * seconds / best.simulated_seconds);
        rows.push(vec![
            rank.to_string(),
            device.to_owned(),
            speed(measured),
            at.cfg.to_string(),
            at.stage.to_string(),
            at.sp.to_string(),
            format!("{}..{}", blocks.start, blocks.end),
            megabytes(memory.weights),
            megabytes(memory.text_encoder + memory.vae),
            megabytes(memory.kv_cache + memory.text_kv + memory.kept),
            megabytes(memory.activations),
            share(times.busy),
            share(times.wait),
        ]);
    }
    format!("\n{}{}", table(&rows), more(planned.memory.len(), "ranks"))
}

/// Bytes of a step from node to node and, within nodes, from rank to rank.
fn links(planned: &Planned, best: &Trial) -> String {
    let node = |rank: usize| planned.cluster.devices.get(rank).map_or(0, |device| device.node);
    let mut between: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    let mut rows = vec![["link", "MB a step"].map(str::to_owned).to_vec()];
    for (&(from, to), &bytes) in &best.step_bytes {
        if node(from) != node(to) {
            *between.entry((node(from), node(to))).or_default() += bytes;
        }
    }
    let name = |node: usize| planned.cluster.nodes.get(node).map_or("", String::as_str);
    for ((from, to), bytes) in &between {
        let link = format!("node {} -> {}", name(*from), name(*to));
        rows.push(vec![link, format!("{:.3}", *bytes as f64 / 1e6)]);
    }
    for ((from, to), bytes) in best.step_bytes.iter().take(ROWS_MAX) {
        let link = format!("rank {from} -> {to}");
        rows.push(vec![link, format!("{:.3}", *bytes as f64 / 1e6)]);
    }
    if best.step_bytes.is_empty() {
        return "\nnothing is sent between ranks\n".to_owned();
    }
    let [inside, across] = &planned.carriers;
    let carried = format!("carried within a host by {inside}\nbetween hosts by {across}\n");
    format!("\n{}{}{carried}", table(&rows), more(best.step_bytes.len(), "links"))
}

fn others(planned: &Planned, best: &Trial) -> String {
    let decision = &planned.decision;
    let mut text = String::from("\nwhy the others lost:\n");
    for trial in decision.trials.iter().skip(1).take(ROWS_MAX) {
        let slower = trial.seconds / best.seconds;
        let why = trial.why_it_lost(best);
        let _ =
            writeln!(text, "  {:.3} s, x{slower:.2}  {}: {why}", trial.seconds, trial.candidate);
    }
    for rejected in decision.rejected.iter().take(ROWS_MAX) {
        let _ = writeln!(text, "  does not fit  {}: {}", rejected.candidate, rejected.why);
    }
    if decision.unsimulated > 0 {
        let why = if decision.pruned_by_bound {
            "even without any waiting they would not be faster"
        } else {
            "simulating stopped at its limit; those left have higher lower bounds than the ones tried"
        };
        let _ = writeln!(text, "  {} meshes were not simulated: {why}", decision.unsimulated);
    }
    if planned.wish.exact {
        text.push_str("  only exact methods were looked at\n");
    } else if best.candidate.num_pipeline_patch > 1 {
        text.push_str(
            "  PipeFusion computes with keys and values of the step before, which changes the \
             picture; --exact leaves it out\n",
        );
    }
    text
}

fn foundations(planned: &Planned) -> String {
    let cluster = &planned.cluster;
    let mut text = String::from("\nwhat this rests on:\n");
    let guessed = cluster.unmeasured();
    if guessed > 0 {
        let _ = writeln!(
            text,
            "  {guessed} of {} devices were not measured: taken for the slowest of their kind that was, \
             else by low guesses; `ditmesh up` measures them, or `ditmesh bench device`",
            cluster.devices.len()
        );
    }
    if cluster.links_known {
        text.push_str("  links as measured, or as the manifest says\n");
    } else {
        text.push_str(
            "  links were not measured: guesses (loopback within a node, gigabit Ethernet between \
             nodes); [[link]] in the manifest sets them\n",
        );
    }
    let mut seen = Vec::new();
    for device in &cluster.devices {
        let name = device.profile_name.as_deref().unwrap_or("not measured");
        let (profile, dtype) = (&device.profile, planned.wish.dtype);
        if seen.contains(&(name, profile)) || seen.len() == ROWS_MAX {
            continue;
        }
        seen.push((name, profile));
        let _ = writeln!(
            text,
            "  {name}: {:.1} GFLOP/s in linear layers, {:.1} in attention, {:.1} GB/s of memory",
            profile.gemm_flops_per_s.of(dtype) / 1e9,
            profile.attention_flops_per_s.of(dtype) / 1e9,
            profile.memory_bytes_per_s / 1e9
        );
    }
    text
}

fn more(count: usize, what: &str) -> String {
    match count.saturating_sub(ROWS_MAX) {
        0 => String::new(),
        left => format!("... and {left} more {what}\n"),
    }
}

//! Two runs on one mesh: their merged programs cannot deadlock and take less than one after the
//! other; each gives to the bit what it gives alone, also when the other is stopped.

use std::collections::HashMap;

use ditmesh_actors::engine::Engine;
use ditmesh_actors::plan::check::check_order;
use ditmesh_actors::plan::interleave::{Entry, interleave};
use ditmesh_actors::plan::program::Op;
use ditmesh_actors::plan::{Plan, resolve};
use ditmesh_actors::request::{Degrees, Event, GenerateRequest, Generation, Wire, WireDtype};
use ditmesh_model::spec::ModelSpec;
use proptest::prelude::*;

use crate::engine::{draw, latents, manifest, request};
use crate::harness::degrees;
use crate::plans::model;

fn plan(model: &ModelSpec, degrees: Degrees, request: &GenerateRequest) -> Plan {
    let run = resolve::resolve(request, model, degrees).unwrap();
    Plan::new(degrees, model, &run).unwrap()
}

fn steps(steps: u32, patches: u32, sync_steps: u32) -> GenerateRequest {
    GenerateRequest {
        num_inference_steps: steps,
        num_pipeline_patch: Some(patches),
        sync_steps,
        ..GenerateRequest::default()
    }
}

/// The second plan comes in after `after` units of the first.
fn order(first: &Plan, second: &Plan, after: usize) -> Vec<Entry> {
    let entries = first.entries(0);
    let (done, rest) = entries.split_at(after.min(entries.len()));
    [done, &interleave(rest, &second.entries(1))].concat()
}

/// Seconds until the last rank is done, when a unit costs each stage its share and frames nothing.
fn makespan(plans: &[&Plan], order: &[Entry]) -> u64 {
    let ranks = plans[0].mesh.world_size();
    let stages = plans[0].mesh.stages() as u64;
    let programs: Vec<Vec<_>> =
        plans.iter().map(|plan| (0..ranks).map(|rank| plan.program(rank)).collect()).collect();
    let (mut clocks, mut arrivals) = (vec![0; ranks], HashMap::new());
    // A unit receives only what was sent in it or before it: with one unit after another, and the
    // ranks in the order of their stages, everything is there when it is asked for.
    for entry in order {
        for (rank, clock) in clocks.iter_mut().enumerate() {
            for op in programs[entry.run as usize][rank].unit(entry.unit) {
                match op {
                    Op::Recv { peer, message } if *peer < ranks => {
                        let key = (entry.run, *peer, rank, message.tag().0);
                        *clock = arrivals.remove(&key).max(Some(*clock)).unwrap();
                    }
                    Op::Send { peer, message } if *peer < ranks => {
                        arrivals.insert((entry.run, rank, *peer, message.tag().0), *clock);
                    }
                    Op::Forward { .. } => *clock += entry.cost / stages,
                    _ => {}
                }
            }
        }
    }
    clocks.into_iter().max().unwrap()
}

#[test]
fn two_runs_in_one_pipeline_take_less_than_one_after_the_other() {
    let model = model(8, 8);
    for (stages, patches, sync_steps) in [(2, 4, 1), (4, 4, 1), (4, 8, 2), (2, 1, 1)] {
        let plan = plan(&model, degrees(1, stages, 1), &steps(6, patches, sync_steps));
        let alone = makespan(&[&plan], &plan.entries(0));
        let together = makespan(&[&plan, &plan], &order(&plan, &plan, 0));
        let busy = 2 * plan.entries(0).iter().map(|entry| entry.cost).sum::<u64>() / stages as u64;
        println!(
            "{stages} stages, {patches} patches, {sync_steps} sync steps: {together} of {}, busy {busy}",
            2 * alone
        );
        assert!(together < 2 * alone, "{stages} x {patches}: {together} of {}", 2 * alone);
        // What was idle alone is mostly filled.
        assert!(2 * (together - busy) <= 2 * alone - busy, "{together}, {alone}, {busy}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn merged_programs_never_wait_for_ever(
        mesh in (1..3u32, 1..5u32, 1..4u32),
        one in (1..6u32, 1..6u32, 1..3u32, 0..3u32),
        two in (1..6u32, 1..6u32, 1..3u32, 0..3u32),
        rows in (4..9u32, 4..9u32),
        after in 0..40usize,
    ) {
        let model = model(8, 6);
        let degrees = degrees(mesh.0, mesh.1, mesh.2);
        let of = |(count, patches, sync_steps, sync_every), rows| GenerateRequest {
            height: Some(rows * 16),
            sync_every,
            ..steps(count, patches, sync_steps)
        };
        let first = plan(&model, degrees, &of(one, rows.0));
        let second = plan(&model, degrees, &of(two, rows.1));
        for plan in [&first, &second] {
            for rank in 0..plan.mesh.world_size() {
                let program = plan.program(rank);
                prop_assert_eq!(program.unit_ends.len(), plan.units().len());
                prop_assert_eq!(program.unit_ends.last(), Some(&program.ops.len()));
            }
        }
        let order = order(&first, &second, after);
        let order: Vec<_> = order.iter().map(|entry| (entry.run as usize, entry.unit)).collect();
        let checked = check_order(&[&first, &second], &order);
        prop_assert!(checked.is_ok(), "{:?}", checked);
    }
}

/// A run of two stages and four patches, long enough that another can come in.
fn piped(prompt: &str, seed: u64) -> GenerateRequest {
    GenerateRequest {
        seed,
        num_inference_steps: 150,
        num_pipeline_patch: Some(4),
        degrees: Some(degrees(1, 2, 1)),
        ..request(prompt)
    }
}

/// Its hidden states travel as changes, refreshed every eight steps.
fn as_changes(request: GenerateRequest) -> GenerateRequest {
    let wire = Wire { pipefusion: WireDtype::Int8, residual: true, ..Wire::default() };
    GenerateRequest { wire: Some(wire), ..request }
}

fn shared(generation: &Generation) -> bool {
    generation.report.ranks.iter().all(|rank| rank.foreign_units > 0)
}

#[test]
fn two_requests_share_a_pipeline_and_each_is_as_alone() {
    each_is_as_alone([piped("a red apple", 1), piped("a green frog", 2)]);
}

/// Each run has its own of what both ends of an edge hold.
#[test]
fn runs_whose_hidden_states_travel_as_changes_share_a_pipeline() {
    each_is_as_alone([piped("a red apple", 1), piped("a green frog", 2)].map(as_changes));
    each_is_as_alone([piped("a red apple", 1), as_changes(piped("a red apple", 1))]);
}

fn each_is_as_alone(requests: [GenerateRequest; 2]) {
    let engine = Engine::start(manifest(2)).unwrap();
    let alone = requests.clone().map(|request| draw(&engine, request));
    assert!(alone.iter().all(|generation| !shared(generation)));
    let handles = requests.map(|request| engine.generate(request));
    let together = handles.map(|handle| handle.blocking_finish().unwrap());
    assert!(together.iter().all(shared), "both ran at once");
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(latents(alone), latents(together));
    }
}

#[test]
fn a_run_that_is_stopped_leaves_the_other_as_it_is() {
    stopped_beside(piped);
}

/// And where both ends of an edge hold what travelled, those of the next run begin anew.
#[test]
fn a_stopped_run_leaves_nothing_that_changes_could_start_from() {
    stopped_beside(|prompt, seed| as_changes(piped(prompt, seed)));
}

fn stopped_beside(piped: fn(&str, u64) -> GenerateRequest) {
    let engine = Engine::start(manifest(2)).unwrap();
    let alone = draw(&engine, piped("a green frog", 2));
    for stopped in [0, 1] {
        let long = |seed| GenerateRequest { num_inference_steps: 1000, ..piped("x", seed) };
        let requests = match stopped {
            0 => [long(1), piped("a green frog", 2)],
            _ => [piped("a green frog", 2), long(1)],
        };
        let mut handles = requests.map(|request| engine.generate(request));
        // By the third step of the later one the two have alternated on every rank.
        for handle in &mut handles {
            while !matches!(handle.blocking_next_event(), Some(Event::Step { step: 3, .. })) {}
        }
        let [first, second] = handles;
        let (stopped, kept) = if stopped == 0 { (first, second) } else { (second, first) };
        drop(stopped);
        let kept = kept.blocking_finish().unwrap();
        assert_eq!(latents(&kept), latents(&alone));
        assert!(shared(&kept));
        let after = draw(&engine, piped("a green frog", 2));
        assert_eq!(latents(&after), latents(&alone));
    }
    assert_eq!(engine.blocking_status().unwrap().running, 0);
}

/// More requests than a mesh has places: all come to their end, in order, two at a time.
#[test]
fn many_requests_take_turns() {
    let engine = Engine::start(manifest(4)).unwrap();
    let of = |seed| GenerateRequest { num_inference_steps: 6, ..piped("a red apple", seed) };
    let handles: Vec<_> = (0..8).map(|seed| engine.generate(of(seed))).collect();
    for (seed, handle) in handles.into_iter().enumerate() {
        let together = handle.blocking_finish().unwrap();
        if seed % 4 == 1 {
            assert_eq!(latents(&together), latents(&draw(&engine, of(seed as u64))));
        }
    }
}

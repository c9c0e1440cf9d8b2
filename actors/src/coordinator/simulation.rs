//! The whole cluster as one discrete-event loop in virtual time: no tokio, no ractor, no network.
//!
//! What decides is the product's own: the coordinator's desk (membership, formation, dispatcher,
//! requests and runs, copies, the journal's sum), the order in which its engines hear of each other
//! (`coordinator/advance`), the conduct of each mesh, each worker's agenda, and the programs of real
//! plans, which ranks walk through with invented durations. What carries that out is modelled here:
//! processes, sessions, links, disks and clients. Faults come first, then all are removed (some cuts
//! apart that only two nodes see), and the cluster must heal and finish every request.
//!
//! A seed is a run: the same seed gives the same log, line by line. `DITMESH_SIMULATION_SEED=n`
//! runs one seed and prints its log. Every invariant is a file in [`invariants`], and for each
//! there is a [`Sabotage`] that removes its guard and must be caught.

#![allow(clippy::print_stdout, reason = "a seed that fails is read from its log")]

mod clients;
mod controller;
mod coordinator;
mod copies;
mod faults;
mod frames;
mod hands;
mod invariants;
mod meshes;
mod processes;
mod runs;
mod seat;
mod walker;
mod world;

use std::time::Duration;

use world::{Ending, World};

/// Seeds of a run of the tests, in which every sabotage must be caught; [`SEEDS_FULL`] at full
/// scale.
const SEEDS: u64 = 300;
const SEEDS_FULL: u64 = 5_000;

/// A guard that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// Nobody remembers which epochs were used.
    ForgetEpochs,
    /// Ranks take frames of any epoch and any life.
    TakeStaleFrames,
    /// A run that was moved still delivers.
    DeliverMoved,
    /// Each rank takes a proposed run in where it can itself.
    EnterApart,
    /// Requests of a lost mesh do not go on.
    DropInterrupted,
    /// Nobody looks whether runs go on.
    IgnoreStalls,
    /// Copies that do not come back are waited for.
    AwaitCopies,
    /// Ranks whose run has failed elsewhere are not told to stop.
    LeaveWaiting,
    /// Nobody hears that a link between two workers is gone.
    IgnoreCuts,
    /// Nobody looks whether requests have waited beyond their deadlines.
    KeepExpired,
    /// What has a result is not struck from the journal.
    ForgetEnds,
    /// A rank goes on when what it has just sent is taken, and not before.
    SendsWait,
    /// Requests that go on begin with their first step.
    BeginAnew,
}

fn simulate(seed: u64, sabotage: Option<Sabotage>) -> Ending {
    World::new(seed, sabotage).run()
}

fn seeds() -> u64 {
    match std::env::var("DITMESH_TEST_SCALE").is_ok_and(|scale| scale == "full") {
        true => SEEDS_FULL,
        false => SEEDS,
    }
}

#[test]
fn a_cluster_heals_and_finishes_every_request() {
    if let Some(seed) = std::env::var("DITMESH_SIMULATION_SEED").ok().and_then(|s| s.parse().ok()) {
        let ending = simulate(seed, None);
        ending.log.iter().for_each(|line| println!("{line}"));
        assert!(ending.violations.is_empty(), "seed {seed}: {:?}", ending.violations);
        return;
    }
    let (mut faults, mut requests, mut resumed) = (0, 0, 0);
    let (mut restarts, mut recalls, mut stalls, mut expired, mut lost) = (0, 0, 0, 0, 0);
    for seed in 0..seeds() {
        let ending = simulate(seed, None);
        assert!(
            ending.violations.is_empty(),
            "DITMESH_SIMULATION_SEED={seed} shows it: {:?}",
            ending.violations
        );
        faults += ending.faults;
        requests += ending.requests;
        resumed += ending.resumed;
        restarts += ending.restarts;
        recalls += ending.recalls;
        stalls += ending.stalls;
        expired += ending.expired;
        lost += ending.lost;
    }
    println!(
        "{} seeds: {faults} faults, {requests} requests, {resumed} runs went on from a checkpoint, \
         {restarts} coordinators restarted, {recalls} copies came back, {stalls} workers were ended by force, {expired} requests waited \
         beyond their deadlines, {lost} were lost too often",
        seeds()
    );
    // A simulation in which little happens proves little.
    assert!(faults > 8 * seeds() && resumed > seeds() / 2 && restarts > seeds() / 4);
    assert!(recalls > seeds() / 10 && stalls > seeds() / 20, "{recalls} copies, {stalls} ended");
    assert!(expired > seeds() / 10, "{expired} expired");
}

#[test]
fn a_seed_replays_to_the_same_log() {
    for seed in 0..8 {
        let (first, second) = (simulate(seed, None), simulate(seed, None));
        assert!(first.log.len() > 30, "seed {seed}: {} lines", first.log.len());
        assert_eq!(first.log, second.log, "seed {seed}");
    }
    assert_ne!(simulate(0, None).log, simulate(1, None).log);
}

/// Without its guard each invariant is seen broken.
#[test]
fn every_guard_is_needed() {
    for (sabotage, invariant) in [
        (Sabotage::ForgetEpochs, invariants::one_plan_per_epoch::NAME),
        (Sabotage::TakeStaleFrames, invariants::no_stale_frame::NAME),
        (Sabotage::DeliverMoved, invariants::ends_once::NAME),
        (Sabotage::EnterApart, invariants::one_order::NAME),
        (Sabotage::DropInterrupted, invariants::none_lost::NAME),
        (Sabotage::IgnoreStalls, invariants::waits_end::NAME),
        (Sabotage::AwaitCopies, invariants::none_lost::NAME),
        (Sabotage::LeaveWaiting, invariants::waits_end::NAME),
        (Sabotage::IgnoreCuts, invariants::none_lost::NAME),
        (Sabotage::KeepExpired, invariants::waits_end::NAME),
        (Sabotage::ForgetEnds, invariants::ends_once::NAME),
        (Sabotage::SendsWait, invariants::go_on::NAME),
        (Sabotage::BeginAnew, invariants::nothing_again::NAME),
    ] {
        let caught = (0..SEEDS).find(|&seed| {
            let violations = simulate(seed, Some(sabotage)).violations;
            violations.iter().any(|violation| violation.starts_with(invariant))
        });
        println!("{sabotage:?}: {invariant} is broken with seed {caught:?}");
        assert!(caught.is_some(), "{sabotage:?} breaks nothing in {SEEDS} seeds");
    }
}

/// Milliseconds.
const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

//! Processes that die or freeze in the middle of a run: the request goes on from its last
//! checkpoint on whoever is left, its caller hears of it once, and the picture is the one it would
//! have been.

use std::time::{Duration, Instant};

use ditmesh::{
    ClusterStatus, Degrees, Event, FloatTensor, GenerateError, GenerateRequest, Generation, Output,
    OutputKind,
};
use ditmesh_actors::launcher::record::RunFolder;
use ditmesh_actors::request::Resumption;

use crate::cluster_harness::{Cluster, Settings, is_alive, short_request, signal, wait_until};
use crate::held_thread::HeldThread;

/// Within which a loss is noticed, at the defaults of the manifest.
const STUCK_LIMIT: Duration = Duration::from_secs(2);

/// Within which it is noticed that a worker hangs which has a second for a step: that, two more to
/// stop, and what a busy machine adds.
const HUNG_LIMIT: Duration = Duration::from_secs(4);

/// Until a worker ends whose computing has not come back from a mesh that is gone: 10 s, and what it
/// takes to end and to start another one.
const LEFT_LIMIT: Duration = Duration::from_secs(12);

/// What a loss may cost after that on a busy machine, loading and the next mesh included.
const GOES_ON_LIMIT: Duration = Duration::from_secs(3);

/// How long a coordinator is stopped: longer than anybody waits for a sign of life of it.
const STOPPED: Duration = Duration::from_secs(5);

/// Long enough that every kind of loss comes before the end.
const STEPS: u32 = 400;

fn pipefusion() -> Cluster {
    Cluster::up(Settings { quick: true, ..Settings::default() })
}

fn exact() -> Cluster {
    Cluster::up(Settings { quick: true, ulysses: true, ..Settings::default() })
}

fn request() -> GenerateRequest {
    steps(STEPS)
}

/// Latents after so many steps.
pub(crate) fn steps(num_inference_steps: u32) -> GenerateRequest {
    let output = OutputKind::Latent;
    GenerateRequest { num_inference_steps, output, ..GenerateRequest::new("a red apple") }
}

fn latents(generation: &Generation) -> &FloatTensor {
    match &generation.output {
        Output::Latents(latents) => latents,
        Output::Image(_) => panic!("a picture where latents were asked for"),
    }
}

/// `||a-b||2 / ||b||2` of two latents.
pub(crate) fn relative(a: &Generation, b: &Generation) -> f64 {
    let (a, b) = (&latents(a).data, &latents(b).data);
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    (difference / b.iter().map(|&b| square(f64::from(b))).sum::<f64>()).sqrt()
}

/// Disturbs a cluster in the middle of a run, with another one behind it or beside it: what became
/// of the first, and what its caller heard of the loss. The second goes on too.
fn disturb(
    cluster: &Cluster,
    disturbance: impl FnOnce(&ClusterStatus),
) -> (Generation, Resumption) {
    disturb_within(STUCK_LIMIT, cluster, disturbance)
}

/// The same, noticed within `limit`.
fn disturb_within(
    limit: Duration,
    cluster: &Cluster,
    disturbance: impl FnOnce(&ClusterStatus),
) -> (Generation, Resumption) {
    let status = cluster.status();
    let client = cluster.client();
    let [mut run, second] = [(); 2].map(|()| client.generate(request()));
    while !matches!(run.blocking_next_event(), Some(Event::Step { step: 5.., .. })) {}
    let moment = Instant::now();
    disturbance(&status);
    let mut heard = Vec::new();
    while let Some(event) = run.blocking_next_event() {
        if let Event::Resumed(resumption) = event {
            eprintln!("after {:?}: {resumption} ({})", moment.elapsed(), resumption.cause);
            heard.push((resumption, moment.elapsed()));
        }
    }
    let generation = run.blocking_finish().unwrap();
    let told: Vec<_> = heard.iter().map(|(resumption, _)| resumption.clone()).collect();
    assert_eq!(generation.report.resumptions, told);
    assert!(told.iter().all(|resumption| resumption.steps_redone() <= 1), "{told:?}");
    // Who was replaced makes the better mesh possible again, and a run with long to go moves there.
    heard.retain(|(resumption, _)| !resumption.moved);
    let [(resumption, after)] = heard.as_slice() else { panic!("{heard:?}") };
    let noticed = after.saturating_sub(Duration::from_secs_f64(resumption.seconds));
    assert!(noticed < limit, "noticed after {noticed:?}");
    assert!(*after < limit + GOES_ON_LIMIT, "went on after {after:?}");
    assert!(resumption.resumed_at_step >= 4, "{resumption:?}");
    let second = second.blocking_finish().unwrap();
    assert!(relative(&second, &generation) < 0.2, "the same request");
    (generation, resumption.clone())
}

/// How often a run went on after a loss, not of the coordinator's own will.
fn losses(generation: &Generation) -> Vec<&Resumption> {
    generation.report.resumptions.iter().filter(|resumption| !resumption.moved).collect()
}

fn undisturbed(cluster: &Cluster) -> Generation {
    let generation = cluster.client().generate(request()).blocking_finish().unwrap();
    assert!(generation.report.resumptions.is_empty());
    generation
}

fn names(resumption: &Resumption, lost: &[&str], cause: &str) {
    assert!(lost.contains(&resumption.lost.as_str()), "{resumption:?}");
    assert!(resumption.cause.contains(cause), "{resumption:?}");
}

/// The cluster draws again, on a mesh formed after `before`.
fn draws_again(cluster: &Cluster, before: &ClusterStatus) {
    let epoch = before.mesh.as_ref().unwrap().epoch;
    cluster.wait_for_mesh(epoch);
    cluster.client().generate(short_request()).blocking_finish().unwrap();
}

#[test]
fn a_killed_worker_of_an_exact_mesh_changes_nothing_in_the_picture() {
    let cluster = exact();
    let expected = undisturbed(&cluster);
    let (generation, resumption) =
        disturb(&cluster, |status| signal(status.nodes[1].devices[0].process, "KILL"));
    names(&resumption, &["device b/0"], "SIGKILL");
    let error = relative(&generation, &expected);
    eprintln!("{error:.2e} of the undisturbed latents");
    assert!(error <= 1e-5, "{error:e}");
    assert_eq!(resumption.extra_sync_steps, 0);
}

/// The survivor alone, or both once the worker is back: whichever is there first goes on.
#[test]
fn a_killed_worker_of_a_pipeline_costs_a_synchronous_step() {
    let cluster = pipefusion();
    let before = cluster.status();
    let (_, resumption) =
        disturb(&cluster, |status| signal(status.nodes[1].devices[0].process, "KILL"));
    names(&resumption, &["device b/0"], "SIGKILL");
    // One device has no patches, and so no asynchronous step that a synchronous one replaces.
    assert_eq!(resumption.extra_sync_steps, u32::from(resumption.devices == 2));
    draws_again(&cluster, &before);
}

#[test]
fn a_killed_agent_takes_its_node_along() {
    let cluster = exact();
    let expected = undisturbed(&cluster);
    let before = cluster.status();
    let (generation, resumption) =
        disturb(&cluster, |status| signal(status.nodes[1].process, "KILL"));
    names(&resumption, &["node b", "device b/0"], "");
    assert!(relative(&generation, &expected) <= 1e-5);
    draws_again(&cluster, &before);
}

#[test]
fn a_frozen_agent_is_lost_with_its_node() {
    let cluster = exact();
    let before = cluster.status();
    let (_, resumption) = disturb(&cluster, |status| signal(status.nodes[1].process, "STOP"));
    names(&resumption, &["node b"], "silent");
    signal(before.nodes[1].process, "CONT");
    draws_again(&cluster, &before);
}

/// Its sockets live, it does not. Its agent ends it and starts another.
#[test]
fn a_frozen_worker_is_lost_and_replaced() {
    let cluster = exact();
    let before = cluster.status();
    let worker = before.nodes[1].devices[0].process;
    let (_, resumption) = disturb(&cluster, |_| signal(worker, "STOP"));
    names(&resumption, &["device b/0"], "silent");
    wait_until("it is ended by force", || !is_alive(worker));
    draws_again(&cluster, &before);
    wait_until("the next one is in the mesh", || {
        cluster.status().mesh.is_some_and(|mesh| mesh.ranks.len() == 2)
    });
    // The same device, another life of it: it draws.
    let after = cluster.status();
    assert_ne!(after.nodes[1].devices[0].process, worker);
    let generation = cluster.client().generate(short_request()).blocking_finish().unwrap();
    let ranks: Vec<_> = generation.report.ranks.iter().map(|rank| rank.device.as_str()).collect();
    assert_eq!(ranks, ["a/0", "b/0"]);
}

/// Its process is heard, and what it computes stands still: the run is stopped at the deadline of
/// its step, and the worker is ended by force when it does not stop.
#[test]
fn a_worker_whose_computing_hangs_is_found_by_its_deadline() {
    let step_deadline_ms = 1000;
    let cluster = Cluster::up(Settings {
        quick: true,
        ulysses: true,
        step_deadline_ms,
        ..Settings::default()
    });
    let expected = undisturbed(&cluster);
    let before = cluster.status();
    let worker = before.nodes[1].devices[0].process;
    let mut held = None;
    let (generation, resumption) = disturb_within(HUNG_LIMIT, &cluster, |_| {
        held = HeldThread::hold(worker, "compute-b/0");
        if held.is_none() {
            signal(worker, "KILL");
        }
    });
    let Some(held) = held else { return };
    names(&resumption, &["device b/0"], "did not stop");
    assert!(relative(&generation, &expected) <= 1e-5);
    held.ended();
    draws_again(&cluster, &before);
}

/// Its mesh is lost for another reason meanwhile, so that nobody waits for it to stop: the next
/// mesh cannot have it, and it ends by itself.
#[test]
fn a_worker_whose_computing_hangs_while_its_mesh_is_lost_ends_by_itself() {
    let cluster = exact();
    let expected = undisturbed(&cluster);
    let before = cluster.status();
    let [other, worker] = [0, 1].map(|node| before.nodes[node].devices[0].process);
    let mut held = None;
    let (generation, resumption) = disturb_within(LEFT_LIMIT, &cluster, |_| {
        held = HeldThread::hold(worker, "compute-b/0");
        signal(other, "KILL");
    });
    let Some(held) = held else { return };
    names(&resumption, &["device a/0"], "SIGKILL");
    assert!(relative(&generation, &expected) <= 1e-5);
    held.ended();
    draws_again(&cluster, &before);
}

/// Before the first step there is nothing to go on from; after the last one only decoding is left.
#[test]
fn a_worker_killed_while_text_is_encoded_or_the_picture_decoded() {
    let cluster = exact();
    let request = GenerateRequest {
        num_inference_steps: 4,
        height: Some(64),
        width: Some(64),
        ..GenerateRequest::new("a red apple")
    };
    let client = cluster.client();
    let expected = client.generate(request.clone()).blocking_finish().unwrap();
    let kill = |node: usize| signal(cluster.status().nodes[node].devices[0].process, "KILL");
    // Rank 0, on node a, encodes; another prompt, or it would be remembered.
    let epoch = cluster.status().mesh.unwrap().epoch;
    let other = GenerateRequest { prompt: "a blue bird".repeat(20), ..request.clone() };
    let run = client.generate(other);
    kill(0);
    let early = run.blocking_finish().unwrap();
    assert!(losses(&early).len() <= 1, "{:?}", early.report.resumptions);
    cluster.wait_for_mesh(epoch);
    let mut run = client.generate(request);
    while !matches!(run.blocking_next_event(), Some(Event::Step { step: 4, .. })) {}
    kill(1);
    let late = run.blocking_finish().unwrap();
    if let [resumption] = losses(&late).as_slice() {
        eprintln!("{resumption}");
        assert!(resumption.resumed_at_step >= 3, "{resumption:?}");
    }
    let (Output::Image(a), Output::Image(b)) = (&late.output, &expected.output) else {
        panic!("latents where pictures were asked for")
    };
    let far = a.data.iter().zip(&b.data).map(|(&a, &b)| a.abs_diff(b)).max();
    assert!(far <= Some(1), "{far:?} of 255 apart");
}

/// The coordinator dies with its agent and its device: it is started again, remembers two requests,
/// and the client finds it by itself.
#[test]
fn a_killed_coordinator_goes_on_with_what_it_had_begun() {
    let cluster = exact();
    let expected = undisturbed(&cluster);
    let before = cluster.status();
    let client = cluster.client();
    let [mut run, second] = [(); 2].map(|()| client.generate(request()));
    while !matches!(run.blocking_next_event(), Some(Event::Step { step: 20.., .. })) {}
    let moment = Instant::now();
    signal(before.nodes[0].process, "KILL");
    let mut heard = Vec::new();
    while let Some(event) = run.blocking_next_event() {
        if let Event::Resumed(resumption) = event {
            eprintln!("after {:?}: {resumption} ({})", moment.elapsed(), resumption.cause);
            heard.push(resumption);
        }
    }
    let generation = run.blocking_finish().unwrap();
    let [resumption] = heard.as_slice() else { panic!("{heard:?}") };
    names(resumption, &["the coordinator"], "journal");
    assert!(resumption.resumed_at_step >= 1, "{resumption:?}");
    let error = relative(&generation, &expected);
    assert!(error <= 1e-5, "{error:e}");
    assert!(generation.report.epoch > before.mesh.as_ref().unwrap().epoch);
    assert!(relative(&second.blocking_finish().unwrap(), &expected) <= 1e-5);
    assert_eq!(client.blocking_status().unwrap().running, 0);
    // The other node's processes have come back as they were, each by a new session of its own.
    let lives = |status: &ClusterStatus| {
        let node = &status.nodes[1];
        let device = &node.devices[0];
        [(node.process, node.incarnation), (device.process, device.incarnation)]
    };
    for (before, after) in lives(&before).into_iter().zip(lives(&cluster.status())) {
        assert_eq!(before.0, after.0, "another process");
        assert!(before.1 < after.1, "incarnation {} after {}", after.1, before.1);
    }
}

/// Its process is stopped, not dead, so nobody starts another one: by the time it goes on everybody
/// has given it up. It takes them all in again, and the runs go on from what it kept.
#[test]
fn a_stopped_coordinator_goes_on_with_what_it_had_begun() {
    let cluster = exact();
    let expected = undisturbed(&cluster);
    let before = cluster.status();
    let coordinator = before.nodes[0].process;
    let client = cluster.client();
    let [mut run, second] = [(); 2].map(|()| client.generate(request()));
    while !matches!(run.blocking_next_event(), Some(Event::Step { step: 20.., .. })) {}
    signal(coordinator, "STOP");
    let moment = Instant::now();
    wait_until("it is stopped", || moment.elapsed() >= STOPPED);
    signal(coordinator, "CONT");
    let mut heard = Vec::new();
    while let Some(event) = run.blocking_next_event() {
        if let Event::Resumed(resumption) = event {
            eprintln!("after {:?}: {resumption} ({})", moment.elapsed(), resumption.cause);
            heard.push(resumption);
        }
    }
    let generation = run.blocking_finish().unwrap();
    eprintln!("a picture after {:?}", moment.elapsed());
    assert!(relative(&generation, &expected) <= 1e-5);
    heard.retain(|resumption| !resumption.moved);
    let [resumption] = heard.as_slice() else { panic!("{heard:?}") };
    names(resumption, &["the coordinator"], "asked again");
    assert!(resumption.resumed_at_step >= 10, "{resumption:?}");
    // A mesh of the time before takes nothing any more: what runs now has an epoch of its own.
    let epoch = before.mesh.as_ref().unwrap().epoch;
    assert!(generation.report.epoch > epoch, "epoch {}", generation.report.epoch);
    assert!(relative(&second.blocking_finish().unwrap(), &expected) <= 1e-5);
    let after = cluster.wait_for_mesh(epoch);
    assert_eq!((after.queued, after.nodes[0].process), (0, coordinator), "{after:?}");
    draws_again(&cluster, &before);
}

/// A request for a mesh that there is not has waited since it was accepted, not since the restart.
#[test]
fn a_deadline_goes_on_over_a_restart_of_the_coordinator() {
    let cluster = exact();
    let [coordinator, agent] = [0, 1].map(|node| cluster.status().nodes[node].process);
    signal(agent, "STOP");
    wait_until("node b is lost", || cluster.status().nodes[1].state.starts_with("dead"));
    let client = cluster.client();
    let degrees = Degrees { ulysses_degree: 2, ..Degrees::default() };
    let asked = Instant::now();
    let waiting = client.generate(GenerateRequest {
        degrees: Some(degrees),
        deadline_s: Some(12),
        ..short_request()
    });
    let half = || asked.elapsed() > Duration::from_secs(6);
    wait_until("it waits", || half() && cluster.status().queued == 1);
    signal(coordinator, "KILL");
    let error = waiting.blocking_finish().map(drop).unwrap_err();
    let waited = asked.elapsed().as_secs_f64();
    signal(agent, "CONT");
    eprintln!("after {waited:.1} s: {error}");
    assert!(matches!(error, GenerateError::Expired(_)), "{error}");
    assert!((12.0..18.0).contains(&waited), "{waited} s");
}

/// Its disk is lost with it: the other node's agent holds a copy, and the next coordinator, which
/// has never heard of the request, goes on from there.
#[test]
fn a_coordinator_that_lost_its_disk_gets_the_checkpoint_back() {
    goes_on_without_the_disk(&exact(), &[], "node b held a copy");
}

/// Two nodes that did not produce it hold a copy each: with the coordinator's disk and one of them
/// gone, the other's is there.
#[test]
fn a_coordinator_that_lost_its_disk_and_a_holder_gets_the_other_copy() {
    let settings = Settings { quick: true, ulysses: true, nodes: 4, ..Settings::default() };
    goes_on_without_the_disk(&Cluster::up(settings), &["c"], "node d held a copy");
}

/// The coordinator dies with its disk, and with it the agents of some nodes: the run goes on from a
/// copy, for this reason.
fn goes_on_without_the_disk(cluster: &Cluster, lost: &[&str], cause: &str) {
    let expected = undisturbed(cluster);
    let before = cluster.status();
    let client = cluster.client();
    let mut run = client.generate(request());
    while !matches!(run.blocking_next_event(), Some(Event::Step { step: 20.., .. })) {}
    let dies = |at: usize, name: &str| at == 0 || lost.contains(&name);
    let nodes = before.nodes.iter().enumerate().filter(|(at, node)| dies(*at, &node.name));
    let agents: Vec<u32> = nodes.map(|(_, node)| node.process).collect();
    let launcher = cluster.launcher();
    // Or it would have started the next ones before the disk is gone.
    signal(launcher, "STOP");
    agents.iter().for_each(|agent| signal(*agent, "KILL"));
    wait_until("the agents have ended", || !agents.iter().any(|agent| is_alive(*agent)));
    let folder = RunFolder::of(&cluster.manifest);
    std::fs::remove_dir_all(folder.path().join("coordinator")).unwrap();
    signal(launcher, "CONT");
    let mut heard = Vec::new();
    while let Some(event) = run.blocking_next_event() {
        if let Event::Resumed(resumption) = event {
            eprintln!("{resumption} ({})", resumption.cause);
            heard.push(resumption);
        }
    }
    let generation = run.blocking_finish().unwrap();
    let [resumption] = heard.as_slice() else { panic!("{heard:?}") };
    names(resumption, &["the coordinator"], cause);
    assert!(resumption.resumed_at_step >= 10, "{resumption:?}");
    let error = relative(&generation, &expected);
    assert!(error <= 1e-5, "{error:e}");
}

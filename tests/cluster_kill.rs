//! Processes that die or freeze in the middle of a run: the request ends within two seconds with an
//! error that names who was lost, nothing hangs, and the mesh is rebuilt.

use std::time::{Duration, Instant};

use ditmesh::{ClusterStatus, Event, GenerateError};

use crate::cluster_harness::{Cluster, Settings, long_request, short_request, signal};

const LIMIT: Duration = Duration::from_secs(2);

fn quick() -> Settings {
    Settings { quick: true, ..Settings::default() }
}

/// Disturbs a cluster in the middle of two runs that share its mesh: how the first request ended and
/// after how long. The second ends as lost too.
fn disturb(
    cluster: &Cluster,
    disturbance: impl FnOnce(&ClusterStatus),
) -> (GenerateError, Duration) {
    let status = cluster.status();
    let client = cluster.client();
    let mut runs = [(); 2].map(|()| client.generate(long_request()));
    for run in &mut runs {
        while !matches!(run.blocking_next_event(), Some(Event::Step { .. })) {}
    }
    let [run, second] = runs;
    let moment = Instant::now();
    disturbance(&status);
    let error = run.blocking_finish().unwrap_err();
    let after = moment.elapsed();
    eprintln!("after {after:?}: {error}");
    let second = second.blocking_finish().unwrap_err();
    assert!(matches!(second, GenerateError::Lost(_)), "{second:?}");
    (error, after)
}

/// The cluster draws again, on a mesh formed after `before`.
fn draws_again(cluster: &Cluster, before: &ClusterStatus) {
    let epoch = before.mesh.as_ref().unwrap().epoch;
    cluster.wait_for_mesh(epoch);
    cluster.client().generate(short_request()).blocking_finish().unwrap();
}

fn lost(error: &GenerateError, names: &[&str]) {
    assert!(matches!(error, GenerateError::Lost(_)), "{error:?}");
    let text = error.to_string();
    assert!(names.iter().any(|name| text.contains(name)), "{text}");
}

#[test]
fn a_killed_worker() {
    let cluster = Cluster::up(quick());
    let before = cluster.status();
    let (error, after) =
        disturb(&cluster, |status| signal(status.nodes[1].devices[0].process, "KILL"));
    lost(&error, &["device b/0"]);
    assert!(error.to_string().contains("SIGKILL"), "{error}");
    assert!(after < LIMIT, "{after:?}");
    draws_again(&cluster, &before);
}

#[test]
fn a_killed_agent() {
    let cluster = Cluster::up(quick());
    let before = cluster.status();
    let (error, after) = disturb(&cluster, |status| signal(status.nodes[1].process, "KILL"));
    lost(&error, &["node b", "device b/0"]);
    assert!(after < LIMIT, "{after:?}");
    draws_again(&cluster, &before);
}

#[test]
fn a_frozen_agent() {
    let cluster = Cluster::up(quick());
    let before = cluster.status();
    let (error, after) = disturb(&cluster, |status| signal(status.nodes[1].process, "STOP"));
    lost(&error, &["node b was lost: silent for"]);
    assert!(after < LIMIT, "{after:?}");
    signal(before.nodes[1].process, "CONT");
    draws_again(&cluster, &before);
}

#[test]
fn a_frozen_worker() {
    let cluster = Cluster::up(quick());
    let before = cluster.status();
    let worker = before.nodes[1].devices[0].process;
    let (error, after) = disturb(&cluster, |_| signal(worker, "STOP"));
    lost(&error, &["device b/0"]);
    assert!(after < LIMIT, "{after:?}");
    signal(worker, "CONT");
    draws_again(&cluster, &before);
}

/// The coordinator dies with its agent: the client itself notices, and the cluster comes back.
#[test]
fn a_killed_coordinator() {
    let cluster = Cluster::up(quick());
    let before = cluster.status();
    let (error, after) = disturb(&cluster, |status| signal(status.nodes[0].process, "KILL"));
    lost(&error, &["coordinator"]);
    assert!(after < LIMIT, "{after:?}");
    draws_again(&cluster, &before);
}

//! Nodes in network namespaces of their own: a network that loses frames, is slow or far away, or
//! is cut, in one direction or both, between a node and everybody or between workers only, while a
//! picture is drawn; a node that dies with all its processes, the coordinator's too; and a peer
//! that dies while it gives weights away.

use std::time::{Duration, Instant};

use ditmesh::{ClusterStatus, Event, GenerateRequest, Generation};
use ditmesh_actors::request::Resumption;

use crate::cluster_harness::{full_scale, wait_until};
use crate::cluster_kill::{relative, steps};
use crate::network_lab::{DELAY, Lab, Network};

/// How long the cluster draws in a network that is bad but no more than that: twice as long as
/// silence may last.
const BAD_FOR: Duration = Duration::from_secs(3);

/// Within which a loss is noticed: `dead_ms`, the look after it, and what a busy machine adds.
const NOTICED_MAX: Duration = Duration::from_millis(2000);

/// How long a link counts as cut, and what a busy machine adds.
const CUT_FOR: Duration = Duration::from_secs(75);

const PATIENT: &str = "[health]\nsuspect_ms = 5000\ndead_ms = 10000\n";

/// Every process's life.
fn lives(status: &ClusterStatus) -> Vec<u64> {
    let devices = |node: &ditmesh_actors::status::NodeStatus| {
        node.devices.iter().map(|device| device.incarnation).collect::<Vec<_>>()
    };
    status.nodes.iter().flat_map(|node| [vec![node.incarnation], devices(node)].concat()).collect()
}

/// Devices of the mesh, by node.
fn seated(status: &ClusterStatus) -> Vec<String> {
    let ranks = status.mesh.iter().flat_map(|mesh| &mesh.ranks);
    ranks.map(|rank| rank.device.split('/').next().unwrap_or_default().to_owned()).collect()
}

/// Disturbs a run in its middle: what became of it, and what its caller heard, and when.
fn disturb(
    lab: &mut Lab,
    request: &GenerateRequest,
    disturbance: impl FnOnce(&mut Lab),
) -> (Generation, Vec<(Resumption, Duration)>) {
    let client = lab.client();
    let mut run = client.generate(request.clone());
    while !matches!(run.blocking_next_event(), Some(Event::Step { step: 5.., .. })) {}
    let moment = Instant::now();
    disturbance(lab);
    let mut heard = Vec::new();
    while let Some(event) = run.blocking_next_event() {
        if let Event::Resumed(resumption) = event {
            eprintln!("after {:?}: {resumption} ({})", moment.elapsed(), resumption.cause);
            heard.push((resumption, moment.elapsed()));
        }
    }
    (run.blocking_finish().unwrap(), heard)
}

/// The one loss that a caller heard of, noticed in time.
fn noticed(heard: &[(Resumption, Duration)]) -> &Resumption {
    let [(resumption, after)] = heard else { panic!("{heard:?}") };
    let noticed = after.saturating_sub(Duration::from_secs_f64(resumption.seconds));
    eprintln!("noticed after {noticed:?}");
    assert!(noticed < NOTICED_MAX, "noticed after {noticed:?}");
    resumption
}

#[test]
fn slow_and_lossy_is_alive_and_a_cut_is_a_loss_that_mends() {
    let Some(mut lab) = Lab::start(&["a", "b"], 1, "ulysses_degree = 2") else { return };
    let (short, long) = (steps(4), steps(150));
    let expected = lab.draw(&short);
    let before = lab.status();
    for network in [Network::Lossy, Network::Slow, Network::Far] {
        lab.network("b", network);
        let begun = Instant::now();
        while begun.elapsed() < BAD_FOR {
            let moment = Instant::now();
            let generation = lab.draw(&short);
            // Each step waits for the other's part in each of eight blocks.
            assert!(network != Network::Far || moment.elapsed() > 4 * 8 * DELAY, "it is near");
            assert!(generation.report.resumptions.is_empty(), "{network:?}: a false death");
            assert!(relative(&generation, &expected) <= 1e-5, "{network:?}");
        }
        assert_eq!(lives(&lab.status()), lives(&before), "{network:?}: a session was lost");
    }
    lab.network("b", Network::Well);
    let expected = lab.draw(&long);
    for network in [Network::Cut, Network::Mute, Network::Deaf] {
        let (generation, heard) = disturb(&mut lab, &long, |lab| lab.network("b", network));
        let resumption = noticed(&heard);
        assert!(resumption.lost.contains('b'), "{network:?}: {resumption:?}");
        assert!(relative(&generation, &expected) <= 1e-5, "{network:?}");
        lab.network("b", Network::Well);
        lab.whole(2);
    }
}

/// All processes of a node end at once, and nobody is there to say so; then those of the
/// coordinator's node, which its system starts again.
#[test]
fn a_node_that_is_killed_is_a_loss_be_it_the_coordinators() {
    let Some(mut lab) = Lab::start(&["a", "b"], 1, "ulysses_degree = 2") else { return };
    let long = steps(60);
    let expected = lab.draw(&long);
    let (generation, heard) = disturb(&mut lab, &long, |lab| lab.kill("b"));
    assert!(noticed(&heard).lost.contains('b'), "{heard:?}");
    assert!(relative(&generation, &expected) <= 1e-5);
    lab.agent("b", false);
    lab.whole(2);
    let before = lab.status();
    let (generation, heard) = disturb(&mut lab, &long, |lab| {
        lab.kill("a");
        lab.agent("a", false);
    });
    let [(resumption, _)] = heard.as_slice() else { panic!("{heard:?}") };
    assert_eq!(resumption.lost, "the coordinator");
    assert!(resumption.cause.contains("journal"), "{resumption:?}");
    assert!(resumption.resumed_at_step >= 1, "{resumption:?}");
    assert!(relative(&generation, &expected) <= 1e-5);
    assert!(generation.report.epoch > before.mesh.unwrap().epoch);
    lab.whole(2);
}

/// Two workers lose each other, and the coordinator reaches both: a mesh without their link goes
/// on, nobody is taken for dead, and the link is not tried again at once.
#[test]
fn a_cut_that_the_coordinator_cannot_see_is_planned_around() {
    planned_around(1, "ulysses_degree = 3", &steps(150));
}

/// The same where each node has two: what two of them report counts for all.
#[test]
fn a_cut_between_nodes_of_several_devices_is_planned_around() {
    planned_around(2, "ulysses_degree = 6", &steps(30));
}

/// Of three nodes with so many devices, two lose each other while this is drawn.
fn planned_around(devices: usize, degrees: &str, long: &GenerateRequest) {
    let Some(mut lab) = Lab::start(&["a", "b", "c"], devices, degrees) else { return };
    let expected = lab.draw(long);
    let before = lab.status();
    let cut = Instant::now();
    let (generation, heard) =
        disturb(&mut lab, long, |lab| lab.network("b", Network::CutFrom("c")));
    assert!(!heard.is_empty(), "the cut was not noticed");
    assert!(relative(&generation, &expected) <= 1e-5, "{heard:?}");
    lab.whole(2 * devices);
    let around = |status: &ClusterStatus| {
        let seated = seated(status);
        let both = ["b", "c"].iter().all(|node| seated.iter().any(|seat| seat == node));
        assert!(seated.len() == 2 * devices && !both, "{seated:?}");
        assert!(status.nodes.iter().all(|node| node.state == "alive"), "{status:?}");
        assert_eq!(lives(status), lives(&before), "somebody was evicted");
    };
    around(&lab.status());
    // Mended, it counts as cut for a while yet: no request pays for trying it.
    lab.network("b", Network::Well);
    let next = lab.draw(&steps(4));
    assert!(next.report.resumptions.is_empty(), "{:?}", next.report.resumptions);
    around(&lab.status());
    if full_scale() {
        let is_whole = || seated(&lab.status()).len() == 3 * devices;
        while !is_whole() {
            assert!(cut.elapsed() < CUT_FOR, "the link still counts as cut");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The peer that gives a node its weights is killed in the middle: the node goes on with what it
/// has from another one.
#[test]
fn a_donor_that_dies_in_the_middle_is_replaced_by_another() {
    let hosts = &["a", "b", "c"];
    let Some(mut lab) = Lab::new(hosts, 1, "pipefusion_degree = 3", PATIENT) else { return };
    for host in ["a", "c"] {
        lab.agent(host, false);
    }
    lab.slow_towards("b", "1mbit");
    lab.agent("b", true);
    let cache = lab.cache("b").join("ditmesh/tensors");
    let kept = || {
        let folder = std::fs::read_dir(&cache);
        let files = folder.into_iter().flatten().flatten();
        files.map(|file| file.metadata().map_or(0, |meta| meta.len())).sum::<u64>()
    };
    wait_until("the first weights come", || kept() > 0);
    let before = kept();
    lab.kill("c");
    lab.whole(2);
    assert_eq!(seated(&lab.status()), ["a", "b"]);
    let kept = kept();
    eprintln!("{before} bytes were there when the donor died, {kept} in the end");
    assert!(kept > before, "it was all there already");
    let generation = lab.draw(&steps(4));
    assert_eq!(generation.report.resumptions, []);
}

/// What a run sees of a link that has become slower since it was measured is enough: the link is
/// measured again in the mesh that is there.
#[test]
fn a_link_that_has_become_slower_is_measured_again() {
    let Some(mut lab) = Lab::new(&["a", "b"], 1, "ring_degree = 2", PATIENT) else { return };
    let rate = |lab: &Lab, rate| ["a", "b"].iter().for_each(|host| lab.slow_towards(host, rate));
    rate(&lab, "320mbit");
    ["a", "b"].into_iter().for_each(|host| lab.agent(host, false));
    lab.whole(2);
    let measured = |lab: &Lab| {
        let status = lab.run(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(status.done()).unwrap();
        let link = &status["mesh"]["links"][0];
        assert_eq!(link["transport"], "quic", "{status}");
        link["measured"]["bytes_per_s"].as_u64().unwrap_or_else(|| panic!("{status}"))
    };
    let (epoch, before) = (lab.status().mesh.unwrap().epoch, measured(&lab));
    // Keys and values of a block of a rank are more than a mebibyte, in each of eight blocks.
    let large =
        |number: u32| GenerateRequest { height: Some(256), width: Some(272), ..steps(number) };
    rate(&lab, "80mbit");
    lab.draw(&large(3));
    wait_until("the link is measured again", || measured(&lab) < before / 2);
    let after = measured(&lab);
    eprintln!("measured {before} bytes/s before and {after} after");
    assert!((5_000_000..12_000_000).contains(&after), "{after} bytes/s of 10,000,000");
    assert_eq!(lab.status().mesh.unwrap().epoch, epoch, "a mesh was formed for that");
}

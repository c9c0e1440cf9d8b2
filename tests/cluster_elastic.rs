//! Nodes that come and go while requests run: processes of their own, joined by token, left in
//! order.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ditmesh::{ClusterClient, ClusterStatus, Degrees, Event, GenerateError, GenerateRequest};
use ditmesh_actors::status::ControlStatus;

use crate::cli_process::{Ended, ditmesh};
use crate::cluster_harness::{
    Cluster, LOOK_PAUSE, PATIENCE, Settings, full_scale, holdings, is_alive, model, processes,
    short_request, signal, wait_until,
};
use crate::cluster_joiner::{Joiner, join};
use crate::cluster_weights::{kept_tensors, own_mounts, without_model};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ditmesh");

/// Of each device: the model fits two of them and not one, which needs 2,361,840.
const MEMORY_BYTES: u64 = 2_000_000;

fn elastic() -> Settings {
    Settings { elastic: true, ..Settings::default() }
}

/// What a process may have more of after the second half of the flaps than before it.
const FLAPS_FILES_MAX: usize = 3;
const FLAPS_THREADS_MAX: usize = 2;
const FLAPS_KILOBYTES_MAX: usize = 8 << 10;

/// Whether the mesh has so many ranks.
fn ranks(status: &ClusterStatus) -> usize {
    status.mesh.as_ref().map_or(0, |mesh| mesh.ranks.len())
}

fn wait_for_ranks(cluster: &Cluster, count: usize) {
    wait_until(&format!("a mesh of {count} ranks"), || ranks(&cluster.status()) == count);
}

/// Requests one after another until told to stop; how each ended.
struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Vec<GenerateError>)>,
}

impl Stream {
    fn start(cluster: &Cluster) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, client) = (stop.clone(), cluster.client());
        let thread = std::thread::spawn(move || {
            let (mut drawn, mut lost) = (0, Vec::new());
            while !told.load(Ordering::Relaxed) {
                match client.generate(short_request()).blocking_finish() {
                    Ok(_) => drawn += 1,
                    Err(error) => lost.push(error),
                }
            }
            (drawn, lost)
        });
        Self { stop, thread }
    }

    fn end(self) -> (usize, Vec<GenerateError>) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// It would be of no use to the mesh here, which has the degrees of its manifest.
#[test]
fn a_node_that_joins_says_of_what_kind_its_devices_are() {
    let cluster = Cluster::up(Settings::default());
    let token = cluster.run(&["token", "-q"]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), token.done().trim()).unwrap();
    let mut command = Command::new(PROGRAM);
    join(&mut command, folder.path(), &cluster.status().coordinator, "c");
    let process = command.args(["--token-file", "token", "--cuda"]).spawn().unwrap();
    let _joiner = Joiner { name: "c".into(), folder, process };
    wait_until("node c", || cluster.status().nodes.len() == 3);
    let kinds = cluster.status().nodes.into_iter().map(|node| node.devices[0].kind.clone());
    assert_eq!(kinds.collect::<Vec<_>>(), ["cpu", "cpu", "cuda"]);
}

/// 2 nodes, 4, 3, 2: two join, one is told to leave by the command line, one by SIGTERM, under a
/// stream of requests of which none is lost; the mesh always uses all that are there.
#[test]
fn nodes_come_and_go_under_a_stream_of_requests() {
    let cluster = Cluster::up(elastic());
    assert_eq!(ranks(&cluster.status()), 2);
    let watched = cluster.folder().join("watched");
    let mut watch = Command::new(PROGRAM)
        .current_dir(cluster.folder())
        .args(["status", "--watch"])
        .stdout(std::fs::File::create(&watched).unwrap())
        .spawn()
        .unwrap();
    let stream = Stream::start(&cluster);
    let (mut c, mut d) = (Joiner::join(&cluster, "c"), Joiner::join(&cluster, "d"));
    wait_for_ranks(&cluster, 4);
    cluster.run(&["leave", "c", "--drain", "20"]).done();
    c.ended();
    wait_for_ranks(&cluster, 3);
    assert!(!cluster.status().nodes.iter().any(|node| node.name == "c"), "it is forgotten");
    signal(d.process.id(), "TERM");
    d.ended();
    wait_for_ranks(&cluster, 2);
    let (drawn, lost) = stream.end();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), drawn + lost.len());
    assert!(drawn > 4, "{drawn}");
    watch.kill().unwrap();
    watch.wait().unwrap();
    let watched = std::fs::read_to_string(watched).unwrap();
    for part in ["\nc        alive", "\nd        alive", "mesh of epoch 1:", ": step "] {
        assert!(watched.contains(part), "{part:?} was not to be seen in\n{watched}");
    }
    for joiner in [&c, &d] {
        assert!(
            !joiner.folder.path().join("state/run/demo").exists(),
            "{} left files",
            joiner.name
        );
    }
}

/// How a machine with this token, under this name, is turned away.
fn turned_away(cluster: &Cluster, name: &str, token: &str) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), token).unwrap();
    let coordinator = cluster.status().coordinator;
    let args = ["join", "--coordinator", &coordinator, "--token-file", "token", "--name", name];
    let args = [&args[..], &["--address", "127.0.0.1", "--state-dir", "state"]].concat();
    let ended = ditmesh(folder.path(), &args);
    assert_ne!(ended.code, Some(0), "{ended:?}");
    assert!(!folder.path().join("state/certs").exists(), "it has a certificate");
    ended
}

/// Replayed, expired, foreign and misused tokens get nobody in, and the cluster goes on.
#[test]
fn only_a_good_token_opens_the_door_and_only_once() {
    let cluster = Cluster::up(elastic());
    let token = |args: &[&str]| {
        let args = [&["token", "-q"], args].concat();
        cluster.run(&args).done().trim().to_owned()
    };
    let taken = turned_away(&cluster, "b", &token(&[]));
    assert!(taken.stderr.contains("is in the cluster"), "{taken:?}");
    let host = turned_away(&cluster, "a", &token(&[]));
    assert!(host.stderr.contains("hosts the coordinator"), "{host:?}");
    let misused = turned_away(&cluster, "d", &token(&["--node", "c"]));
    assert!(misused.stderr.contains("for node c, not for d"), "{misused:?}");
    let wrong_name = turned_away(&cluster, "Not_A_Name", &token(&[]));
    assert!(wrong_name.stderr.contains("Not_A_Name"), "{wrong_name:?}");

    let good = token(&[]);
    let parts: Vec<&str> = good.split('.').collect();
    let guessed = [parts[0], parts[1], &"0".repeat(64), parts[3], parts[4]].join(".");
    let guess = turned_away(&cluster, "c", &guessed);
    assert!(guess.stderr.contains("unknown"), "{guess:?}");
    let joiner = Joiner::with_token(&cluster, "c", &good);
    wait_for_ranks(&cluster, 3);
    let replayed = turned_away(&cluster, "d", &good);
    // The token for `b` is still out, so the door is open.
    assert!(replayed.stderr.contains("used already"), "{replayed:?}");

    let short = token(&["--expires", "1"]);
    std::thread::sleep(Duration::from_millis(1100));
    let expired = turned_away(&cluster, "d", &short);
    assert!(expired.stderr.contains("expired"), "{expired:?}");

    let other = Cluster::up(Settings { quick: false, ..elastic() });
    let foreign = other.run(&["token", "-q"]).done().trim().to_owned();
    let foreign = turned_away(&cluster, "d", &foreign);
    assert!(foreign.stderr.contains("certificate"), "{foreign:?}");

    assert!(cluster.status().joins_refused >= 6, "{}", cluster.status().joins_refused);
    cluster.client().generate(short_request()).blocking_finish().unwrap();
    drop(joiner);
}

/// A node that is declared gone stays out until it has a new token.
#[test]
fn a_node_that_is_forced_out_needs_a_new_token() {
    let cluster = Cluster::up(elastic());
    let mut joiner = Joiner::join(&cluster, "c");
    wait_for_ranks(&cluster, 3);
    joiner.process.kill().unwrap();
    joiner.process.wait().unwrap();
    cluster.run(&["force-leave", "c"]).done();
    wait_for_ranks(&cluster, 2);
    let coordinator = cluster.status().coordinator;
    let args = ["join", "--coordinator", &coordinator, "--name", "c", "--state-dir", "state"];
    let again = ditmesh(joiner.folder.path(), &args);
    assert_ne!(again.code, Some(0), "{again:?}");
    let _back = Joiner::join(&cluster, "c");
    wait_for_ranks(&cluster, 3);
    cluster.run(&["force-leave", "a"]).refused(1, &["hosts the coordinator"]);
}

/// A run with long to go is moved to the better mesh that a node which joins makes possible, from
/// its newest checkpoint, and its caller hears of it once.
#[test]
fn a_long_run_moves_to_the_better_mesh_when_a_node_joins() {
    let cluster = Cluster::up(elastic());
    let client = cluster.client();
    let steps = 1000;
    let mut run =
        client.generate(GenerateRequest { num_inference_steps: steps, ..short_request() });
    while !matches!(run.blocking_next_event(), Some(Event::Step { .. })) {}
    let _c = Joiner::join(&cluster, "c");
    let (mut moves, mut last) = (Vec::new(), 0);
    while let Some(event) = run.blocking_next_event() {
        match event {
            Event::Resumed(resumption) => moves.push(resumption),
            Event::Step { step, .. } => last = step,
            _ => {}
        }
    }
    let generation = run.blocking_finish().unwrap();
    let [moved] = moves.as_slice() else { panic!("{moves:?}") };
    eprintln!("{moved} ({})", moved.cause);
    assert!(moved.moved && moved.devices == 3 && moved.steps_redone() <= 1, "{moved:?}");
    assert!(moved.resumed_at_step > 0 && last == steps, "{last}: {moved:?}");
    assert_eq!(generation.report.ranks.len(), 3);
}

/// Who was declared gone is neither waited for nor let in by a coordinator that was started again,
/// until it joins anew.
#[test]
fn a_node_that_was_forced_out_stays_out_over_a_restart_of_the_coordinator() {
    let cluster = Cluster::up(elastic());
    cluster.run(&["force-leave", "b"]).done();
    wait_for_ranks(&cluster, 1);
    let before = cluster.status();
    signal(before.nodes[0].process, "KILL");
    let after = cluster.wait_for_mesh(before.mesh.unwrap().epoch);
    assert_eq!(ranks(&after), 1);
    let gone = |status: &ClusterStatus| {
        let node = status.nodes.iter().find(|node| node.name == "b").unwrap();
        assert!(node.state.contains("forced to leave"), "{}", node.state);
    };
    gone(&after);
    cluster.client().generate(short_request()).blocking_finish().unwrap();
    gone(&cluster.status());
    let _back = Joiner::join(&cluster, "b");
    wait_for_ranks(&cluster, 2);
}

/// When the last node leaves, the cluster ends in order.
#[test]
fn the_last_node_takes_the_cluster_along() {
    let cluster = Cluster::up(elastic());
    cluster.run(&["leave", "b", "--drain", "5"]).done();
    wait_for_ranks(&cluster, 1);
    cluster.client().generate(short_request()).blocking_finish().unwrap();
    cluster.run(&["leave", "a", "--drain", "5"]).done();
    wait_until("the cluster is gone", || cluster.files() == ["cluster.toml"]);
}

/// A request that does not go on, since a worker stands still that is not taken for dead yet, holds
/// a leaving node until its drain is over, and not longer.
#[test]
fn a_stuck_request_holds_a_leaving_node_until_its_deadline() {
    let cluster = Cluster::up(elastic());
    let worker = cluster.status().nodes[1].devices[0].process;
    let client = cluster.client();
    let long = GenerateRequest { num_inference_steps: 1000, ..short_request() };
    let mut long = client.generate(long);
    while !matches!(long.blocking_next_event(), Some(Event::Step { .. })) {}
    signal(worker, "STOP");
    let begun = Instant::now();
    cluster.run(&["leave", "b", "--drain", "1"]).done();
    let took = begun.elapsed();
    eprintln!("it left after {took:?}");
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}");
    wait_for_ranks(&cluster, 1);
    wait_until("the worker has ended too", || !is_alive(worker));
    // It goes on from its checkpoint on who is left.
    let resumption = loop {
        match long.blocking_next_event() {
            Some(Event::Resumed(resumption)) => break resumption,
            Some(_) => {}
            None => panic!("it ended: {:?}", long.blocking_finish()),
        }
    };
    assert!(resumption.resumed_at_step > 0 && resumption.devices == 1, "{resumption:?}");
    while !matches!(long.blocking_next_event(), Some(Event::Step { .. })) {}
    drop(long);
    client.generate(short_request()).blocking_finish().unwrap();
}

/// What one device cannot hold waits for another, and whoever asks is told; a deadline ends the
/// wait with the same words.
#[test]
fn a_model_that_one_device_cannot_hold_waits_for_another() {
    let cluster = Cluster::up(Settings { quick: true, memory_bytes: MEMORY_BYTES, ..elastic() });
    let before = cluster.status();
    assert_eq!(ranks(&before), 2);
    let launcher = cluster.launcher();
    // Or it would start the agent again.
    signal(launcher, "STOP");
    signal(before.nodes[1].process, "KILL");
    wait_for_ranks(&cluster, 0);
    let parts = ["the 1 live devices cannot hold ", "; add devices or memory"];
    let names_it = |cause: &str| {
        assert!(parts.iter().all(|part| cause.contains(part)), "{cause}");
    };
    let client = cluster.client();
    let mut late = client.generate(GenerateRequest { deadline_s: Some(4), ..short_request() });
    let told = loop {
        match late.blocking_next_event() {
            Some(Event::Warning(cause)) => break cause,
            Some(_) => {}
            None => panic!("it ended: {:?}", late.blocking_finish()),
        }
    };
    names_it(&told);
    let late = late.blocking_finish();
    let Err(GenerateError::Expired(cause)) = late else { panic!("{late:?}") };
    assert!(cause.starts_with("it waited 4 s for "), "{cause}");
    names_it(&cause);
    let line = "generate -q --cluster cluster.toml -p apple --steps 3 --deadline 1";
    let line = cluster.run(&line.split_whitespace().collect::<Vec<_>>());
    line.refused(1, &[&["it waited 1 s for "], &parts[..]].concat());
    let waits = client.generate(short_request());
    wait_until("it waits", || !cluster.status().requests.is_empty());
    let status = cluster.status();
    names_it(&status.mesh_absent.unwrap());
    names_it(&status.requests[0].waits_for);
    signal(launcher, "CONT");
    assert_eq!(waits.blocking_finish().unwrap().report.ranks.len(), 2);
}

/// A machine that joins by token and has nothing of the model fetches what its part reads from
/// the others, and draws with them.
#[test]
fn a_node_that_joins_without_the_model_fetches_it_and_draws() {
    let Some(mounts) = own_mounts() else { return };
    let cluster = Cluster::up(elastic());
    let token = cluster.run(&["token", "-q"]);
    let mut command = without_model(mounts, &model());
    command.arg(PROGRAM);
    let joiner = Joiner::by(command, &cluster, "c", token.done().trim());
    wait_for_ranks(&cluster, 3);
    let mesh = cluster.status().mesh.unwrap();
    let rank = mesh.ranks.iter().find(|rank| rank.device == "c/0").unwrap();
    let kept = kept_tensors(joiner.folder.path());
    eprintln!("{} tensors fetched", kept.len());
    assert_eq!(kept.iter().sum::<u64>(), rank.weight_bytes_read, "what its part reads");
    assert!(!kept.is_empty());
    let generation = cluster.client().generate(short_request()).blocking_finish().unwrap();
    let mut drew: Vec<_> = generation.report.ranks.iter().map(|rank| &rank.device).collect();
    drew.sort();
    assert_eq!(drew, ["a/0", "b/0", "c/0"]);
}

/// What the coordinator holds, and what it needs for what it has to do: an actor for each session,
/// and for each place in the tree of the mesh; a connection for each session with another process,
/// with a stream of messages, which counts for both directions, and one of heartbeats each way.
fn held_and_needed(status: &ClusterStatus) -> [(u32, ControlStatus); 2] {
    let members = processes(status).into_iter().filter(|process| *process != 0).count() as u32;
    // This client is there too, and the coordinator's own agent has no connection.
    let (sessions, connections) = (members + 1, members);
    let tree = status.mesh.as_ref().map_or(0, |mesh| {
        let Degrees { cfg_degree, pipefusion_degree, data_degree, .. } = mesh.degrees;
        let stages = cfg_degree * pipefusion_degree;
        data_degree * (2 + cfg_degree + stages) + mesh.ranks.len() as u32
    });
    let control = ControlStatus { connections, streams: 4 * connections, questions: 0 };
    [(status.actors, status.control), (sessions + tree, control)]
}

/// What it holds once that is no more than it needs: a connection that is over is held until its
/// last words had time to arrive.
fn settled(client: &ClusterClient) -> (u32, ControlStatus) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = client.blocking_status().unwrap();
        let [held, needed] = held_and_needed(&status);
        if held == needed {
            return held;
        }
        assert!(Instant::now() < deadline, "{held:?} for {needed:?}: {status:?}");
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// A node that dies and comes back again and again is not counted on any more, costs nobody else
/// anything, and leaves nothing behind in the coordinator or in the workers that stay.
#[test]
fn a_node_that_flaps_is_quarantined() {
    let flaps = if full_scale() { 100 } else { 20 };
    let cluster = Cluster::up(Settings { quick: true, ..elastic() });
    let mut joiner = Joiner::join(&cluster, "c");
    let status = cluster.status();
    let stay = [status.nodes[0].process, status.nodes[0].devices[0].process];
    // The only one there is, so that looking changes nothing.
    let client = cluster.client();
    // Processes of its agent and its worker, and its state, as the coordinator sees it.
    let node = || {
        let found = client.blocking_status().unwrap().nodes.into_iter().find(|it| it.name == "c");
        found.map_or((0, 0, String::new()), |it| (it.process, it.devices[0].process, it.state))
    };
    let is_out = || {
        wait_until(
            "it is quarantined",
            || matches!(node(), (1.., 1.., state) if state == "quarantined"),
        );
    };
    let mut seen = Vec::new();
    for flap in 1..=flaps {
        let process = joiner.process.id();
        wait_until("it is there", || node().0 == process);
        let look = flap == flaps / 2 || flap == flaps;
        let there = look.then(|| {
            is_out();
            settled(&client)
        });
        joiner.process.kill().unwrap();
        joiner.process.wait().unwrap();
        wait_until("it is gone", || node().0 == 0);
        if let Some(there) = there {
            client.generate(short_request()).blocking_finish().unwrap();
            seen.push((there, settled(&client), stay.map(holdings)));
        }
        joiner.again(&cluster);
    }
    is_out();
    assert_eq!(ranks(&cluster.status()), 2, "{:?}", cluster.status());
    client.generate(short_request()).blocking_finish().unwrap();
    let [(there, gone, held), (there_now, gone_now, now)] = &seen[..] else { panic!("{seen:?}") };
    eprintln!("{flaps} flaps: {there:?} while it is there, {gone:?} while it is not, {held:?}");
    // What one flap leaves behind would be there so many times.
    assert_eq!((there_now, gone_now), (there, gone), "after the last flap and after half of them");
    eprintln!("{now:?} after the last");
    for (held, now) in held.iter().zip(now) {
        assert!(now.files <= held.files + FLAPS_FILES_MAX, "{held:?} became {now:?}");
        assert!(now.threads <= held.threads + FLAPS_THREADS_MAX, "{held:?} became {now:?}");
        let kilobytes = held.kilobytes + FLAPS_KILOBYTES_MAX;
        assert!(now.kilobytes <= kilobytes, "{held:?} became {now:?}");
    }
}

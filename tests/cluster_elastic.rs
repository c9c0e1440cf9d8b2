//! Nodes that come and go while requests run: processes of their own, joined by token, left in order.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ditmesh::{ClusterStatus, Event, GenerateError, GenerateRequest};

use crate::cli_process::{Ended, ditmesh};
use crate::cluster_harness::{
    Cluster, Settings, full_scale, holdings, short_request, signal, wait_until,
};

fn elastic() -> Settings {
    Settings { elastic: true, ..Settings::default() }
}

/// A node that joined, with a folder of its own.
struct Joiner {
    name: String,
    folder: tempfile::TempDir,
    process: Child,
}

impl Joiner {
    /// Joins `cluster` as `name` with a new token.
    fn join(cluster: &Cluster, name: &str) -> Self {
        let token = cluster.run(&["token", "-q"]);
        Self::with_token(cluster, name, token.done().trim())
    }

    fn with_token(cluster: &Cluster, name: &str, token: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), token).unwrap();
        let mut command = command(folder.path(), &cluster.status().coordinator, name);
        let process =
            command.args(["--token-file", "token"]).stdout(Stdio::null()).spawn().unwrap();
        Self { name: name.into(), folder, process }
    }

    /// Starts again without a token, as after a restart of the machine.
    fn again(&mut self, cluster: &Cluster) {
        let coordinator = cluster.status().coordinator;
        let mut command = command(self.folder.path(), &coordinator, &self.name);
        self.process = command.stdout(Stdio::null()).spawn().unwrap();
    }

    /// The agent ends by itself, in order.
    fn ended(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                assert!(status.success(), "{}: {status}", self.name);
                return;
            }
            assert!(Instant::now() < deadline, "{} does not end", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Joiner {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `ditmesh join` from `folder`.
fn command(folder: &Path, coordinator: &str, name: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ditmesh"));
    command.current_dir(folder).args(["join", "-q", "--coordinator", coordinator, "--name", name]);
    command.args(["--address", "127.0.0.1", "--state-dir", "state"]);
    command
}

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
    let mut command = command(folder.path(), &cluster.status().coordinator, "c");
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
    let mut watch = Command::new(env!("CARGO_BIN_EXE_ditmesh"))
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

/// A run with long to go is moved to the better mesh that a node which joins makes possible, from its
/// newest checkpoint, and its caller hears of it once.
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

/// Who was declared gone is neither waited for nor let in by a coordinator that was started again, until it
/// joins anew.
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

/// A request that does not end holds a leaving node until its drain is over, and not longer.
#[test]
fn a_stuck_request_holds_a_leaving_node_until_its_deadline() {
    let cluster = Cluster::up(elastic());
    let client = cluster.client();
    let long = GenerateRequest { num_inference_steps: 1000, ..short_request() };
    let mut long = client.generate(long);
    while !matches!(long.blocking_next_event(), Some(Event::Step { .. })) {}
    let begun = Instant::now();
    cluster.run(&["leave", "b", "--drain", "1"]).done();
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(10), "{took:?}");
    wait_for_ranks(&cluster, 1);
    // It goes on from its checkpoint on who is left.
    while !matches!(long.blocking_next_event(), Some(Event::Step { .. })) {}
    drop(long);
    client.generate(short_request()).blocking_finish().unwrap();
}

/// A node that dies and comes back again and again is not counted on any more, costs nobody else
/// anything, and leaves nothing behind in the coordinator.
#[test]
fn a_node_that_flaps_is_quarantined() {
    let flaps = if full_scale() { 100 } else { 20 };
    let cluster = Cluster::up(Settings { quick: true, ..elastic() });
    let mut joiner = Joiner::join(&cluster, "c");
    let host = cluster.status().nodes[0].process;
    // Process and state of its agent, as the coordinator sees it.
    let node = |cluster: &Cluster| {
        let found = cluster.status().nodes.into_iter().find(|node| node.name == "c");
        found.map_or((0, String::new()), |node| (node.process, node.state))
    };
    let mut held = None;
    for flap in 0..flaps {
        let process = joiner.process.id();
        wait_until("it is there", || node(&cluster).0 == process);
        joiner.process.kill().unwrap();
        joiner.process.wait().unwrap();
        wait_until("it is gone", || node(&cluster).0 == 0);
        if flap == 1 {
            held = Some(holdings(host));
        }
        joiner.again(&cluster);
    }
    wait_until("it is quarantined", || node(&cluster).1 == "quarantined");
    assert_eq!(ranks(&cluster.status()), 2, "{:?}", cluster.status());
    cluster.client().generate(short_request()).blocking_finish().unwrap();
    let (held, now) = (held.unwrap(), holdings(host));
    eprintln!("{flaps} flaps: {held:?} after the second, {now:?} after the last");
    assert!(now.files <= held.files + 8, "{held:?} became {now:?}");
    assert!(now.threads <= held.threads + 4, "{held:?} became {now:?}");
    assert!(now.kilobytes <= held.kilobytes + 32_768, "{held:?} became {now:?}");
}

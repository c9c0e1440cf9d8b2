//! Hostile input at the ports of processes that run: whatever callers show, say or do not say, each
//! node stays up and small, those that belong to the cluster draw on, and the cluster's status
//! counts whom it turned away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ditmesh::{ClusterClient, ClusterStatus};
use ditmesh_actors::protocol::{DeviceId, FromCoordinator, Hello, Party, ToCoordinator};
use ditmesh_actors::session::handshake::hello;
use ditmesh_transport::join::{JOIN_BYTES_MAX, JoinToken, ask};
use ditmesh_transport::{
    ControlConfig, ControlEndpoint, Epoch, FabricAddress, Identity, MeshForm, PeerAddress, PeerId,
    PeerIdentity, QuicConfig, QuicFabric, Role, TransportError,
};
use tokio::task::JoinSet;

use crate::cluster_harness::{Cluster, Settings, holdings, processes, wait_until};
use crate::cluster_kill::steps;
use crate::intruder::{Caller, Certificates, FROM, Words};

/// What intruders may add to a process while they are there, in kilobytes: places, packets that
/// wait, and what the allocator keeps.
const GROWTH_KB_MAX: usize = 48 << 10;

/// Pictures whose median is the pace before the intruders come.
const DRAWN_BEFORE: usize = 9;

/// How much longer a picture may take while they are there: they cost computing.
const SLOWER_MAX: f64 = 3.0;

/// Seconds that a picture may take in any case: tests that run at the same time begin and end.
const SLOW_S: f64 = 1.0;

/// Callers of each kind at each port.
const CALLERS: usize = 4;

/// The control channel's first bytes: who speaks, and versions 1 to 1.
const GREETING: &[u8] = b"DMC1\x01\0\x01\0";

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// A head of the control channel and what follows it, after the greeting.
fn greeted(kind: u8, len: u32, body: &[u8]) -> Vec<u8> {
    [GREETING, &[kind, 0, 0, 0], &len.to_le_bytes(), body].concat()
}

/// Where the cluster listens.
struct Ports {
    control: SocketAddr,
    /// Of the worker of node `b`.
    worker: FabricAddress,
    data: Vec<SocketAddr>,
}

impl Ports {
    fn of(status: &ClusterStatus) -> Self {
        let worker = status.nodes[1].devices[0].address.parse().unwrap();
        let FabricAddress::Quic { control, bulk } = worker else { panic!("{worker}") };
        let data = std::iter::once(control).chain(bulk.as_slice().iter().copied()).collect();
        Self { control: status.coordinator.parse().unwrap(), worker, data }
    }

    fn all(&self) -> impl Iterator<Item = SocketAddr> {
        std::iter::once(self.control).chain(self.data.iter().copied())
    }
}

/// Certificates that are none of ours, too old, for nobody, or not there, at every port.
fn wrong_certificates(certificates: &Certificates, ports: &Ports, calls: &mut JoinSet<()>) {
    let member = "member.demo.ditmesh.internal";
    let shown = [
        Some(certificates.foreign()),
        Some(certificates.forged(&["b.node.demo.ditmesh.internal", member], 2001)),
        Some(certificates.forged(&["somebody.example", member], 2100)),
        None,
    ];
    for identity in &shown {
        let caller = certificates.caller(identity.as_ref(), b"ditmesh");
        for port in ports.all() {
            say(&caller, port, Words::of(GREETING), calls);
        }
    }
}

/// With a good certificate: bytes that are no protocol, lengths that are too large, messages that
/// end early, streams that are never written, and one byte per second.
fn wrong_words(certificates: &Certificates, ports: &Ports, calls: &mut JoinSet<()>) {
    let identity = certificates.good(Role::Node, "b").to_pem();
    let caller = certificates.caller(Some(&identity), b"ditmesh");
    let noise: Vec<u8> = (0..5000_u32).map(|at| (at * at / 7) as u8).collect();
    let control = [
        noise.clone(),
        greeted(9, 4, b"what"),
        greeted(1, u32::MAX, &noise),
        greeted(3, u32::MAX, &noise),
        greeted(2, u32::MAX, &noise),
        greeted(1, 100, &noise[..100]),
    ];
    for words in control {
        say(&caller, ports.control, Words::of(words), calls);
    }
    say(&caller, ports.control, Words::cut_off(greeted(1, 100, b"half")), calls);
    say(&caller, ports.control, Words::slowly(greeted(1, 1000, &noise)), calls);
    for &port in &ports.data {
        say(&caller, port, Words::of(noise.clone()), calls);
        say(&caller, port, Words::of([0xff; 3]), calls);
        say(&caller, port, Words::cut_off(*b"\xc8\0DMH"), calls);
        say(&caller, port, Words::slowly(*b"\xc8\0DMH1\x01\0\x01\0"), calls);
    }
    for port in ports.all() {
        for _ in 0..CALLERS {
            let caller = caller.clone();
            calls.spawn(async move {
                let streams = caller.open_streams(port).await;
                assert!(streams <= 1, "{port} lets a stranger open {streams} streams");
            });
        }
    }
}

/// Strangers at the door that is open while a token is out.
fn wrong_questions(
    certificates: &Certificates,
    ports: &Ports,
    token: &str,
    calls: &mut JoinSet<()>,
) {
    let (control, caller) = (ports.control, certificates.caller(None, b"ditmesh-join"));
    say(&caller, control, Words::slowly(*b"{\"token\": \"0123456789"), calls);
    let token = JoinToken::parse(token).unwrap();
    calls.spawn(async move {
        let answer = ask(control, &token, b"let me in", soon()).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.contains("cannot be read"), "{answer}");
        let long = ask(control, &token, &vec![b' '; JOIN_BYTES_MAX + 1], soon()).await;
        assert!(long.is_err(), "{long:?}");
    });
}

/// [`CALLERS`] say this.
fn say(caller: &Caller, port: SocketAddr, words: Words, calls: &mut JoinSet<()>) {
    for _ in 0..CALLERS {
        let (caller, words) = (caller.clone(), words.clone());
        calls.spawn(async move { caller.say(port, words).await });
    }
}

/// What the coordinator answers somebody whose certificate is `identity` and who says this.
async fn answer(control: SocketAddr, identity: Identity, hello: Hello) -> FromCoordinator {
    let config = ControlConfig::new(identity, FROM.parse().unwrap());
    let endpoint = ControlEndpoint::bind(&config).unwrap();
    let expected = PeerIdentity::new(Role::Node, "a", "demo").unwrap();
    let mut channel = endpoint.connect(control, &expected, soon()).await.unwrap();
    let bytes = ToCoordinator::Hello(Box::new(hello)).to_bytes().unwrap();
    channel.send(bytes, soon()).await.unwrap();
    let answer = tokio::time::timeout_at(soon().into(), channel.recv()).await.unwrap();
    FromCoordinator::from_bytes(&answer.unwrap().unwrap()).unwrap()
}

/// Members that are not who they say, or not any more: each hears why it is refused.
async fn impostors(certificates: &Certificates, control: SocketAddr) {
    let device = |node: &str| DeviceId { node: node.into(), index: 0 };
    let of_b = || certificates.good(Role::Node, "b");
    let now = u64::MAX / 2;
    let other_build =
        Hello { schema: 1, ..hello("demo", Party::Worker { device: device("b") }, now) };
    let worker_of = |node: &str| Party::Worker { device: device(node) };
    let table = [
        (of_b(), hello("demo", Party::Agent { node: "a".into() }, now), "does not speak for"),
        (of_b(), hello("demo", worker_of("a"), now), "does not speak for"),
        (
            certificates.good(Role::Client, "me"),
            hello("demo", worker_of("b"), now),
            "not speak for",
        ),
        (of_b(), hello("other", worker_of("b"), now), "this is cluster"),
        (of_b(), other_build, "version mismatch"),
        (of_b(), hello("demo", worker_of("b"), 1), "was here already"),
        (
            certificates.good(Role::Node, "z"),
            hello("demo", worker_of("z"), now),
            "not in the manifest",
        ),
    ];
    for (identity, hello, expected) in table {
        let party = hello.party.clone();
        let answer = answer(control, identity, hello).await;
        let FromCoordinator::Refused { cause } = answer else { panic!("{party:?}: {answer:?}") };
        assert!(cause.contains(expected), "{party:?}: {cause}");
    }
}

/// A member of an epoch that is over.
async fn stale_member(certificates: &Certificates, worker: FabricAddress, epoch: u64) {
    let from = FROM.parse().unwrap();
    let config = QuicConfig::new(certificates.good(Role::Node, "a"), from, from);
    let fabric = QuicFabric::bind(&config).unwrap();
    let form = MeshForm {
        cluster: "demo".into(),
        epoch: Epoch(epoch),
        local: PeerId(0),
        peers: vec![PeerAddress { id: PeerId(1), name: "b".into(), address: worker }],
        deadline: soon(),
    };
    let error = fabric.form(form).await.map(drop).unwrap_err();
    assert!(matches!(error, TransportError::StaleEpoch { .. }), "{error}");
}

/// Seconds that one picture takes.
fn draw(client: &ClusterClient) -> f64 {
    let begun = Instant::now();
    let generation = client.generate(steps(4)).blocking_finish().unwrap();
    assert_eq!(generation.report.resumptions, []);
    begun.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Draws until told to stop; what each picture took, and the most kilobytes that each process had.
fn draw_on(cluster: &Cluster, processes: &[u32], stop: &AtomicBool) -> (Vec<f64>, Vec<usize>) {
    let client = cluster.client();
    let (mut took, mut most) = (Vec::new(), vec![0; processes.len()]);
    while !stop.load(Ordering::Relaxed) {
        took.push(draw(&client));
        for (most, process) in most.iter_mut().zip(processes) {
            *most = holdings(*process).kilobytes.max(*most);
        }
    }
    (took, most)
}

#[test]
fn hostile_callers_are_turned_away_counted_and_leave_nothing() {
    let cluster = Cluster::up(Settings { ulysses: true, ..Settings::default() });
    let token = cluster.run(&["token", "-q"]).done().trim().to_owned();
    let before = cluster.status();
    let (epoch, ports) = (before.mesh.as_ref().unwrap().epoch, Ports::of(&before));
    let certificates = Certificates::load(&cluster.folder().join(".ditmesh/certs"));
    let client = cluster.client();
    draw(&client);
    let quiet = median((0..DRAWN_BEFORE).map(|_| draw(&client)).collect());
    let processes = processes(&before);
    let held: Vec<_> = processes.iter().copied().map(holdings).collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (took, most, calls) = std::thread::scope(|scope| {
        let drawing = scope.spawn(|| draw_on(&cluster, &processes, &stop));
        // Told to stop whatever becomes of the callers.
        let _ends = Stopping(&stop);
        let calls = runtime.block_on(async {
            let mut calls = JoinSet::new();
            wrong_certificates(&certificates, &ports, &mut calls);
            wrong_words(&certificates, &ports, &mut calls);
            wrong_questions(&certificates, &ports, &token, &mut calls);
            impostors(&certificates, ports.control).await;
            stale_member(&certificates, ports.worker, epoch).await;
            let count = calls.len();
            while let Some(call) = calls.join_next().await {
                call.unwrap();
            }
            count
        });
        stop.store(true, Ordering::Relaxed);
        let (took, most) = drawing.join().unwrap();
        (took, most, calls)
    });
    drop(runtime);
    let after = cluster.status();
    let now: Vec<_> = processes.iter().copied().map(holdings).collect();
    let (drawn, busy) = (took.len(), median(took));
    eprintln!(
        "{calls} calls, {} turned away, {drawn} pictures drawn, one took {quiet:.3} s before and \
         {busy:.3} s meanwhile, {held:?} were {most:?} at most and are {now:?}",
        after.callers_refused
    );
    assert!(drawn >= DRAWN_BEFORE, "{drawn} were drawn meanwhile");
    let slowest = (SLOWER_MAX * quiet).max(SLOW_S);
    assert!(busy <= slowest, "one took {quiet} s before and {busy} s meanwhile");
    // Every kind at the control port, apart from the questions.
    let refused = after.callers_refused - before.callers_refused;
    assert!(refused >= (4 + 8 + 1) * CALLERS as u64 + 7, "{refused} were counted");
    assert!(after.joins_refused > before.joins_refused);
    // Certificates, words and streams at each of the worker's ports, as of its last heartbeat.
    let at_worker = |status: &ClusterStatus| status.nodes[1].devices[0].callers_refused;
    let expected = at_worker(&before) + ((4 + 4 + 1) * CALLERS * ports.data.len()) as u64;
    wait_until("the worker's count", || at_worker(&cluster.status()) >= expected);
    for ((held, now), most) in held.iter().zip(&now).zip(most) {
        assert!(most <= held.kilobytes + GROWTH_KB_MAX, "{held:?} became {most} kB");
        assert!(now.files <= held.files + 4 && now.threads <= held.threads + 2, "{held:?} {now:?}");
    }
    let of = |status: &ClusterStatus| {
        let lives = status.nodes.iter().map(|node| (node.process, node.devices[0].process));
        (status.mesh.as_ref().map(|mesh| mesh.epoch), lives.collect::<Vec<_>>())
    };
    assert_eq!(of(&after), of(&before), "somebody was lost");
    draw(&client);
}

struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

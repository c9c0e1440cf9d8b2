//! Nothing is left behind: by a peer that is killed in the middle of a message, and by many meshes
//! that come and go.

use std::any::Any;
use std::io::{BufRead, BufReader, Write};
use std::process::Child;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use ditmesh_transport::{
    Epoch, Fabric, FabricAddress, FrameMeta, Holdings, Identity, MemKind, Memory, PeerId, PostRecv,
    QuicConfig, QuicFabric, Region, Role, RunId, SendFrame, Slice, Tag, TransportError, UcxFabric,
};

use crate::alone::{Footprint, alone, full_scale, is_role, start};
use crate::support::{
    EPOCH, Host, block_on, form_all, form_of, identity, loopback, only_ucx, quic_fabrics, soon,
    ucx_fabrics, ucx_is_here,
};

const MESSAGE_BYTES: usize = 256 << 20;

/// A place of the pool's that is posted beside.
const POOLED_BYTES: usize = 32 << 20;

/// From the peer's death to the error at this end.
const LOSS_MAX: Duration = Duration::from_secs(2);

/// Memory that tells when it is first written to, and when it is dropped.
struct Watched {
    bytes: Vec<u8>,
    begun: Option<Sender<()>>,
    _dropped: Arc<()>,
}

impl Memory for Watched {
    fn kind(&self) -> MemKind {
        MemKind::Host
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn host(&self) -> Option<&[u8]> {
        Some(&self.bytes)
    }

    fn host_mut(&mut self) -> Option<&mut [u8]> {
        if let Some(begun) = self.begun.take() {
            begun.send(()).unwrap();
        }
        Some(&mut self.bytes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// QUIC alone, or UCX where the two take each other to be.
type Over = Option<Host>;

fn bind(over: Over, rank: usize, identity: Identity) -> Arc<dyn Fabric> {
    let at = over.map_or_else(loopback, |host| host.address(rank));
    let config = QuicConfig::new(identity, at, at);
    match over {
        Some(_) => UcxFabric::bind(&config, only_ucx()).unwrap(),
        None => QuicFabric::bind(&config).unwrap(),
    }
}

/// The process that is killed: sends one message, whose place is never filled to the end.
fn sender(over: Over) {
    let mut lines = std::io::stdin().lines();
    let dir = lines.next().unwrap().unwrap();
    let fabric = bind(over, 1, Identity::load(dir.as_ref(), Role::Node, "n1").unwrap());
    let mut told = std::io::stdout().lock();
    writeln!(told, "\naddress {}", fabric.address()).unwrap();
    drop(told);
    let receiver: FabricAddress = lines.next().unwrap().unwrap().parse().unwrap();
    let form = form_of(&[receiver, fabric.address()], 1, EPOCH);
    let mesh = block_on(fabric.form(form)).unwrap();
    let payload = Slice::copy_of(&vec![5; MESSAGE_BYTES]);
    let meta = FrameMeta::raw(EPOCH, MESSAGE_BYTES as u32);
    let frame = SendFrame { run: RunId(1), tag: Tag(1), meta, payload };
    let _sent = mesh.link(PeerId(0)).unwrap().send(frame);
    // Until it is killed.
    let _ = lines.next();
}

/// A mesh with a neighbour in this process: what UCX opens once, the fabric keeps open.
fn warm(over: Over, fabric: &Arc<dyn Fabric>) {
    if over.is_some() {
        let neighbour = bind(over, 1, identity(Role::Node, "n1"));
        let formed = form_all(&[Arc::clone(fabric), neighbour], Epoch(0));
        assert!(formed.iter().all(Result::is_ok));
    }
}

fn address_of(child: &mut Child) -> FabricAddress {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    lines.find_map(|line| line.strip_prefix("address ")?.parse().ok()).unwrap()
}

#[test]
fn a_peer_killed_in_the_middle_of_a_message_is_lost_in_time_and_leaves_nothing() {
    let test =
        "endurance::a_peer_killed_in_the_middle_of_a_message_is_lost_in_time_and_leaves_nothing";
    killed_in_the_middle(test, None);
}

#[test]
fn a_peer_killed_while_it_shares_memory_is_lost_in_time_and_leaves_nothing() {
    if ucx_is_here() {
        let test =
            "endurance::a_peer_killed_while_it_shares_memory_is_lost_in_time_and_leaves_nothing";
        killed_in_the_middle(test, Some(Host::Same));
    }
}

#[test]
fn a_peer_killed_over_a_network_of_ucx_is_lost_in_time_and_leaves_nothing() {
    if ucx_is_here() {
        let test =
            "endurance::a_peer_killed_over_a_network_of_ucx_is_lost_in_time_and_leaves_nothing";
        killed_in_the_middle(test, Some(Host::Other));
    }
}

fn killed_in_the_middle(test: &str, over: Over) {
    if is_role("sender") {
        return sender(over);
    }
    alone(test, || {
        let dir = tempfile::tempdir().unwrap();
        identity(Role::Node, "n1").save(dir.path()).unwrap();
        let fabric = bind(over, 0, identity(Role::Node, "n0"));
        warm(over, &fabric);
        let before = Footprint::now();
        let mut child = start(test, "sender");
        let mut tell = child.stdin.take().unwrap();
        writeln!(tell, "{}\n{}", dir.path().display(), fabric.address()).unwrap();
        let places = [fabric.address(), address_of(&mut child)];
        let mesh = block_on(fabric.form(form_of(&places, 0, EPOCH))).unwrap();
        let (begun, filling) = channel();
        let held = Arc::new(());
        let region = Region::from_memory(Box::new(Watched {
            bytes: vec![0; MESSAGE_BYTES],
            begun: Some(begun),
            _dropped: Arc::clone(&held),
        }));
        let link = mesh.link(PeerId(1)).unwrap();
        let pooled = PostRecv {
            run: RunId(1),
            tag: Tag(2),
            region: mesh.allocate(POOLED_BYTES),
            len: POOLED_BYTES,
        };
        let mut never_sent = link.post_recv(pooled);
        let post = PostRecv { run: RunId(1), tag: Tag(1), region, len: MESSAGE_BYTES };
        let mut waiting = link.post_recv(post);
        filling.recv_timeout(Duration::from_secs(20)).unwrap();
        let meanwhile = fabric.holdings();
        assert!(meanwhile.connections >= 3 && meanwhile.streams > 0, "{meanwhile:?}");
        assert!(meanwhile.pool_bytes_lent >= POOLED_BYTES, "{meanwhile:?}");
        child.kill().unwrap();
        let killed = Instant::now();
        let lost = waiting.wait_until(soon()).map(|_| ());
        assert!(matches!(lost, Err(TransportError::PeerLost { peer: PeerId(1), .. })), "{lost:?}");
        assert!(killed.elapsed() < LOSS_MAX, "{:?}", killed.elapsed());
        child.wait().unwrap();
        let lost = never_sent.wait_until(soon()).map(|_| ());
        assert!(matches!(lost, Err(TransportError::PeerLost { .. })), "{lost:?}");
        drop((tell, child, link, mesh, waiting, never_sent));
        let settled = soon();
        let is_more =
            |now: Footprint| now.descriptors > before.descriptors || now.threads > before.threads;
        while Arc::strong_count(&held) > 1
            || is_more(Footprint::now())
            || fabric.holdings() != Holdings::default()
        {
            let (held, now) = (Arc::strong_count(&held), Footprint::now());
            let holdings = fabric.holdings();
            assert!(Instant::now() < settled, "{held} {before:?} {now:?} {holdings:?}");
            std::thread::yield_now();
        }
    });
}

#[test]
fn meshes_that_come_and_go_leave_nothing_behind() {
    let test = "endurance::meshes_that_come_and_go_leave_nothing_behind";
    come_and_go(test, 1000, || Some(quic_fabrics(2)));
}

#[test]
fn meshes_over_shared_memory_come_and_go_and_leave_nothing_behind() {
    let test = "endurance::meshes_over_shared_memory_come_and_go_and_leave_nothing_behind";
    come_and_go(test, 1000, || ucx_fabrics(2, Host::Same));
}

#[test]
fn meshes_over_a_network_of_ucx_come_and_go_and_leave_nothing_behind() {
    let test = "endurance::meshes_over_a_network_of_ucx_come_and_go_and_leave_nothing_behind";
    come_and_go(test, 1000, || ucx_fabrics(2, Host::Other));
}

/// `full` meshes at full scale.
fn come_and_go(test: &str, full: u64, fabrics: impl Fn() -> Option<Vec<Arc<dyn Fabric>>>) {
    alone(test, || {
        let meshes = if full_scale() { full } else { 60 };
        let Some(fabrics) = fabrics() else { return };
        let come_and_go = |epoch: u64| {
            let formed = form_all(&fabrics, Epoch(epoch));
            let members: Vec<_> = formed.into_iter().map(Result::unwrap).collect();
            let post = PostRecv { run: RunId(1), tag: Tag(1), region: Region::host(64), len: 64 };
            let mut waiting = members[1].link(PeerId(0)).unwrap().post_recv(post);
            let (meta, payload) = (FrameMeta::raw(Epoch(epoch), 64), Slice::copy_of(&[1; 64]));
            let frame = SendFrame { run: RunId(1), tag: Tag(1), meta, payload };
            let _sent = members[0].link(PeerId(1)).unwrap().send(frame);
            waiting.wait_until(soon()).unwrap();
        };
        // What the allocator keeps has settled after these.
        (1..=40).for_each(come_and_go);
        let before = Footprint::now();
        (41..=40 + meshes).for_each(come_and_go);
        let settled = soon();
        while Footprint::now().descriptors > before.descriptors {
            assert!(Instant::now() < settled, "{before:?} {:?}", Footprint::now());
            std::thread::yield_now();
        }
        let after = Footprint::now();
        assert_eq!(after.threads, before.threads);
        let grown = after.resident_bytes.saturating_sub(before.resident_bytes);
        assert!(grown < (8 << 20), "{meshes} meshes leave {grown} bytes");
        // Fabrics too: threads and sockets are theirs.
        let fabrics_before = Footprint::now();
        for _ in 0..meshes / 10 {
            drop(quic_fabrics(2));
        }
        let settled = soon();
        while Footprint::now().threads > fabrics_before.threads
            || Footprint::now().descriptors > fabrics_before.descriptors
        {
            assert!(Instant::now() < settled, "{fabrics_before:?} {:?}", Footprint::now());
            std::thread::yield_now();
        }
    });
}

//! Several bulk connections per pair of peers, what overtakes what, and what is allocated.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_transport::{
    Completion, Fabric, FabricAddress, FrameMeta, InProcessHub, Link, PeerId, PostRecv, Priority,
    QuicFabric, Received, Role, RunId, SendFrame, Slice, Tag, Transport, TransportError,
};

use crate::alone::alone;
use crate::support::{EPOCH, Host, form_all, identity, node_name, quic_config, soon, ucx_fabrics};
use crate::tracking::{LARGE_BYTES, allocations, own_allocations};

const RUN: RunId = RunId(1);

fn fabrics(lanes: &[u8]) -> Vec<Arc<dyn Fabric>> {
    let bind = |(rank, lanes): (usize, &u8)| {
        let mut config = quic_config(identity(Role::Node, &node_name(rank)));
        config.bulk_lanes = *lanes;
        QuicFabric::bind(&config).unwrap()
    };
    lanes.iter().enumerate().map(bind).collect()
}

fn mesh(fabrics: &[Arc<dyn Fabric>]) -> Vec<Arc<dyn Transport>> {
    form_all(fabrics, EPOCH).into_iter().map(Result::unwrap).collect()
}

fn link(members: &[Arc<dyn Transport>], at: usize, to: u32) -> Arc<dyn Link> {
    members[at].link(PeerId(to)).unwrap()
}

fn post(at: &Arc<dyn Transport>, from: u32, tag: u64, len: usize) -> Completion<Received> {
    let post = PostRecv { run: RUN, tag: Tag(tag), region: at.allocate(len), len };
    at.link(PeerId(from)).unwrap().post_recv(post)
}

fn send(link: &Arc<dyn Link>, tag: u64, priority: Priority, payload: Slice) -> Completion<()> {
    let meta = FrameMeta { priority, ..FrameMeta::raw(EPOCH, payload.len() as u32) };
    link.send(SendFrame { run: RUN, tag: Tag(tag), meta, payload })
}

#[test]
fn every_class_and_size_arrives_whatever_the_numbers_of_lanes() {
    let fabrics = fabrics(&[1, 4, 2]);
    let lanes = fabrics.iter().map(|fabric| match fabric.address() {
        FabricAddress::Quic { bulk, .. } => bulk.as_slice().len(),
        other => panic!("{other}"),
    });
    assert_eq!(lanes.collect::<Vec<_>>(), [1, 4, 2]);
    let members = mesh(&fabrics);
    for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1), (2, 0)] {
        let link = link(&members, from, to);
        let mut waiting = Vec::new();
        for tag in 0..24_usize {
            let bytes = vec![(tag * 7 + from) as u8; tag * 40_000];
            let receiving = post(&members[to as usize], from as u32, tag as u64, bytes.len());
            let priority = Priority::ALL[tag % 3];
            let sending = send(&link, tag as u64, priority, Slice::copy_of(&bytes));
            waiting.push((bytes, receiving, sending));
        }
        for (bytes, mut receiving, mut sending) in waiting {
            let received = receiving.wait_until(soon()).unwrap();
            assert!(received.region.bytes()[..received.len] == bytes[..]);
            sending.wait_until(soon()).unwrap();
        }
    }
}

/// Without classes an urgent frame never comes first; with them it does, unless this thread gets no
/// turn while the large one travels.
#[test]
fn what_is_urgent_overtakes_what_is_large() {
    let fabrics = fabrics(&[1, 1]);
    let members = mesh(&fabrics);
    let link = link(&members, 0, 1);
    let payload = Slice::copy_of(&vec![1; 128 << 20]);
    let overtaken = (0..8).map(|attempt| attempt * 10).any(|tag| {
        // Frames leave in the order of sending or, where grants come later, of posting.
        let mut begun = post(&members[1], 0, tag + 2, 1);
        let mut large = post(&members[1], 0, tag + 1, payload.len());
        let urgent = [tag + 3, tag + 4].map(|tag| post(&members[1], 0, tag, 64));
        // In one class the order is kept, so the large frame is on its way after this one has come.
        let _first = send(&link, tag + 2, Priority::Bulk, Slice::copy_of(&[1]));
        let _large = send(&link, tag + 1, Priority::Bulk, payload.clone());
        begun.wait_until(soon()).unwrap();
        let small = Slice::copy_of(&[2; 64]);
        let _sent = [tag + 3, tag + 4].map(|tag| send(&link, tag, Priority::Next, small.clone()));
        let [first, second] = urgent.map(|mut urgent| {
            urgent.wait_until(soon()).unwrap();
            !large.is_ready()
        });
        large.wait_until(soon()).unwrap();
        first && second
    });
    assert!(overtaken, "no urgent frame came before 128 MiB that nobody waits for");
}

#[test]
fn nothing_of_a_payloads_size_is_allocated_in_the_steady_state() {
    alone("lanes::nothing_of_a_payloads_size_is_allocated_in_the_steady_state", || {
        let fabrics = fabrics(&[2, 2]);
        let members = mesh(&fabrics);
        let link = link(&members, 0, 1);
        let payload = Slice::copy_of(&vec![3; 8 << 20]);
        assert!(payload.len() > LARGE_BYTES);
        let round = |tag: u64| {
            let mut waiting = post(&members[1], 0, tag, payload.len());
            let mut sent = send(&link, tag, Priority::Exchange, payload.clone());
            waiting.wait_until(soon()).unwrap();
            sent.wait_until(soon()).unwrap();
        };
        (0..8).for_each(round);
        let before = allocations();
        (8..24).for_each(round);
        let (large, all) = allocations();
        assert!(all > before.1, "the allocator is not watched");
        assert_eq!(large - before.0, 0, "allocations of {LARGE_BYTES} bytes and more");
    });
}

/// Posting, sending, waiting and driving are one thread's here, whose allocations are counted. What
/// UCX itself takes from an allocator is its own, and so is what the QUIC stack does for the
/// grants.
fn allocates_nothing(test: &str, fabrics: impl FnOnce() -> Option<Vec<Arc<dyn Fabric>>>) {
    alone(test, || {
        let Some(fabrics) = fabrics() else { return };
        let members = mesh(&fabrics);
        let link = link(&members, 0, 1);
        let round = |tag: u64, bytes: usize| {
            let mut region = members[0].allocate(bytes);
            region.bytes_mut().fill(tag as u8);
            let mut waiting = post(&members[1], 0, tag, bytes);
            let mut sent = send(&link, tag, Priority::Exchange, region.freeze(bytes));
            let received = waiting.wait_until(soon()).unwrap();
            assert!(received.region.bytes()[..bytes].iter().all(|byte| *byte == tag as u8));
            sent.wait_until(soon()).unwrap();
        };
        // Small ones are copied, large ones are fetched by the receiver.
        for bytes in [64, 1 << 20] {
            let first = bytes as u64;
            (first..first + 600).for_each(|tag| round(tag, bytes));
            // A busy machine may make a queue longer than it ever was, but not every time.
            let allocated = [600, 800, 1000].map(|from| {
                own_allocations(|| {
                    // Shows that allocations are seen.
                    drop(std::hint::black_box(Box::new(1_u64)));
                    (first + from..first + from + 200).for_each(|tag| round(tag, bytes));
                })
            });
            let least = allocated.into_iter().min();
            assert_eq!(
                least,
                Some(1),
                "{allocated:?} in 200 frames of {bytes} bytes, and one each"
            );
        }
    });
}

#[test]
fn nothing_is_allocated_in_the_steady_state_in_process() {
    let hub = InProcessHub::new();
    allocates_nothing("lanes::nothing_is_allocated_in_the_steady_state_in_process", || {
        Some(vec![hub.fabric(), hub.fabric()])
    });
}

#[test]
fn nothing_is_allocated_in_the_steady_state_over_shared_memory() {
    allocates_nothing("lanes::nothing_is_allocated_in_the_steady_state_over_shared_memory", || {
        ucx_fabrics(2, Host::Same)
    });
}

#[test]
fn nothing_is_allocated_in_the_steady_state_over_a_network_of_ucx() {
    allocates_nothing(
        "lanes::nothing_is_allocated_in_the_steady_state_over_a_network_of_ucx",
        || ucx_fabrics(2, Host::Other),
    );
}

#[test]
fn a_fabric_without_or_with_too_many_lanes_is_refused() {
    for lanes in [0, 5] {
        let mut config = quic_config(identity(Role::Node, "n0"));
        config.bulk_lanes = lanes;
        let error = QuicFabric::bind(&config).map(|_| ()).unwrap_err();
        assert!(matches!(error, TransportError::Malformed { .. }), "{error}");
    }
}

#[test]
fn the_end_of_one_lane_is_the_end_of_the_link() {
    let fabrics = fabrics(&[2, 2]);
    let members = mesh(&fabrics);
    let mut waiting = post(&members[1], 0, 1, 64);
    fabrics[0].close();
    let begun = Instant::now();
    let lost = waiting.wait_until(soon()).map(|_| ());
    assert!(matches!(lost, Err(TransportError::PeerLost { .. })), "{lost:?}");
    assert!(begun.elapsed() < Duration::from_secs(2));
}

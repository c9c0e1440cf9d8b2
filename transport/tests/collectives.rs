//! Collectives over every transport, and their freedom from deadlock.

use std::sync::Arc;
use std::time::Duration;

use ditmesh_transport::collectives::{
    Collective, Pieces, Transfer, Window, all_gather, all_to_all, broadcast, exchange, gather,
};
use ditmesh_transport::{
    PeerId, Received, RunId, SimConfig, SimNetwork, Slice, Tag, Transport, TransportError,
};
use proptest::prelude::*;

use crate::support::{EPOCH, World, soon};

const TIGHTEST: Window = Window { receives: 1, sends: 1 };

fn piece(from: usize, to: usize, len: usize) -> Slice {
    Slice::copy_of(&vec![(from * 16 + to + 1) as u8; len])
}

fn group(size: usize) -> Vec<PeerId> {
    (0..size as u32).map(PeerId).collect()
}

/// Every member's collective, sizes by `len(from, to)`; `to` is `None` where all get the same.
fn prepare(
    members: &[Arc<dyn Transport>],
    gathering: bool,
    window: Window,
    len: &dyn Fn(usize, usize) -> usize,
) -> Vec<Collective> {
    let group = group(members.len());
    let prepare_one = |(me, transport): (usize, &Arc<dyn Transport>)| {
        let to = |other| if gathering { 0 } else { other };
        let outgoing: Vec<_> =
            (0..members.len()).map(|other| piece(me, to(other), len(me, to(other)))).collect();
        let incoming: Vec<_> = (0..members.len()).map(|from| len(from, to(me))).collect();
        let schedule: Vec<Transfer> = match gathering {
            true => all_gather(&group, group[me]),
            false => all_to_all(&group, group[me]),
        };
        let pieces = Pieces::raw(EPOCH, &outgoing, &incoming);
        Collective::new(Arc::clone(transport), (RunId(1), Tag(1)), &schedule, pieces, window)
    };
    members.iter().enumerate().map(prepare_one).collect()
}

fn check(
    me: usize,
    gathering: bool,
    received: impl Iterator<Item = (usize, Received)>,
    len: &dyn Fn(usize, usize) -> usize,
) -> usize {
    let to = if gathering { 0 } else { me };
    let mut count = 0;
    for (from, received) in received {
        assert_eq!(received.len, len(from, to));
        let expected = piece(from, to, received.len);
        assert_eq!(&received.region.bytes()[..received.len], expected.bytes());
        count += 1;
    }
    count
}

fn over_threads(world: &World, gathering: bool) {
    let len = |from: usize, to: usize| (from * 7919 + to * 104_729) % 50_000;
    let members = world.members.len();
    let all = prepare(&world.members, gathering, TIGHTEST, &len);
    std::thread::scope(|scope| {
        for (me, collective) in all.into_iter().enumerate() {
            scope.spawn(move || {
                let received = collective.wait(soon()).unwrap();
                let count = check(me, gathering, received.into_iter(), &len);
                assert_eq!(count, members - 1);
            });
        }
    });
}

#[test]
fn collectives_between_threads_at_the_smallest_window() {
    over_threads(&World::in_process(5), false);
    over_threads(&World::in_process(5), true);
    over_threads(&World::quic(4), false);
    over_threads(&World::quic(4), true);
}

/// Polls every member and lets virtual time pass, until all are done.
fn drive(network: &SimNetwork, all: &mut [Collective]) -> Result<(), TransportError> {
    loop {
        let mut done = true;
        for collective in all.iter_mut() {
            done &= collective.poll()?;
        }
        if done {
            return Ok(());
        }
        assert!(network.advance(), "deadlock: nothing is under way and not all are done");
    }
}

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    members: usize,
    lens: Vec<usize>,
    gathering: bool,
    receives: usize,
    sends: usize,
    loss_per_million: u32,
    latency_max_us: u64,
}

fn any_case() -> impl Strategy<Value = Case> {
    let network = (any::<u64>(), 0..300_000_u32, 0..20_000_u64);
    let work = (2..7_usize, prop::collection::vec(0..3000_usize, 64), any::<bool>());
    (network, work, 1..3_usize, 1..3_usize).prop_map(
        |(
            (seed, loss_per_million, latency_max_us),
            (members, lens, gathering),
            receives,
            sends,
        )| {
            Case {
                seed,
                members,
                lens,
                gathering,
                receives,
                sends,
                loss_per_million,
                latency_max_us,
            }
        },
    )
}

fn simulate(case: &Case) -> Duration {
    let network = SimNetwork::new(
        case.seed,
        SimConfig {
            epoch: EPOCH,
            latency_min: Duration::ZERO,
            latency_max: Duration::from_micros(case.latency_max_us),
            loss_per_million: case.loss_per_million,
            bandwidth_bytes_per_s: 10_000_000,
            ..SimConfig::default()
        },
    );
    let members: Vec<_> =
        group(case.members).into_iter().map(|peer| network.transport(peer)).collect();
    let len = |from: usize, to: usize| case.lens[from * 8 + to];
    let window = Window { receives: case.receives, sends: case.sends };
    let mut all = prepare(&members, case.gathering, window, &len);
    drive(&network, &mut all).unwrap();
    for (me, collective) in all.into_iter().enumerate() {
        let count = check(me, case.gathering, collective.into_received().into_iter(), &len);
        assert_eq!(count, case.members - 1);
    }
    network.now()
}

fn cases() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn any_sizes_delays_losses_and_windows_complete(case in any_case()) {
        simulate(&case);
    }

    #[test]
    fn the_same_seed_gives_the_same_history(case in any_case()) {
        prop_assert_eq!(simulate(&case), simulate(&case));
    }
}

#[test]
fn exchange_broadcast_and_gather_move_what_they_say() {
    let world = World::sim(3);
    let network = SimNetwork::new(1, SimConfig { epoch: EPOCH, ..SimConfig::default() });
    let members: Vec<_> = group(3).into_iter().map(|peer| network.transport(peer)).collect();
    drop(world);
    let group = group(3);
    let run = |tag: u64, schedules: Vec<Vec<Transfer>>| -> Vec<Vec<usize>> {
        let mut all: Vec<_> = schedules
            .iter()
            .enumerate()
            .map(|(me, schedule)| {
                let outgoing: Vec<_> = (0..3).map(|_| piece(me, 0, 10)).collect();
                let pieces = Pieces::raw(EPOCH, &outgoing, &[10, 10, 10]);
                let ids = (RunId(1), Tag(tag));
                Collective::new(Arc::clone(&members[me]), ids, schedule, pieces, TIGHTEST)
            })
            .collect();
        drive(&network, &mut all).unwrap();
        all.into_iter().map(|done| done.into_received().into_keys().collect()).collect()
    };
    let pair = &group[..2];
    let swapped = run(1, pair.iter().map(|me| exchange(pair, *me)).collect());
    assert_eq!(swapped, vec![vec![1], vec![0]]);
    let spread = run(2, group.iter().map(|me| broadcast(&group, group[1], *me)).collect());
    assert_eq!(spread, vec![vec![0], vec![], vec![0]]);
    let gathered = run(3, group.iter().map(|me| gather(&group, group[2], *me)).collect());
    assert_eq!(gathered, vec![vec![], vec![], vec![0, 1]]);
}

#[test]
fn a_missing_piece_is_an_error_not_a_panic() {
    let world = World::in_process(2);
    let schedule = all_to_all(&group(2), PeerId(0));
    let pieces = Pieces::raw(EPOCH, &[], &[]);
    let transport = Arc::clone(&world.members[0]);
    let mut collective =
        Collective::new(transport, (RunId(1), Tag(1)), &schedule, pieces, Window::default());
    assert!(matches!(collective.poll(), Err(TransportError::Mismatch { .. })));
}

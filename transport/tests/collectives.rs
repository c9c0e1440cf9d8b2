//! Collectives over every transport, in chunks and several at once, and their freedom from
//! deadlock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ditmesh_transport::collectives::{
    Collective, Direction, Pieces, Transfer, Window, all_gather, all_to_all, broadcast, exchange,
    gather, ring,
};
use ditmesh_transport::{
    PeerId, RunId, SimConfig, SimNetwork, Slice, Tag, Transport, TransportError,
};
use proptest::prelude::*;

use crate::support::{EPOCH, World, soon};

const TIGHTEST: Window = Window { receives: 1, sends: 1, chunk_bytes: 7000 };

const KINDS: usize = 6;

/// One collective of some members of a network.
#[derive(Clone, Debug)]
struct Work {
    kind: usize,
    /// Members by number, in the order of the group.
    members: Vec<usize>,
    root: usize,
    lens: Vec<usize>,
    window: Window,
}

impl Work {
    fn group(&self) -> Vec<PeerId> {
        self.members.iter().map(|&member| PeerId(member as u32)).collect()
    }

    fn schedule(&self, own: usize) -> Vec<Transfer> {
        let group = self.group();
        let (me, root) = (group[own], group[self.root % group.len()]);
        match self.kind {
            0 => all_to_all(&group, me),
            1 => all_gather(&group, me),
            2 => ring(&group, me),
            3 => exchange(&group, me),
            4 => broadcast(&group, root, me),
            _ => gather(&group, root, me),
        }
    }

    /// Bytes of the piece that member `from` brings for member `to`.
    fn bytes(&self, from: usize, to: usize) -> Vec<u8> {
        let root = self.root % self.members.len();
        let (from, to) = match self.kind {
            0 => (from, to),
            4 => (root, 0),
            _ => (from, 0),
        };
        let len = self.lens[(from * 8 + to) % self.lens.len()];
        (0..len).map(|at| (at * 31 + from * 16 + to + self.kind) as u8).collect()
    }

    /// The collective of the member `own`, which brings only what is its own.
    fn of(&self, own: usize, transport: &Arc<dyn Transport>, tag: Tag) -> Collective {
        let schedule = self.schedule(own);
        let to_all = self.kind == 0;
        let brings = |t: &&Transfer| {
            let root = self.root % self.members.len();
            let is_own = if self.kind == 4 { own == root } else { t.piece == own };
            t.direction == Direction::SendTo && (to_all || is_own)
        };
        let slice = |t: &Transfer| (t.piece, Slice::copy_of(&self.bytes(own, t.piece)));
        let comes = schedule.iter().filter(|t| t.direction == Direction::RecvFrom);
        let pieces = Pieces {
            epoch: EPOCH,
            outgoing: schedule.iter().filter(brings).map(slice).collect(),
            incoming_bytes: comes.map(|t| (t.piece, self.bytes(t.piece, own).len())).collect(),
        };
        let ids = (RunId(1), tag);
        Collective::new(Arc::clone(transport), ids, &schedule, pieces, self.window).unwrap()
    }

    fn check(&self, own: usize, received: BTreeMap<usize, Vec<Slice>>) {
        let comes = self.schedule(own);
        let comes = comes.iter().filter(|t| t.direction == Direction::RecvFrom).count();
        assert_eq!(received.len(), comes);
        for (from, chunks) in received {
            let bytes: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.bytes().to_vec()).collect();
            assert_eq!(bytes, self.bytes(from, own), "{self:?}");
            assert!(chunks.iter().all(|chunk| chunk.len() <= self.window.chunk_bytes.max(1)));
        }
    }
}

fn over_threads(world: &World, kind: usize) {
    let lens = (0..64).map(|index| index * 7919 % 50_000).collect();
    let members = (0..world.members.len()).collect();
    let work = Work { kind, members, root: 1, lens, window: TIGHTEST };
    std::thread::scope(|scope| {
        for (own, transport) in world.members.iter().enumerate() {
            let work = &work;
            scope.spawn(move || {
                let collective = work.of(own, transport, Tag((kind as u64) << 32));
                work.check(own, collective.wait(soon()).unwrap());
            });
        }
    });
}

#[test]
fn collectives_between_threads_at_the_smallest_window() {
    let (memory, quic) = (World::in_process(5), World::quic(4));
    for kind in 0..KINDS {
        over_threads(&memory, kind);
        over_threads(&quic, kind);
    }
}

/// Polls every member and lets virtual time pass, until all are done.
fn drive(
    network: &SimNetwork,
    all: &mut [(usize, usize, Collective)],
) -> Result<(), TransportError> {
    loop {
        let mut done = true;
        for (_, _, collective) in all.iter_mut() {
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
    works: Vec<Work>,
    loss_per_million: u32,
    latency_max_us: u64,
}

/// Members of a network; groups are any of them in any order.
const MEMBERS: usize = 7;

fn any_work() -> impl Strategy<Value = Work> {
    let members = Just((0..MEMBERS).collect::<Vec<_>>()).prop_shuffle();
    let lens = prop::collection::vec(0..3000_usize, 64);
    let window = (0..4_usize, 0..4_usize, 1..1200_usize);
    (0..KINDS, members, 1..=MEMBERS, 0..MEMBERS, lens, window).prop_map(
        |(kind, mut members, size, root, lens, (receives, sends, chunk))| {
            members.truncate(size);
            // Small chunks of short pieces only: every chunk is a frame.
            let chunk_bytes = chunk.max(lens.iter().max().copied().unwrap_or(0) / 12);
            let window = Window { receives, sends, chunk_bytes };
            Work { kind, members, root, lens, window }
        },
    )
}

fn any_case() -> impl Strategy<Value = Case> {
    let works = prop::collection::vec(any_work(), 1..4);
    (any::<u64>(), works, 0..300_000_u32, 0..20_000_u64).prop_map(
        |(seed, works, loss_per_million, latency_max_us)| Case {
            seed,
            works,
            loss_per_million,
            latency_max_us,
        },
    )
}

/// All collectives of a case at once; the virtual time they took.
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
    let transports: Vec<_> =
        (0..MEMBERS).map(|peer| network.transport(PeerId(peer as u32))).collect();
    let mut all = Vec::new();
    for (number, work) in case.works.iter().enumerate() {
        for (own, &member) in work.members.iter().enumerate() {
            let tag = Tag((number as u64) << 32);
            all.push((number, own, work.of(own, &transports[member], tag)));
        }
    }
    drive(&network, &mut all).unwrap();
    for (number, own, collective) in all {
        case.works[number].check(own, collective.into_received());
    }
    network.now()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn any_groups_sizes_chunks_delays_losses_and_windows_complete_several_at_once(case in any_case()) {
        simulate(&case);
    }

    #[test]
    fn the_same_seed_gives_the_same_history(case in any_case()) {
        prop_assert_eq!(simulate(&case), simulate(&case));
    }
}

/// Who passes a piece on does not wait for all of it: virtual time of a tree of three levels.
#[test]
fn chunks_are_passed_on_while_the_next_ones_come() {
    let took = |chunk_bytes| {
        let window = Window { receives: 512, sends: 512, chunk_bytes };
        let work =
            Work { kind: 4, members: (0..5).collect(), root: 0, lens: vec![1_000_000], window };
        simulate(&Case { seed: 1, works: vec![work], loss_per_million: 0, latency_max_us: 50 })
    };
    let (whole, chunked) = (took(usize::MAX), took(10_000));
    assert!(chunked.as_secs_f64() < 0.8 * whole.as_secs_f64(), "{whole:?} {chunked:?}");
}

#[test]
fn a_missing_piece_is_an_error_not_a_panic() {
    let world = World::in_process(2);
    let schedule = all_to_all(&[PeerId(0), PeerId(1)], PeerId(0));
    let (outgoing, incoming_bytes) = (BTreeMap::new(), BTreeMap::new());
    let pieces = Pieces { epoch: EPOCH, outgoing, incoming_bytes };
    let transport = Arc::clone(&world.members[0]);
    let collective =
        Collective::new(transport, (RunId(1), Tag(1)), &schedule, pieces, Window::default());
    assert!(matches!(collective.err(), Some(TransportError::Mismatch { .. })));
}

//! What each collective moves between four members in this process, over memory and over QUIC.
//!
//! `cargo run -p ditmesh-transport --example collectives [-- PIECE_MIB [ROUNDS]]`: bytes that all
//! members received together per second, median of interleaved rounds with the spread.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_transport::collectives::{
    Collective, Direction, Pieces, Transfer, Window, all_gather, all_to_all, broadcast, gather,
    ring,
};
use ditmesh_transport::{
    ClusterCa, Epoch, Fabric, InProcessHub, MeshForm, PeerAddress, PeerId, QuicConfig, QuicFabric,
    Role, RunId, Slice, Tag, Transport,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;
type Schedule = fn(&[PeerId], PeerId) -> Vec<Transfer>;
/// Name, schedule, and whether members pass on what came.
type Kind = (&'static str, Schedule, bool);

const EPOCH: Epoch = Epoch(1);
const MEMBERS: u32 = 4;
const SCHEDULES: [Kind; 5] = [
    ("all-to-all", all_to_all, false),
    ("all-gather", all_gather, false),
    ("ring", ring, true),
    ("broadcast", |group, me| broadcast(group, PeerId(0), me), true),
    ("gather", |group, me| gather(group, PeerId(0), me), false),
];

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let mebibytes: usize = arguments.next().map_or(Ok(8), |text| text.parse())?;
    let rounds: u64 = arguments.next().map_or(Ok(7), |text| text.parse())?;
    println!("{MEMBERS} members, pieces of {mebibytes} MiB, {rounds} rounds");
    let (hub, authority) = (InProcessHub::new(), ClusterCa::generate("bench")?);
    let memory = (0..MEMBERS).map(|_| Ok(hub.fabric()));
    let quic = (0..MEMBERS).map(|rank| {
        let identity = authority.issue(Role::Node, &format!("n{rank}"))?;
        let config = QuicConfig::new(identity, "127.0.0.1:0".parse()?, "127.0.0.1:0".parse()?);
        Ok(QuicFabric::bind(&config)? as Arc<dyn Fabric>)
    });
    measure("in-process", memory.collect::<Outcome<_>>()?, mebibytes << 20, rounds)?;
    measure("quic", quic.collect::<Outcome<_>>()?, mebibytes << 20, rounds)
}

fn measure(name: &str, fabrics: Vec<Arc<dyn Fabric>>, bytes: usize, rounds: u64) -> Outcome<()> {
    let members = form(&fabrics)?;
    let mut rates = SCHEDULES.map(|_| Vec::new());
    for round in 0..=rounds {
        for (index, kind) in SCHEDULES.iter().enumerate() {
            let tag = Tag((round * SCHEDULES.len() as u64 + index as u64) << 32);
            let begun = Instant::now();
            let moved = carry_out(&members, kind, tag, bytes)?;
            // The first round finds the packet size and fills the pool.
            if let Some(rates) = rates.get_mut(index).filter(|_| round > 0) {
                rates.push(moved as f64 / begun.elapsed().as_secs_f64() / 1e9);
            }
        }
    }
    for ((schedule, ..), mut rates) in SCHEDULES.iter().zip(rates) {
        rates.sort_by(f64::total_cmp);
        let at = |index: usize| rates.get(index).copied().unwrap_or(f64::NAN);
        let (median, low, high) = (at(rates.len() / 2), at(0), at(rates.len() - 1));
        println!("{name:10} {schedule:10} {median:5.2} GB/s ({low:.2}-{high:.2})");
    }
    Ok(())
}

/// One collective, every member on a thread of its own; the bytes that were received.
fn carry_out(
    members: &[Arc<dyn Transport>],
    &(_, schedule, passes_on): &Kind,
    tag: Tag,
    bytes: usize,
) -> Outcome<usize> {
    let group: Vec<PeerId> = (0..MEMBERS).map(PeerId).collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    let member = |transport: &Arc<dyn Transport>| -> Outcome<usize> {
        let transfers = schedule(&group, transport.local());
        let comes = transfers.iter().filter(|t| t.direction == Direction::RecvFrom);
        // What comes in an earlier round is passed on; the rest is this member's own.
        let comes_before = |t: &Transfer| {
            let passes = |from: &Transfer| {
                from.direction == Direction::RecvFrom
                    && from.piece == t.piece
                    && from.round < t.round
            };
            passes_on && transfers.iter().any(passes)
        };
        let own = transport.allocate(bytes).freeze(bytes);
        let leaves = transfers.iter().filter(|t| t.direction == Direction::SendTo);
        let outgoing = leaves.filter(|t| !comes_before(t)).map(|t| (t.piece, own.clone()));
        let pieces = Pieces {
            epoch: EPOCH,
            outgoing: outgoing.collect(),
            incoming_bytes: comes.map(|t| (t.piece, bytes)).collect(),
        };
        let (transport, window) = (Arc::clone(transport), Window::default());
        let collective = Collective::new(transport, (RunId(1), tag), &transfers, pieces, window)?;
        let received = collective.wait(deadline)?;
        Ok(received.values().flatten().map(Slice::len).sum())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            members.iter().map(|transport| scope.spawn(|| member(transport))).collect();
        let ended = |_| Err("a member's thread ended badly".into());
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(ended)).sum()
    })
}

fn form(fabrics: &[Arc<dyn Fabric>]) -> Outcome<Vec<Arc<dyn Transport>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let member = |rank: usize| PeerAddress {
        id: PeerId(rank as u32),
        name: format!("n{rank}"),
        address: fabrics[rank].address(),
    };
    runtime.block_on(async {
        let mut forming = Vec::new();
        for (rank, fabric) in fabrics.iter().enumerate() {
            let others = (0..fabrics.len()).filter(|&other| other != rank);
            let form = MeshForm {
                cluster: "bench".to_owned(),
                epoch: EPOCH,
                local: PeerId(rank as u32),
                peers: others.map(member).collect(),
                deadline: Instant::now() + Duration::from_secs(10),
            };
            let fabric = Arc::clone(fabric);
            forming.push(tokio::spawn(async move { fabric.form(form).await }));
        }
        let mut formed = Vec::new();
        for transport in forming {
            formed.push(transport.await??);
        }
        Ok(formed)
    })
}

//! One-way throughput and round trips between two members in this process.
//!
//! `cargo run -p ditmesh-transport --example throughput [-- MESSAGE_MIB [ROUNDS]]`: per transport
//! the median of the rounds, the spread, and CPU seconds per GB (1e9 bytes) of the whole process.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_transport::{
    ClusterCa, Epoch, Fabric, FrameMeta, InProcessHub, Link, MeshForm, PeerAddress, PeerId,
    PostRecv, QuicConfig, QuicFabric, Role, RunId, SendFrame, Slice, Tag, Transport,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const EPOCH: Epoch = Epoch(1);
const RUN: RunId = RunId(1);
const MESSAGES_PER_ROUND: u64 = 16;
const POSTED_AHEAD: u64 = 4;
const ROUND_TRIPS: u64 = 500;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let mebibytes: usize = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let rounds: u64 = arguments.next().map_or(Ok(5), |text| text.parse())?;
    println!("{MESSAGES_PER_ROUND} messages of {mebibytes} MiB a round, {rounds} rounds");
    let hub = InProcessHub::new();
    measure("in-process", [hub.fabric(), hub.fabric()], mebibytes << 20, rounds)?;
    for mtu in [1472, 8952] {
        let fabrics = [quic(mtu, "n0")?, quic(mtu, "n1")?];
        measure(&format!("quic, {mtu} bytes"), fabrics, mebibytes << 20, rounds)?;
    }
    Ok(())
}

fn quic(mtu_bytes: u16, name: &str) -> Outcome<Arc<dyn Fabric>> {
    static AUTHORITY: std::sync::OnceLock<ClusterCa> = std::sync::OnceLock::new();
    if AUTHORITY.get().is_none() {
        let _ = AUTHORITY.set(ClusterCa::generate("bench")?);
    }
    let authority = AUTHORITY.get().ok_or("no authority")?;
    let loopback = "127.0.0.1:0".parse()?;
    let mut config = QuicConfig::new(authority.issue(Role::Node, name)?, loopback, loopback);
    config.mtu_bytes = mtu_bytes;
    config.idle_timeout = Duration::from_secs(10);
    Ok(QuicFabric::bind(&config)?)
}

fn measure(name: &str, fabrics: [Arc<dyn Fabric>; 2], bytes: usize, rounds: u64) -> Outcome<()> {
    let [sender, receiver] = form(&fabrics)?;
    let payload = Slice::copy_of(&vec![7; bytes]);
    let mut rates = Vec::new();
    let cpu_before = cpu_seconds();
    for round in 0..=rounds {
        let seconds = one_way(&sender, &receiver, &payload, round * MESSAGES_PER_ROUND)?;
        // The first round finds the packet size and fills the pool.
        if round > 0 {
            rates.push((MESSAGES_PER_ROUND * bytes as u64) as f64 / seconds / 1e9);
        }
    }
    let moved = ((rounds + 1) * MESSAGES_PER_ROUND * bytes as u64) as f64 / 1e9;
    let cpu_per_gb = (cpu_seconds() - cpu_before) / moved;
    rates.sort_by(f64::total_cmp);
    let (low, high) = (rates.first().unwrap_or(&0.0), rates.last().unwrap_or(&0.0));
    let median = rates.get(rates.len() / 2).unwrap_or(&0.0);
    let trip = round_trip(&sender, &receiver)?;
    println!(
        "{name:18} {median:5.2} GB/s ({low:.2}-{high:.2}), {cpu_per_gb:.2} CPU s/GB, \
         64-byte round trip {:.0} us",
        trip.as_secs_f64() * 1e6
    );
    Ok(())
}

fn form(fabrics: &[Arc<dyn Fabric>; 2]) -> Outcome<[Arc<dyn Transport>; 2]> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let form = |local: u32| {
        let other = 1 - local;
        MeshForm {
            cluster: "bench".to_owned(),
            epoch: EPOCH,
            local: PeerId(local),
            peers: vec![PeerAddress {
                id: PeerId(other),
                name: format!("n{other}"),
                address: fabrics[other as usize].address(),
            }],
            deadline: Instant::now() + Duration::from_secs(10),
        }
    };
    let (a, b) = runtime
        .block_on(async { tokio::join!(fabrics[0].form(form(0)), fabrics[1].form(form(1))) });
    Ok([a?, b?])
}

fn one_way(
    sender: &Arc<dyn Transport>,
    receiver: &Arc<dyn Transport>,
    payload: &Slice,
    first_tag: u64,
) -> Outcome<f64> {
    let (to, from) = (sender.link(PeerId(1))?, receiver.link(PeerId(0))?);
    let deadline = Instant::now() + Duration::from_secs(120);
    let begun = Instant::now();
    let sending = {
        let payload = payload.clone();
        std::thread::spawn(move || -> Outcome<()> {
            for tag in first_tag..first_tag + MESSAGES_PER_ROUND {
                send(&to, tag, payload.clone()).wait_until(deadline)?;
            }
            Ok(())
        })
    };
    let mut posted = std::collections::VecDeque::new();
    let mut next = first_tag;
    for _ in 0..MESSAGES_PER_ROUND {
        while next < first_tag + MESSAGES_PER_ROUND && (posted.len() as u64) < POSTED_AHEAD {
            let region = receiver.allocate(payload.len());
            let post = PostRecv { run: RUN, tag: Tag(next), region, len: payload.len() };
            posted.push_back(from.post_recv(post));
            next += 1;
        }
        if let Some(mut waiting) = posted.pop_front() {
            waiting.wait_until(deadline)?;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    sending.join().map_err(|_| "the sending thread ended badly")??;
    Ok(seconds)
}

fn round_trip(a: &Arc<dyn Transport>, b: &Arc<dyn Transport>) -> Outcome<Duration> {
    let (at_a, at_b) = (a.link(PeerId(1))?, b.link(PeerId(0))?);
    let deadline = Instant::now() + Duration::from_secs(60);
    let small = Slice::copy_of(&[1; 64]);
    let tags = 1_000_000..1_000_000 + ROUND_TRIPS;
    let post = |link: &Arc<dyn Link>, transport: &Arc<dyn Transport>, tag| {
        let region = transport.allocate(64);
        link.post_recv(PostRecv { run: RUN, tag: Tag(tag), region, len: 64 })
    };
    let mut answers: Vec<_> = tags.clone().map(|tag| post(&at_a, a, tag)).collect();
    let mut questions: Vec<_> = tags.clone().map(|tag| post(&at_b, b, tag)).collect();
    let answering = {
        let (small, tags) = (small.clone(), tags.clone());
        std::thread::spawn(move || -> Outcome<()> {
            for (question, tag) in questions.iter_mut().zip(tags) {
                question.wait_until(deadline)?;
                drop(send(&at_b, tag, small.clone()));
            }
            Ok(())
        })
    };
    let begun = Instant::now();
    for (answer, tag) in answers.iter_mut().zip(tags) {
        drop(send(&at_a, tag, small.clone()));
        answer.wait_until(deadline)?;
    }
    let trip = begun.elapsed() / u32::try_from(ROUND_TRIPS)?;
    answering.join().map_err(|_| "the answering thread ended badly")??;
    Ok(trip)
}

fn send(link: &Arc<dyn Link>, tag: u64, payload: Slice) -> ditmesh_transport::Completion<()> {
    let meta = FrameMeta::raw(EPOCH, u32::try_from(payload.len()).unwrap_or(u32::MAX));
    link.send(SendFrame { run: RUN, tag: Tag(tag), meta, payload })
}

/// User and system time of this process (Linux; clock ticks of 10 ms), else 0.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

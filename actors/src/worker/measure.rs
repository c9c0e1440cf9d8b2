//! Measuring links of a mesh that has just been formed, and of one that runs.
//!
//! Owns the order in which the pairs do it and the time it may take. The loads themselves are
//! [`ditmesh_transport::load`]'s. Invariants: every rank takes the pairs in the order of the list,
//! so the first that is not done can go on; a link that cannot be measured is a link without
//! figures, never a mesh that is not formed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_transport::load::{PingPong, Stream};
use ditmesh_transport::{Epoch, PeerId, RunId, Transport, TransportError};

use crate::protocol::LinkMeasured;

/// Round trips per link; the median counts.
const ROUND_TRIPS: u64 = 32;
/// Of one of them, bytes.
const ROUND_TRIP_BYTES: usize = 64;
/// Streams per link; the fastest counts, because the first one opens the congestion window.
const STREAMS: u64 = 2;
/// Messages of a stream and their bytes: 4 MiB, a few milliseconds at 10 Gbit/s.
const STREAM_MESSAGES: u64 = 8;
const MESSAGE_BYTES: usize = 512 << 10;
/// Messages under way at a time.
const IN_FLIGHT: u64 = 4;
/// The longest that one pair may take; slower links stay without figures.
const PAIR_MAX: Duration = Duration::from_secs(2);
/// Runs of measurements; those of requests count from 1.
const FIRST_RUN: u64 = 1 << 62;
/// Those of measurements in a mesh that runs.
const FIRST_RUN_AGAIN: u64 = FIRST_RUN + (1 << 61);
/// The round trips and each stream are one.
const RUNS_PER_PAIR: u64 = STREAMS + 1;

/// Measures the links of `rank` that are among `pairs`, on a thread of its own, within `deadline`.
pub(super) async fn links(
    transport: Arc<dyn Transport>,
    epoch: u64,
    rank: u32,
    pairs: Vec<(u32, u32)>,
    deadline: Instant,
) -> BTreeMap<u32, LinkMeasured> {
    if !pairs.iter().any(|&(a, b)| a == rank || b == rank) {
        return BTreeMap::new();
    }
    aside(move || all(&*transport, epoch, rank, (FIRST_RUN, &pairs), deadline)).await
}

/// Measures the link between two ranks of a mesh that may be running, on the order `number`; the
/// first of them has the figures.
pub(super) async fn again(
    transport: Arc<dyn Transport>,
    epoch: u64,
    rank: u32,
    number: u64,
    pair: (u32, u32),
) -> Option<LinkMeasured> {
    let deadline = Instant::now() + PAIR_MAX;
    let first_run = FIRST_RUN_AGAIN + number * RUNS_PER_PAIR;
    let measured = aside(move || all(&*transport, epoch, rank, (first_run, &[pair]), deadline));
    measured.await.into_values().next()
}

/// On a thread of its own.
async fn aside(
    measure: impl FnOnce() -> BTreeMap<u32, LinkMeasured> + Send + 'static,
) -> BTreeMap<u32, LinkMeasured> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let measuring = move || {
        // Whoever asked may have given the mesh up.
        let _ = tell.send(measure());
    };
    // A plain thread: one that waits for a frame drives the sockets, a task's thread may not.
    match std::thread::Builder::new().name("ditmesh-measure".into()).spawn(measuring) {
        Ok(_) => told.await.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, "links are not measured");
            BTreeMap::new()
        }
    }
}

fn all(
    transport: &dyn Transport,
    epoch: u64,
    rank: u32,
    (first_run, pairs): (u64, &[(u32, u32)]),
    deadline: Instant,
) -> BTreeMap<u32, LinkMeasured> {
    let mut measured = BTreeMap::new();
    for (number, &(a, b)) in (0_u64..).zip(pairs) {
        let peer = match rank {
            rank if rank == a => b,
            rank if rank == b => a,
            _ => continue,
        };
        let deadline = deadline.min(Instant::now() + PAIR_MAX);
        let run = first_run + number * RUNS_PER_PAIR;
        match one(transport, epoch, peer, (run, rank == a), deadline) {
            Ok(figures) => measured.extend(figures.map(|figures| (peer, figures))),
            Err(error) => {
                tracing::info!(rank, peer, %error, "a link is not measured");
                give_up(transport, peer, run);
            }
        }
    }
    measured
}

/// Whatever is still posted or under way ends, at both ends.
fn give_up(transport: &dyn Transport, peer: u32, first_run: u64) {
    if let Ok(link) = transport.link(PeerId(peer)) {
        let runs = first_run..first_run + RUNS_PER_PAIR;
        runs.for_each(|run| link.abort_run(RunId(run), "the link could not be measured in time"));
    }
}

/// One link; the end that leads has the figures.
fn one(
    transport: &dyn Transport,
    epoch: u64,
    peer: u32,
    (run, leads): (u64, bool),
    deadline: Instant,
) -> Result<Option<LinkMeasured>, TransportError> {
    let link = transport.link(PeerId(peer))?;
    let epoch = Epoch(epoch);
    let trips = PingPong { epoch, run: RunId(run), bytes: ROUND_TRIP_BYTES, rounds: ROUND_TRIPS };
    let streams = (1..=STREAMS).map(|at| Stream {
        epoch,
        run: RunId(run + at),
        bytes: MESSAGE_BYTES,
        messages: STREAM_MESSAGES,
        in_flight: IN_FLIGHT,
    });
    if !leads {
        trips.follow(&*link, deadline)?;
        for stream in streams {
            stream.receive(&*link, transport, deadline)?;
        }
        return Ok(None);
    }
    let mut took = trips.lead(&*link, deadline)?;
    took.sort_unstable();
    let round_trip = took.get(took.len() / 2).copied().unwrap_or_default();
    let mut fastest = Duration::MAX;
    for stream in streams {
        fastest = fastest.min(stream.send(&*link, transport, deadline)?);
    }
    let bytes = (STREAM_MESSAGES * MESSAGE_BYTES as u64) as f64;
    Ok(Some(LinkMeasured {
        round_trip_us: u32::try_from(round_trip.as_micros()).unwrap_or(u32::MAX).max(1),
        bytes_per_s: ((bytes / fastest.as_secs_f64().max(1e-9)) as u64).max(1),
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ditmesh_transport::{Fabric, InProcessHub, MeshForm, PeerAddress};

    use super::*;

    /// Members of one mesh, and the fabrics that it ends with.
    async fn mesh(deadline: Instant) -> ([Arc<dyn Transport>; 3], [Arc<dyn Fabric>; 3]) {
        let hub = InProcessHub::new();
        let fabrics = [0; 3].map(|_| hub.fabric());
        let form = |rank: usize| MeshForm {
            cluster: "pets".into(),
            epoch: Epoch(3),
            local: PeerId(rank as u32),
            peers: (0..3)
                .filter(|peer| *peer != rank)
                .map(|peer| PeerAddress {
                    id: PeerId(peer as u32),
                    name: format!("n{peer}"),
                    address: fabrics[peer].address(),
                })
                .collect(),
            deadline,
        };
        let (a, b, c) = tokio::join!(
            fabrics[0].form(form(0)),
            fabrics[1].form(form(1)),
            fabrics[2].form(form(2))
        );
        ([a.unwrap(), b.unwrap(), c.unwrap()], fabrics)
    }

    #[tokio::test]
    async fn the_leading_end_of_each_pair_has_its_figures() {
        let deadline = Instant::now() + Duration::from_secs(20);
        let ([a, b, c], _fabrics) = mesh(deadline).await;
        let pairs = vec![(0, 1), (1, 2), (0, 2)];
        let of = |mesh: Arc<dyn Transport>, rank| links(mesh, 3, rank, pairs.clone(), deadline);
        let (a, b, c) = tokio::join!(of(a, 0), of(b, 1), of(c, 2));
        assert_eq!(a.keys().copied().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(b.keys().copied().collect::<Vec<_>>(), [2]);
        assert!(c.is_empty());
        assert!(a.values().chain(b.values()).all(|link| link.bytes_per_s > 1_000_000));
    }

    #[tokio::test]
    async fn a_link_is_measured_again_and_again_and_after_one_that_was_given_up() {
        let ([a, b, _], _fabrics) = mesh(Instant::now() + Duration::from_secs(20)).await;
        let of = |mesh: &Arc<dyn Transport>, rank, number| {
            again(Arc::clone(mesh), 3, rank, number, (0, 1))
        };
        for number in 1..=2 {
            let (leading, following) = tokio::join!(of(&a, 0, number), of(&b, 1, number));
            assert!(leading.is_some_and(|link| link.bytes_per_s > 1_000_000), "{leading:?}");
            assert_eq!(following, None);
        }
        // The other end has not got the order.
        let begun = Instant::now();
        assert_eq!(of(&a, 0, 3).await, None);
        assert!(begun.elapsed() < 5 * PAIR_MAX);
        let (leading, _) = tokio::join!(of(&a, 0, 4), of(&b, 1, 4));
        assert!(leading.is_some(), "what was given up is in the way");
    }
}

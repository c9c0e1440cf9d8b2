//! What a link promises, the same over every transport.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_transport::{
    Completion, Dtype, FrameMeta, Link, PeerId, PostRecv, Priority, Received, Region, RunId,
    SendFrame, Slice, Tag, TransportError,
};

use crate::support::{EPOCH, Host, World, soon};

const RUN: RunId = RunId(1);

macro_rules! over_every_transport {
    ($($name:ident),* $(,)?) => {
        mod in_process { $(#[test] fn $name() { super::$name(&super::World::in_process(2)); })* }
        mod quic { $(#[test] fn $name() { super::$name(&super::World::quic(2)); })* }
        mod ucx_shm { $(#[test] fn $name() { super::over_ucx(Host::Same, super::$name); })* use super::Host; }
        mod ucx_net { $(#[test] fn $name() { super::over_ucx(Host::Other, super::$name); })* use super::Host; }
        mod sim { $(#[test] fn $name() { super::$name(&super::World::sim(2)); })* }
    };
}

over_every_transport!(
    a_frame_waits_for_its_post,
    a_post_waits_for_its_frame,
    many_tags_find_each_other_in_any_order,
    sizes_may_differ_and_be_zero,
    eight_mebibytes_arrive_unchanged,
    a_reused_tensor_sends_no_payload,
    metadata_arrives,
    an_abort_cancels_at_both_ends,
    a_late_frame_of_an_ended_run_is_dropped,
    closing_resolves_everything_at_both_ends,
    dropping_the_transport_closes_its_links,
    a_deadline_passes_and_the_wait_goes_on,
    a_wrong_size_is_told_to_both_ends,
    a_wrong_shape_is_told_to_both_ends,
    a_wrong_epoch_is_told_to_both_ends,
    a_tag_cannot_be_used_twice,
    a_region_must_hold_what_is_posted,
    an_unknown_peer_has_no_link,
    one_link_survives_the_close_of_another_run,
);

fn over_ucx(host: Host, behaviour: fn(&World)) {
    if let Some(world) = World::ucx(2, host) {
        let (a, b) = ends(&world);
        assert_eq!((a.carrier().name, b.carrier().name), (host.carrier(), host.carrier()));
        behaviour(&world);
    }
}

fn ends(world: &World) -> (Arc<dyn Link>, Arc<dyn Link>) {
    let link = |at: usize, to| world.members[at].link(PeerId(to)).unwrap();
    (link(0, 1), link(1, 0))
}

fn post(link: &Arc<dyn Link>, run: RunId, tag: u64, len: usize) -> Completion<Received> {
    link.post_recv(PostRecv { run, tag: Tag(tag), region: Region::host(len), len })
}

fn send(link: &Arc<dyn Link>, run: RunId, tag: u64, bytes: &[u8]) -> Completion<()> {
    let meta = FrameMeta::raw(EPOCH, bytes.len() as u32);
    link.send(SendFrame { run, tag: Tag(tag), meta, payload: Slice::copy_of(bytes) })
}

fn bytes_of(received: &Received) -> &[u8] {
    &received.region.bytes()[..received.len]
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ seed) as u8).collect()
}

fn a_frame_waits_for_its_post(world: &World) {
    let (a, b) = ends(world);
    let sent = send(&a, RUN, 5, b"hello");
    world.settle();
    assert!(!sent.is_ready());
    let received = world.take(post(&b, RUN, 5, 5)).unwrap();
    assert_eq!(bytes_of(&received), b"hello");
    world.take(sent).unwrap();
}

fn a_post_waits_for_its_frame(world: &World) {
    let (a, b) = ends(world);
    let waiting = post(&b, RUN, 5, 5);
    world.settle();
    assert!(!waiting.is_ready());
    world.take(send(&a, RUN, 5, b"hello")).unwrap();
    assert_eq!(bytes_of(&world.take(waiting).unwrap()), b"hello");
    let (sender, receiver) = (a.stats(), b.stats());
    assert_eq!((sender.frames_sent, sender.bytes_sent), (1, 5));
    assert_eq!((receiver.frames_received, receiver.bytes_received), (1, 5));
}

fn many_tags_find_each_other_in_any_order(world: &World) {
    let (a, b) = ends(world);
    let tags = 300_usize;
    let mut posts = Vec::new();
    let mut sends = Vec::new();
    for at in 0..tags {
        let (posted, sent) = (at * 7 % tags, at * 11 % tags);
        posts.push((posted, post(&b, RUN, posted as u64, posted)));
        sends.push(send(&a, RUN, sent as u64, &pattern(sent, sent)));
    }
    for (tag, waiting) in posts {
        assert_eq!(bytes_of(&world.take(waiting).unwrap()), pattern(tag, tag));
    }
    for sent in sends {
        world.take(sent).unwrap();
    }
}

fn sizes_may_differ_and_be_zero(world: &World) {
    let (a, b) = ends(world);
    for (tag, (there, back)) in [(0, 70_000), (1, 0), (70_001, 3)].into_iter().enumerate() {
        let tag = tag as u64;
        let at_b = post(&b, RUN, tag, there);
        let at_a = post(&a, RUN, tag, back);
        let from_a = send(&a, RUN, tag, &pattern(there, 1));
        let from_b = send(&b, RUN, tag, &pattern(back, 2));
        assert_eq!(bytes_of(&world.take(at_b).unwrap()), pattern(there, 1));
        assert_eq!(bytes_of(&world.take(at_a).unwrap()), pattern(back, 2));
        world.take(from_a).unwrap();
        world.take(from_b).unwrap();
    }
}

fn eight_mebibytes_arrive_unchanged(world: &World) {
    let (a, b) = ends(world);
    let payload = pattern(8 << 20, 3);
    let waiting = post(&b, RUN, 1, payload.len());
    let sent = send(&a, RUN, 1, &payload);
    assert!(bytes_of(&world.take(waiting).unwrap()) == payload);
    world.take(sent).unwrap();
}

fn a_reused_tensor_sends_no_payload(world: &World) {
    let (a, b) = ends(world);
    let mut meta = FrameMeta::raw(EPOCH, 1000);
    meta.reuse = true;
    let waiting = post(&b, RUN, 1, 1000);
    let payload = Slice::empty();
    let sent = a.send(SendFrame { run: RUN, tag: Tag(1), meta: meta.clone(), payload });
    let received = world.take(waiting).unwrap();
    assert_eq!((received.len, received.meta), (0, meta));
    world.take(sent).unwrap();
}

fn metadata_arrives(world: &World) {
    let (a, b) = ends(world);
    let meta = FrameMeta {
        dtype: Dtype::F32.code(),
        shape: [1, 2, 3].into(),
        step: 7,
        patch: 3,
        epoch: EPOCH,
        reuse: false,
        residual: true,
        decision: Some(1),
        priority: Priority::Next,
        traceparent: Some("00-4bf9-00f0-01".to_owned()),
        deadline_ms: Some(12),
    };
    let waiting = post(&b, RUN, 1, 24);
    let payload = Slice::copy_of(&[5; 24]);
    let sent = a.send(SendFrame { run: RUN, tag: Tag(1), meta: meta.clone(), payload });
    assert_eq!(world.take(waiting).unwrap().meta, meta);
    world.take(sent).unwrap();
}

fn assert_cancelled<T: std::fmt::Debug>(result: Result<T, TransportError>, with: &str) {
    match result {
        Err(TransportError::Cancelled { run: RUN, cause }) => assert_eq!(cause, with),
        other => panic!("{other:?}"),
    }
}

fn an_abort_cancels_at_both_ends(world: &World) {
    let (a, b) = ends(world);
    let pending_posts = [post(&a, RUN, 1, 10), post(&b, RUN, 2, 10)];
    let pending_sends = [send(&a, RUN, 3, b"x"), send(&b, RUN, 4, b"x")];
    let untouched = post(&b, RunId(2), 1, 4);
    world.settle();
    b.abort_run(RUN, "the user cancelled");
    for pending in pending_posts {
        assert_cancelled(world.take(pending), "the user cancelled");
    }
    for pending in pending_sends {
        assert_cancelled(world.take(pending), "the user cancelled");
    }
    assert_cancelled(world.take(post(&a, RUN, 9, 1)), "the user cancelled");
    assert_cancelled(world.take(send(&b, RUN, 9, b"x")), "the user cancelled");
    world.take(send(&a, RunId(2), 1, b"next")).unwrap();
    assert_eq!(bytes_of(&world.take(untouched).unwrap()), b"next");
}

fn a_late_frame_of_an_ended_run_is_dropped(world: &World) {
    let (a, b) = ends(world);
    let waiting = post(&b, RUN, 1, 4);
    world.settle();
    b.end_run(RUN);
    assert_cancelled(world.take(waiting), "the run has ended");
    world.take(send(&a, RUN, 1, b"late")).unwrap();
    let next = post(&b, RunId(2), 1, 4);
    world.take(send(&a, RunId(2), 1, b"next")).unwrap();
    assert_eq!(bytes_of(&world.take(next).unwrap()), b"next");
    // It may have travelled on another lane than the next.
    let deadline = soon();
    while b.stats().late_frames_dropped == 0 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(b.stats().late_frames_dropped, 1);
    assert_eq!(b.stats().frames_received, 1);
}

fn assert_lost<T: std::fmt::Debug>(result: Result<T, TransportError>, whom: u32, why: &str) {
    match result {
        Err(TransportError::PeerLost { peer, cause }) => {
            assert_eq!(peer, PeerId(whom));
            assert!(cause.contains(why), "{cause}");
        }
        other => panic!("{other:?}"),
    }
}

fn closing_resolves_everything_at_both_ends(world: &World) {
    let (a, b) = ends(world);
    let (at_a, at_b) = (post(&a, RUN, 1, 10), post(&b, RUN, 2, 10));
    let (from_a, from_b) = (send(&a, RUN, 3, b"x"), send(&b, RUN, 4, b"x"));
    a.close("node n1 was drained");
    assert_lost(world.take(at_a), 1, "node n1 was drained");
    assert_lost(world.take(from_a), 1, "node n1 was drained");
    assert_lost(world.take(at_b), 0, "node n1 was drained");
    assert_lost(world.take(from_b), 0, "node n1 was drained");
    assert!(a.closed().is_some() && b.closed().is_some());
    assert_lost(world.take(post(&b, RUN, 5, 1)), 0, "node n1 was drained");
    assert_lost(world.take(send(&a, RUN, 5, b"x")), 1, "node n1 was drained");
}

fn dropping_the_transport_closes_its_links(world: &World) {
    // The world keeps its members, so close in their name.
    let (_, b) = ends(world);
    let waiting = post(&b, RUN, 1, 10);
    world.members[0].close("rank 0 is leaving");
    assert_lost(world.take(waiting), 0, "rank 0 is leaving");
}

fn a_deadline_passes_and_the_wait_goes_on(world: &World) {
    let (a, b) = ends(world);
    let mut waiting = post(&b, RUN, 1, 4);
    let expired = waiting.wait_until(Instant::now() + Duration::from_millis(5));
    let Err(TransportError::Deadline { what }) = expired else { panic!("{expired:?}") };
    assert!(what.contains("peer 0"), "{what}");
    world.take(send(&a, RUN, 1, b"late")).unwrap();
    assert_eq!(bytes_of(&world.take(waiting).unwrap()), b"late");
}

fn assert_mismatch<T: std::fmt::Debug>(result: Result<T, TransportError>) -> (String, String) {
    match result {
        Err(TransportError::Mismatch { ours, theirs, .. }) => (ours, theirs),
        other => panic!("{other:?}"),
    }
}

fn a_wrong_size_is_told_to_both_ends(world: &World) {
    let (a, b) = ends(world);
    for (tag, posted) in [(1, 101), (2, 99)] {
        let waiting = post(&b, RUN, tag, posted);
        let sent = send(&a, RUN, tag, &[0; 100]);
        let sender = assert_mismatch(world.take(sent));
        assert_eq!(sender, ("100".to_owned(), posted.to_string()));
        let (ours, theirs) = assert_mismatch(world.take(waiting));
        assert!(ours.contains(&posted.to_string()) && theirs.contains("100"), "{ours} {theirs}");
    }
    assert!(a.closed().is_none() && b.closed().is_none());
}

fn a_wrong_shape_is_told_to_both_ends(world: &World) {
    let (a, b) = ends(world);
    let meta = FrameMeta { shape: [3, 9].into(), ..FrameMeta::raw(EPOCH, 0) };
    let payload = Slice::copy_of(&[0; 28]);
    assert_mismatch(world.take(a.send(SendFrame { run: RUN, tag: Tag(1), meta, payload })));
    assert_mismatch(world.take(post(&b, RUN, 1, 28)));
}

fn a_wrong_epoch_is_told_to_both_ends(world: &World) {
    let (a, b) = ends(world);
    let meta = FrameMeta::raw(ditmesh_transport::Epoch(9), 2);
    let waiting = post(&b, RUN, 1, 2);
    let payload = Slice::copy_of(&[0; 2]);
    assert_mismatch(world.take(a.send(SendFrame { run: RUN, tag: Tag(1), meta, payload })));
    assert_mismatch(world.take(waiting));
}

fn a_tag_cannot_be_used_twice(world: &World) {
    let (a, b) = ends(world);
    let first = post(&b, RUN, 1, 2);
    let second = world.take(post(&b, RUN, 1, 2));
    assert!(matches!(second, Err(TransportError::Duplicate { .. })), "{second:?}");
    let kept = send(&a, RUN, 2, b"x");
    let second = world.take(send(&a, RUN, 2, b"x"));
    assert!(matches!(second, Err(TransportError::Duplicate { .. })), "{second:?}");
    world.take(send(&a, RUN, 1, b"ok")).unwrap();
    world.take(first).unwrap();
    assert!(!kept.is_ready());
}

fn a_region_must_hold_what_is_posted(world: &World) {
    let (_, b) = ends(world);
    let region = Region::host(9);
    let waiting = b.post_recv(PostRecv { run: RUN, tag: Tag(1), region, len: 10 });
    assert_mismatch(world.take(waiting));
    let region = Region::host(1);
    let waiting = b.post_recv(PostRecv { run: RUN, tag: Tag(2), region, len: usize::MAX });
    assert!(matches!(world.take(waiting), Err(TransportError::FrameTooLarge { .. })));
}

fn an_unknown_peer_has_no_link(world: &World) {
    let own = world.members[0].link(PeerId(0)).map(|_| ()).unwrap_err();
    assert!(matches!(own, TransportError::NoLink { .. }), "{}: {own}", world.name);
}

fn one_link_survives_the_close_of_another_run(world: &World) {
    let (a, b) = ends(world);
    for run in 2..40 {
        let waiting = post(&b, RunId(run), 1, 3);
        let sent = send(&a, RunId(run), 1, b"abc");
        if run % 3 == 0 {
            b.abort_run(RunId(run), "aborted");
        } else {
            world.take(waiting).unwrap();
            world.take(sent).unwrap();
        }
        a.end_run(RunId(run));
        b.end_run(RunId(run));
    }
    assert!(a.closed().is_none() && b.closed().is_none());
}

/// A device event that somebody else sets.
struct Event(std::sync::Mutex<bool>, std::sync::Condvar);

impl ditmesh_transport::Ready for Event {
    fn wait(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let set = self.1.wait_timeout_while(self.0.lock().unwrap(), left, |set| !*set);
        *set.unwrap().0
    }
}

#[test]
fn a_payload_leaves_only_when_it_is_ready() {
    let ucx = [Host::Same, Host::Other].map(|host| World::ucx(2, host));
    let others = [World::in_process(2), World::quic(2)];
    for world in others.into_iter().chain(ucx.into_iter().flatten()) {
        let (a, b) = ends(&world);
        let event = Arc::new(Event(std::sync::Mutex::new(false), std::sync::Condvar::new()));
        let mut waiting = post(&b, RUN, 1, 4);
        let ready: Arc<dyn ditmesh_transport::Ready> = Arc::clone(&event) as _;
        let payload = Slice::copy_of(b"soon").with_ready(ready);
        let meta = FrameMeta::raw(EPOCH, 4);
        let sent = a.send(SendFrame { run: RUN, tag: Tag(1), meta, payload });
        let early = waiting.wait_until(Instant::now() + Duration::from_millis(20));
        assert!(matches!(early, Err(TransportError::Deadline { .. })), "{early:?}");
        *event.0.lock().unwrap() = true;
        event.1.notify_all();
        assert_eq!(bytes_of(&world.take(waiting).unwrap()), b"soon");
        world.take(sent).unwrap();
    }
}

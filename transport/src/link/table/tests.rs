//! Small frames that come whole: they fill their place at once, or their receiver learns why not.
#![allow(clippy::unwrap_used)]

use super::*;

const EPOCH: Epoch = Epoch(3);
const RUN: RunId = RunId(7);

fn table() -> LinkTable {
    LinkTable::new(PeerId(1), EPOCH, 1 << 20)
}

/// A place of four bytes.
fn post(table: &mut LinkTable, tag: u64) -> (Grant, Completion<Received>) {
    let (completer, waiting) = table.receiving((RUN, Tag(tag)), None);
    let post = PostRecv { run: RUN, tag: Tag(tag), region: Region::host(4), len: 4 };
    (table.post(post, completer).unwrap(), waiting)
}

fn header(grant: Grant, payload_len: u64) -> FrameHeader {
    let Grant { run, tag, slot, .. } = grant;
    FrameHeader { epoch: EPOCH, run, tag, slot, meta_len: 0, payload_len, sequence: 0 }
}

#[test]
fn a_small_frame_fills_its_place_once() {
    let mut table = table();
    let (grant, mut waiting) = post(&mut table, 1);
    let meta = FrameMeta::raw(EPOCH, 4);
    table.came(&header(grant, 4), meta.clone(), b"here").unwrap();
    let received = waiting.try_take().unwrap().unwrap();
    assert_eq!((received.region.bytes(), received.len), (&b"here"[..], 4));
    let stats = table.stats();
    assert_eq!((stats.frames_received, stats.bytes_received), (1, 4));
    let twice = table.came(&header(grant, 4), meta.clone(), b"here");
    assert!(matches!(twice, Err(TransportError::Malformed { .. })), "{twice:?}");
    table.end(RUN);
    table.came(&header(grant, 4), meta, b"late").unwrap();
    assert_eq!(table.stats().late_frames_dropped, 1);
    // Its tag is free again, in another run.
    let (completer, _waiting) = table.receiving((RunId(8), Tag(1)), None);
    let post = PostRecv { run: RunId(8), tag: Tag(1), region: Region::host(4), len: 4 };
    assert!(table.post(post, completer).is_some());
}

#[test]
fn what_does_not_fit_is_told_to_the_receiver_and_what_breaks_the_protocol_is_an_error() {
    let mut table = table();
    let shorter = (FrameMeta::raw(EPOCH, 3), &b"abc"[..]);
    let lies = (FrameMeta::raw(EPOCH, 2), &b"abcd"[..]);
    let stale = (FrameMeta::raw(Epoch(2), 4), &b"abcd"[..]);
    for (tag, (meta, payload)) in (0..).zip([shorter, lies, stale]) {
        let (grant, mut waiting) = post(&mut table, tag);
        table.came(&header(grant, payload.len() as u64), meta, payload).unwrap();
        let told = waiting.try_take().unwrap();
        assert!(matches!(told, Err(TransportError::Mismatch { .. })), "{told:?}");
        // The tag can be posted again.
        let _ = post(&mut table, tag);
    }
    let (grant, mut waiting) = post(&mut table, 9);
    let meta = FrameMeta::raw(EPOCH, 5);
    let larger = table.came(&header(grant, 5), meta.clone(), b"abcde");
    assert!(matches!(larger, Err(TransportError::Malformed { .. })), "{larger:?}");
    let other = table.came(&header(Grant { tag: Tag(8), ..grant }, 4), meta.clone(), b"abcd");
    assert!(matches!(other, Err(TransportError::Malformed { .. })), "{other:?}");
    let epoch = FrameHeader { epoch: Epoch(2), ..header(grant, 4) };
    let stale = table.came(&epoch, meta, b"abcd");
    assert!(matches!(stale, Err(TransportError::StaleEpoch { .. })), "{stale:?}");
    assert!(waiting.try_take().is_none());
    assert_eq!(table.stats().frames_received, 0);
}

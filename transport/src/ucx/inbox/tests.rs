//! Hostile messages straight into the callbacks, as UCX would call them: nothing panics, nothing is
//! written outside a place, and whatever a peer may not do ends its link and no other.
#![allow(clippy::unwrap_used)]

use std::ptr;
use std::sync::Mutex;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::frame::{Grant, HEADER_BYTES};
use crate::ids::{Epoch, RunId, Tag};

/// The link of a test: places of one size for the slots below a bound.
#[derive(Default)]
struct Sink {
    slots: u32,
    place_bytes: usize,
    arrived: Mutex<Vec<Vec<u8>>>,
    granted: Mutex<Vec<Grant>>,
    broken: Mutex<Vec<String>>,
}

impl FrameSink for Sink {
    fn place(&self, header: &FrameHeader, _: &FrameMeta) -> Result<Option<Region>, TransportError> {
        match header.slot {
            // An ended run's.
            u32::MAX => Ok(None),
            slot if slot < self.slots => Ok(Some(Region::host(self.place_bytes))),
            _ => Err(TransportError::malformed("slot: nobody posted it")),
        }
    }

    fn came(
        &self,
        header: &FrameHeader,
        meta: FrameMeta,
        payload: &[u8],
    ) -> Result<(), TransportError> {
        let Some(mut region) = self.place(header, &meta)? else { return Ok(()) };
        let into = region.bytes_mut().get_mut(..payload.len());
        let larger = || TransportError::malformed("frame: larger than its place");
        into.ok_or_else(larger)?.copy_from_slice(payload);
        self.arrived(header, region, meta);
        Ok(())
    }

    fn arrived(&self, header: &FrameHeader, region: Region, _: FrameMeta) {
        let payload = usize::try_from(header.payload_len).unwrap();
        self.arrived.lock().unwrap().push(region.bytes()[..payload].to_vec());
    }

    fn granted(&self, grant: Grant) -> Result<(), TransportError> {
        let mut granted = self.granted.lock().unwrap();
        if granted.contains(&grant) {
            return Err(TransportError::Duplicate { what: "a grant".to_owned() });
        }
        granted.push(grant);
        Ok(())
    }

    fn observed(&self, _: u64, _: Duration) {}

    fn departed(&self, _: u64, _: u64) {}

    fn broken(&self, error: &TransportError) {
        self.broken.lock().unwrap().push(error.to_string());
    }

    fn lost(&self, _: &str) {}
}

const OURS: Nonce = [7; 16];
const THEIRS: Nonce = [9; 16];

/// An inbox with two links, and what they saw.
struct Stage {
    inbox: RefCell<Inbox>,
    ours: Arc<Sink>,
    other: Arc<Sink>,
}

fn stage() -> Stage {
    let sink = || Arc::new(Sink { slots: 4, place_bytes: 64, ..Sink::default() });
    let (ours, other) = (sink(), sink());
    let mut inbox = Inbox::default();
    inbox.add(OURS, LaneId(1), Arc::clone(&ours) as _);
    inbox.add(THEIRS, LaneId(2), Arc::clone(&other) as _);
    Stage { inbox: RefCell::new(inbox), ours, other }
}

/// The front of an honest frame.
fn front_of(nonce: &Nonce, slot: u32, payload_len: u64) -> Vec<u8> {
    let (epoch, run, tag) = (Epoch(3), RunId(7), Tag(9));
    let header = FrameHeader { epoch, run, tag, slot, meta_len: 0, payload_len, sequence: 5 };
    let mut out = Vec::new();
    let meta = FrameMeta::raw(epoch, u32::try_from(payload_len).unwrap_or(u32::MAX));
    front::write(&mut out, nonce, header, &meta).unwrap();
    out
}

impl Stage {
    fn argument(&self) -> *mut c_void {
        ptr::from_ref(&self.inbox).cast_mut().cast()
    }

    /// An eager message, as UCX hands it over; null where a part is empty.
    fn eager(&self, front: &[u8], payload: &[u8]) -> ucs_status_t {
        let at = |bytes: &[u8]| match bytes.is_empty() {
            true => ptr::null(),
            false => bytes.as_ptr().cast::<c_void>(),
        };
        let param = ucp::ucp_am_recv_param_t { recv_attr: 0, reply_ep: ptr::null_mut() };
        let (data, len) = (at(payload).cast_mut(), payload.len());
        // SAFETY: what UCX promises of its arguments holds: all are readable during the call.
        unsafe { on_frame(self.argument(), at(front), front.len(), data, len, &raw const param) }
    }

    /// A large message that stays at its sender, who says that it has `len` bytes.
    fn announced(&self, front: &[u8], len: usize) -> ucs_status_t {
        let recv_attr = u64::from(ucp::UCP_AM_RECV_ATTR_FLAG_RNDV);
        let param = ucp::ucp_am_recv_param_t { recv_attr, reply_ep: ptr::null_mut() };
        let (front_at, data) = (front.as_ptr().cast(), ptr::without_provenance_mut(8));
        // SAFETY: as above; the name of the data is UCX's and is not read here.
        unsafe { on_frame(self.argument(), front_at, front.len(), data, len, &raw const param) }
    }

    fn probe(&self, name: &[u8]) {
        let param = ptr::null();
        let (at, len) = (name.as_ptr().cast(), name.len());
        // SAFETY: as above; a probe has neither data nor parameters that are looked at.
        unsafe { on_probe(self.argument(), at, len, ptr::null_mut(), 0, param) };
    }

    fn grant(&self, front: &[u8]) {
        let (at, len) = (front.as_ptr().cast(), front.len());
        // SAFETY: as for a probe.
        unsafe { on_grant(self.argument(), at, len, ptr::null_mut(), 0, ptr::null()) };
    }

    fn dropped(&self) -> u64 {
        self.inbox.borrow().dropped
    }
}

/// Nobody but the link that a message named has noticed it.
fn undisturbed(sink: &Sink) -> bool {
    sink.arrived.lock().unwrap().is_empty()
        && sink.granted.lock().unwrap().is_empty()
        && sink.broken.lock().unwrap().is_empty()
}

#[test]
fn an_honest_frame_arrives_and_a_strangers_is_counted_and_dropped() {
    let stage = stage();
    assert_eq!(stage.eager(&front_of(&OURS, 1, 5), b"hello"), ucp::UCS_OK);
    assert_eq!(*stage.ours.arrived.lock().unwrap(), [b"hello"]);
    assert_eq!(stage.eager(&front_of(&[1; 16], 1, 5), b"hello"), ucp::UCS_OK);
    assert_eq!(stage.eager(&[], b"hello"), ucp::UCS_OK);
    assert_eq!(stage.eager(&OURS[..15], b""), ucp::UCS_OK);
    stage.probe(&[1; 16]);
    stage.probe(&OURS[..3]);
    assert_eq!(stage.dropped(), 5);
    stage.probe(&THEIRS);
    assert_eq!(stage.inbox.borrow().happened.probed, [LaneId(2)]);
    assert!(stage.ours.broken.lock().unwrap().is_empty() && undisturbed(&stage.other));
}

#[test]
fn lengths_that_lie_and_places_too_small_end_the_link() {
    let large = vec![1; 65];
    let cases: [(&str, Vec<u8>, &[u8]); 5] = [
        ("more than it says", front_of(&OURS, 1, 4), b"hello"),
        ("less than it says", front_of(&OURS, 1, 6), b"hello"),
        ("nothing of it", front_of(&OURS, 1, 5), b""),
        ("a slot that nobody posted", front_of(&OURS, 4, 5), b"hello"),
        ("larger than its place", front_of(&OURS, 1, 65), &large),
    ];
    for (what, front, payload) in cases {
        let stage = stage();
        assert_eq!(stage.eager(&front, payload), ucp::UCS_OK, "{what}");
        assert_eq!(stage.ours.broken.lock().unwrap().len(), 1, "{what}");
        assert!(stage.ours.arrived.lock().unwrap().is_empty(), "{what}");
        assert!(undisturbed(&stage.other), "{what}");
    }
}

#[test]
fn only_what_has_a_place_is_kept_at_its_sender() {
    let stage = stage();
    assert_eq!(stage.announced(&front_of(&OURS, 2, 64), 64), ucp::UCS_INPROGRESS);
    assert_eq!(stage.inbox.borrow().happened.rendezvous.len(), 1);
    // An ended run's, a stranger's, one that says two lengths.
    assert_eq!(stage.announced(&front_of(&OURS, u32::MAX, 64), 64), ucp::UCS_OK);
    assert_eq!(stage.announced(&front_of(&[0; 16], 2, 64), 64), ucp::UCS_OK);
    assert_eq!(stage.announced(&front_of(&OURS, 2, 64), usize::MAX), ucp::UCS_OK);
    assert_eq!(stage.inbox.borrow().happened.rendezvous.len(), 1);
    assert_eq!((stage.dropped(), stage.ours.broken.lock().unwrap().len()), (1, 1));
}

#[test]
fn a_grant_reaches_the_link_that_it_names_and_what_is_none_ends_it() {
    let stage = stage();
    let grant = Grant { run: RunId(7), tag: Tag(9), slot: 3, bytes: 1 << 40 };
    let mut front = Vec::new();
    front::write_grant(&mut front, &OURS, grant);
    stage.grant(&front);
    assert_eq!(*stage.ours.granted.lock().unwrap(), [grant]);
    // Twice, too short, too long.
    stage.grant(&front);
    stage.grant(&front[..front.len() - 1]);
    stage.grant(&[&front[..], &[0]].concat());
    assert_eq!(stage.ours.broken.lock().unwrap().len(), 3);
    // A stranger's, and nobody's.
    front[0] ^= 1;
    stage.grant(&front);
    stage.grant(&front[..15]);
    assert_eq!((stage.dropped(), stage.ours.granted.lock().unwrap().len()), (2, 1));
    assert!(undisturbed(&stage.other));
}

#[test]
fn a_callback_inside_a_callback_changes_nothing() {
    let stage = stage();
    let held = stage.inbox.borrow_mut();
    assert_eq!(stage.eager(&front_of(&OURS, 1, 5), b"hello"), ucp::UCS_OK);
    drop(held);
    assert!(undisturbed(&stage.ours));
}

proptest! {
    #[test]
    fn no_bytes_panic_or_reach_another_link(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        payload in proptest::collection::vec(any::<u8>(), 0..100),
        named: bool,
        len: usize,
    ) {
        let stage = stage();
        let front = if named { [&OURS[..], &bytes].concat() } else { bytes };
        stage.eager(&front, &payload);
        stage.announced(&front, len);
        stage.probe(&front);
        stage.grant(&front);
        prop_assert!(undisturbed(&stage.other) || front.starts_with(&THEIRS));
        let broken = stage.ours.broken.lock().unwrap().len() as u64;
        let kept = stage.inbox.borrow().happened.rendezvous.len() as u64;
        if named {
            // Nothing but an honest header, which no random bytes are, is more than an error; and
            // whatever has its length is a grant.
            let granted = stage.ours.granted.lock().unwrap().len() as u64;
            prop_assert_eq!((broken + granted, kept, stage.dropped()), (3, 0, 0));
        }
    }

    #[test]
    fn one_changed_byte_of_a_front_never_writes_elsewhere(
        at in NONCE..NONCE + HEADER_BYTES,
        flip in 1_u8..,
        cut in 0_usize..80,
    ) {
        let stage = stage();
        let mut front = front_of(&OURS, 1, 5);
        front[at] ^= flip;
        stage.eager(&front, b"hello");
        front[at] ^= flip;
        front.truncate(NONCE + cut);
        stage.eager(&front, b"hello");
        prop_assert_eq!(stage.ours.broken.lock().unwrap().len(), 2);
        prop_assert!(stage.ours.arrived.lock().unwrap().is_empty());
        prop_assert!(undisturbed(&stage.other));
    }
}

/// Bytes of a nonce.
const NONCE: usize = size_of::<Nonce>();

//! The memory that packets are received into.
//!
//! Owns a few slots, each as large as the largest UDP message. A message's packets are decrypted
//! where they lie and wait there for their reader; when the last of them was read the slot's memory
//! is used again, without being written in between. Invariants: a slot that the kernel writes to is
//! initialised and nobody else's; a message that would waste most of a slot is copied out of it, so
//! that unread bytes hold at most [`SLOT_BYTES`] / [`COPIED_BYTES_MAX`] times their memory where
//! they come alone.

use std::io::IoSliceMut;

use bytes::BytesMut;

/// Messages in one system call: fewer calls and acknowledgements, and the packets are in the cache
/// still when they are decrypted.
pub(super) const SLOTS: usize = 8;

/// The largest message, in bytes: packets that the kernel hands over together.
const SLOT_BYTES: usize = 64 << 10;

/// The largest message that is copied, in bytes.
const COPIED_BYTES_MAX: usize = 16 << 10;

pub(super) struct Slots([Slot; SLOTS]);

/// Whole: `SLOT_BYTES` long, all its own; or what was left of it by a message.
struct Slot {
    bytes: BytesMut,
    /// Its allocation is exactly `SLOT_BYTES` long.
    exact: bool,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| Slot::new()))
    }

    /// Places for the next messages, in order.
    pub(super) fn places(&mut self) -> [IoSliceMut<'_>; SLOTS] {
        self.0.each_mut().map(|slot| {
            slot.make_whole();
            IoSliceMut::new(&mut slot.bytes)
        })
    }

    /// The message of `len` bytes that came into place `at`.
    pub(super) fn take(&mut self, at: usize, len: usize) -> BytesMut {
        let Some(Slot { bytes, .. }) = self.0.get_mut(at) else { return BytesMut::new() };
        let len = len.min(bytes.len());
        match bytes.get(..len) {
            Some(message) if len <= COPIED_BYTES_MAX => BytesMut::from(message),
            _ => bytes.split_to(len),
        }
    }
}

impl Slot {
    fn new() -> Self {
        let bytes = BytesMut::zeroed(SLOT_BYTES);
        let exact = bytes.capacity() == SLOT_BYTES;
        Self { bytes, exact }
    }

    fn make_whole(&mut self) {
        if self.bytes.len() == SLOT_BYTES {
            return;
        }
        self.bytes.clear();
        let again = self.exact && self.bytes.try_reclaim(SLOT_BYTES);
        if !again || self.bytes.capacity() != SLOT_BYTES {
            // Somebody has not read its last message yet, and keeps that memory.
            *self = Self::new();
            return;
        }
        // SAFETY: the capacity is SLOT_BYTES, and so is the length of the allocation, which no
        // other handle refers to any more (`try_reclaim`); all of it was initialised by `zeroed`,
        // and initialised memory stays that whatever is written there.
        unsafe { self.bytes.set_len(SLOT_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_used_again_when_its_message_was_read_and_never_before() {
        let mut slots = Slots::new();
        let len = SLOT_BYTES - 100;
        let address = slots.places().map(|place| place.as_ptr());
        slots.places()[0].fill(1);
        let mut kept = slots.take(0, len);
        let half = kept.split_to(len / 2);
        drop(kept);
        // The half that is kept is not written to.
        assert_ne!(slots.places()[0].as_ptr(), address[0]);
        slots.places()[0].fill(2);
        assert!(half.iter().all(|byte| *byte == 1));
        assert_eq!(half.len(), len / 2);
        let again = slots.places()[0].as_ptr();
        drop(slots.take(0, len));
        let places = slots.places();
        assert_eq!((places[0].as_ptr(), places[0].len()), (again, SLOT_BYTES));
        assert_eq!(places[1].as_ptr(), address[1]);
    }

    #[test]
    fn a_small_message_holds_no_slot() {
        let mut slots = Slots::new();
        let before = slots.places()[3].as_ptr();
        slots.places()[3].fill(3);
        let message = slots.take(3, COPIED_BYTES_MAX);
        assert!(message.len() == COPIED_BYTES_MAX && message.iter().all(|byte| *byte == 3));
        assert_eq!(slots.places()[3].as_ptr(), before);
        assert!(slots.take(SLOTS, 1).is_empty());
        assert_eq!(slots.take(0, usize::MAX).len(), SLOT_BYTES);
    }
}

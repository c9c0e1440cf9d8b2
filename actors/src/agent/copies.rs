//! Copies of checkpoints that this agent holds for the coordinator, in memory.
//!
//! Owns the whole copies, the newest of each request, and those that are still coming. Pure. What
//! is in a copy is not looked at.
//!
//! Invariants: at most [`HELD_BYTES_MAX`], the copy that was given longest ago goes first; a copy
//! gives way to one of a later step only when that is whole, and never to one of an earlier step.

use std::collections::BTreeMap;

use crate::protocol::RequestKey;
use crate::protocol::copies::{COPY_BYTES_MAX, CopyPart, HeldCopy};

/// Bytes of all copies, at most.
pub(crate) const HELD_BYTES_MAX: u64 = 256 << 20;

/// Copies at a time, at most.
const HELD_COPIES_MAX: usize = 1024;

/// A copy, whole or not.
#[derive(Debug)]
struct Copy {
    step: u32,
    bytes: Vec<u8>,
    /// Counts up with every copy that is given.
    given: u64,
}

/// The copies.
#[derive(Debug, Default)]
pub(crate) struct HeldCopies {
    whole: BTreeMap<RequestKey, Copy>,
    coming: BTreeMap<RequestKey, Copy>,
    given: u64,
}

impl HeldCopies {
    /// Takes a part; how many bytes of that copy are here now, 0 when it has to begin anew.
    pub(crate) fn take(&mut self, part: CopyPart) -> u64 {
        let CopyPart { key, step, len, offset, bytes } = part;
        if len > COPY_BYTES_MAX || self.whole.get(&key).is_some_and(|whole| whole.step > step) {
            return 0;
        }
        if offset == 0 {
            self.given += 1;
            let copy = Copy { step, bytes: Vec::new(), given: self.given };
            self.coming.insert(key, copy);
        }
        let Some(coming) = self.coming.get_mut(&key).filter(|coming| {
            (coming.step, coming.bytes.len() as u64) == (step, offset)
                && offset.saturating_add(bytes.len() as u64) <= len
        }) else {
            self.coming.remove(&key);
            return 0;
        };
        coming.bytes.extend_from_slice(&bytes);
        let here = coming.bytes.len() as u64;
        if here == len
            && let Some(copy) = self.coming.remove(&key)
        {
            self.whole.insert(key, copy);
        }
        self.make_room(&key);
        here
    }

    /// The part of a whole copy that begins at `offset`; an empty one when it is not here.
    pub(crate) fn part(&self, key: RequestKey, step: u32, offset: u64) -> CopyPart {
        let copy = self.whole.get(&key).filter(|copy| copy.step == step);
        CopyPart::of(key, step, copy.map_or(&[], |copy| &copy.bytes), offset)
    }

    /// Forgets a request.
    pub(crate) fn drop_copy(&mut self, key: &RequestKey) {
        self.whole.remove(key);
        self.coming.remove(key);
    }

    /// A session has ended: what was still coming will not be finished.
    pub(crate) fn stop_coming(&mut self) {
        self.coming.clear();
    }

    /// What is here whole.
    pub(crate) fn held(&self) -> Vec<HeldCopy> {
        self.whole.iter().map(|(&key, copy)| HeldCopy { key, step: copy.step }).collect()
    }

    fn bytes(&self) -> u64 {
        self.whole.values().chain(self.coming.values()).map(|copy| copy.bytes.len() as u64).sum()
    }

    /// Lets the copies go that were given longest ago, that of `newest` last.
    fn make_room(&mut self, newest: &RequestKey) {
        while self.bytes() > HELD_BYTES_MAX || self.whole.len() > HELD_COPIES_MAX {
            let copies = self.whole.iter().chain(&self.coming);
            let oldest =
                copies.filter(|(key, _)| *key != newest).min_by_key(|(_, copy)| copy.given);
            let Some(key) = oldest.map(|(key, _)| *key) else { return };
            self.drop_copy(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::copies::PART_BYTES_MAX;

    fn key(number: u64) -> RequestKey {
        RequestKey { client: 1, number }
    }

    fn give(held: &mut HeldCopies, key: RequestKey, step: u32, copy: &[u8]) -> u64 {
        let mut here = 0;
        loop {
            here = held.take(CopyPart::of(key, step, copy, here));
            if here == 0 || here == copy.len() as u64 {
                return here;
            }
        }
    }

    #[test]
    fn the_newest_whole_copy_stays_while_another_comes() {
        let (mut held, old) = (HeldCopies::default(), vec![1; 2 * PART_BYTES_MAX + 1]);
        assert_eq!(give(&mut held, key(1), 3, &old), old.len() as u64);
        let new = vec![2; PART_BYTES_MAX + 1];
        held.take(CopyPart::of(key(1), 4, &new, 0));
        assert_eq!(held.held(), [HeldCopy { key: key(1), step: 3 }]);
        assert_eq!(held.part(key(1), 3, 2 * PART_BYTES_MAX as u64).bytes, [1]);
        held.take(CopyPart::of(key(1), 4, &new, PART_BYTES_MAX as u64));
        assert_eq!(held.held(), [HeldCopy { key: key(1), step: 4 }]);
        assert_eq!(give(&mut held, key(1), 2, &old), 0, "an earlier step is refused");
        assert!(held.part(key(1), 3, 0).bytes.is_empty(), "that one has gone");
        held.drop_copy(&key(1));
        assert!(held.held().is_empty());
    }

    #[test]
    fn parts_out_of_order_begin_anew() {
        let (mut held, copy) = (HeldCopies::default(), vec![1; 3 * PART_BYTES_MAX]);
        let part = |index: usize| CopyPart::of(key(1), 0, &copy, (index * PART_BYTES_MAX) as u64);
        assert_eq!(held.take(part(0)), PART_BYTES_MAX as u64);
        assert_eq!(held.take(part(2)), 0);
        assert_eq!(held.take(part(1)), 0, "the first part has gone too");
        held.take(part(0));
        held.stop_coming();
        assert_eq!(held.take(part(1)), 0);
        let lying = CopyPart { len: 5, ..part(0) };
        assert_eq!(held.take(lying), 0, "more than it says");
        assert!(held.held().is_empty());
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let (mut held, copy) = (HeldCopies::default(), vec![0; COPY_BYTES_MAX as usize]);
        for number in 0..6 {
            assert!(give(&mut held, key(number), 0, &copy) > 0, "{number}");
            assert!(held.bytes() <= HELD_BYTES_MAX);
        }
        let numbers: Vec<u64> = held.held().iter().map(|held| held.key.number).collect();
        assert_eq!(numbers, [2, 3, 4, 5]);
        let large = CopyPart { len: COPY_BYTES_MAX + 1, ..CopyPart::of(key(9), 0, &copy, 0) };
        assert_eq!(held.take(large), 0);
    }
}

//! Frames of one link that wait for their grant, grants that wait for their frame, and frames on
//! their way.
//!
//! Owns the senders' completers from the moment of sending until the transport has taken the frame.
//! Invariant: a frame leaves only with a grant of exactly its size (or none, for `reuse`); anything
//! else is refused at both ends.

use crate::completion::Completer;
use crate::error::TransportError;
use crate::frame::{FrameMeta, Grant, Refusal};
use crate::ids::{IdMap, RunId, Tag};
use crate::link::SendFrame;
use crate::region::Slice;

use super::{LINK_POSTS_MAX, LINK_SENDS_MAX, Step};

/// A granted frame.
#[derive(Debug)]
pub(crate) struct Departure {
    /// Names the departure when it is done.
    pub(crate) id: u64,
    pub(crate) slot: u32,
    pub(crate) run: RunId,
    pub(crate) tag: Tag,
    pub(crate) meta: FrameMeta,
    pub(crate) payload: Slice,
}

/// What is held has no grant yet, and what is granted is not held: no key is in both.
#[derive(Default)]
pub(super) struct Departures {
    held: IdMap<(RunId, Tag), Held>,
    grants: IdMap<(RunId, Tag), Grant>,
    leaving: Leaving,
}

enum Held {
    Frame {
        frame: SendFrame,
        completer: Completer<()>,
    },
    /// The sender has been told; the receiver is told when it grants.
    Refused(Disagreement),
}

#[derive(Clone)]
struct Disagreement {
    what: String,
    granted: Option<String>,
    offered: String,
}

impl Departures {
    fn admit(&self, run: RunId, tag: Tag) -> Result<(), TransportError> {
        if self.held.len() >= LINK_SENDS_MAX {
            return Err(TransportError::TooMany { what: "waiting frames", limit: LINK_SENDS_MAX });
        }
        if self.held.contains_key(&(run, tag)) {
            return Err(TransportError::Duplicate { what: format!("frame {tag:?} of run {run}") });
        }
        Ok(())
    }

    #[inline]
    pub(super) fn insert(
        &mut self,
        frame: SendFrame,
        completer: Completer<()>,
        checked: Result<(), TransportError>,
    ) -> Option<Step> {
        let key = (frame.run, frame.tag);
        if let Some(grant) = self.grants.remove(&key) {
            return Some(match checked {
                Ok(()) => self.join(grant, frame, completer),
                Err(error) => Disagreement::tell(error, completer).refuse(&grant),
            });
        }
        if let Err(error) = self.admit(frame.run, frame.tag) {
            completer.complete(Err(error));
            return None;
        }
        let held = match checked {
            Ok(()) => Held::Frame { frame, completer },
            Err(error) => Held::Refused(Disagreement::tell(error, completer)),
        };
        self.held.insert(key, held);
        None
    }

    pub(super) fn granted(&mut self, grant: Grant) -> Result<Option<Step>, TransportError> {
        let key = (grant.run, grant.tag);
        if let Some(held) = self.held.remove(&key) {
            return Ok(Some(match held {
                Held::Frame { frame, completer } => self.join(grant, frame, completer),
                Held::Refused(disagreement) => disagreement.refuse(&grant),
            }));
        }
        if self.grants.len() >= LINK_POSTS_MAX {
            return Err(TransportError::TooMany { what: "grants", limit: LINK_POSTS_MAX });
        }
        match self.grants.insert(key, grant) {
            None => Ok(None),
            Some(_) => Err(TransportError::Duplicate {
                what: format!("a grant for {:?} of run {}", grant.tag, grant.run),
            }),
        }
    }

    pub(super) fn departed(&mut self, id: u64) {
        if let Some(completer) = self.leaving.remove(id) {
            completer.complete(Ok(()));
        }
    }

    /// Cancels what waits for a grant, and with `leaving` also what is on its way.
    pub(super) fn cancel(&mut self, run: RunId, error: &dyn Fn() -> TransportError, leaving: bool) {
        self.grants.retain(|key, _| key.0 != run);
        for (_, held) in self.held.extract_if(|key, _| key.0 == run) {
            held.resolve(error);
        }
        if leaving {
            self.leaving.cancel(|of| of == run, error);
        }
    }

    pub(super) fn cancel_all(&mut self, error: &dyn Fn() -> TransportError) {
        self.grants.clear();
        for (_, held) in self.held.drain() {
            held.resolve(error);
        }
        self.leaving.cancel(|_| true, error);
    }

    #[inline]
    fn join(&mut self, grant: Grant, frame: SendFrame, completer: Completer<()>) -> Step {
        let offered = frame.payload.len() as u64;
        if offered != grant.bytes && !frame.meta.reuse {
            let error = TransportError::mismatch("frame bytes", offered, grant.bytes);
            completer.complete(Err(error));
            return Disagreement {
                what: "frame bytes".to_owned(),
                granted: None,
                offered: offered.to_string(),
            }
            .refuse(&grant);
        }
        let id = self.leaving.insert(frame.run, completer);
        let SendFrame { run, tag, meta, payload } = frame;
        Step::Depart(Departure { id, slot: grant.slot, run, tag, meta, payload })
    }
}

/// Frames on their way, by numbers that no other frame ever has.
#[derive(Default)]
struct Leaving {
    slots: Vec<LeavingSlot>,
    free: Vec<u32>,
}

#[derive(Default)]
struct LeavingSlot {
    /// How often it was used before.
    uses: u32,
    frame: Option<(RunId, Completer<()>)>,
}

impl Leaving {
    fn insert(&mut self, run: RunId, completer: Completer<()>) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(LeavingSlot::default());
            // At most as many as there are grants.
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let Some(slot) = self.slots.get_mut(index as usize) else { return u64::MAX };
        slot.frame = Some((run, completer));
        u64::from(slot.uses) << 32 | u64::from(index)
    }

    fn remove(&mut self, id: u64) -> Option<Completer<()>> {
        let (uses, index) = ((id >> 32) as u32, id as u32);
        let slot = self.slots.get_mut(index as usize).filter(|slot| slot.uses == uses)?;
        let (_, completer) = slot.frame.take()?;
        slot.uses = slot.uses.wrapping_add(1);
        self.free.push(index);
        Some(completer)
    }

    fn cancel(&mut self, which: impl Fn(RunId) -> bool, error: &dyn Fn() -> TransportError) {
        for (index, slot) in (0..).zip(&mut self.slots) {
            if let Some((_, completer)) = slot.frame.take_if(|(run, _)| which(*run)) {
                completer.complete(Err(error()));
                slot.uses = slot.uses.wrapping_add(1);
                self.free.push(index);
            }
        }
    }
}

impl Held {
    fn resolve(self, error: &dyn Fn() -> TransportError) {
        if let Self::Frame { completer, .. } = self {
            completer.complete(Err(error()));
        }
    }
}

impl Disagreement {
    /// The sender learns it at once, the receiver when it grants.
    fn tell(error: TransportError, completer: Completer<()>) -> Self {
        let disagreement = Self::of(&error);
        completer.complete(Err(error));
        disagreement
    }

    fn of(error: &TransportError) -> Self {
        match error {
            TransportError::Mismatch { what, ours, theirs } => Self {
                what: format!("the sender's {what}"),
                granted: Some(theirs.clone()),
                offered: ours.clone(),
            },
            other => Self {
                what: "what the sender has and what was granted".to_owned(),
                granted: None,
                offered: other.to_string(),
            },
        }
    }

    fn refuse(self, grant: &Grant) -> Step {
        Step::Refuse(Refusal {
            run: grant.run,
            slot: grant.slot,
            what: self.what,
            granted: self.granted.unwrap_or_else(|| format!("{} bytes", grant.bytes)),
            offered: self.offered,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::completion::{Awaited, Completion, completion};

    fn leave(leaving: &mut Leaving, run: u64) -> (u64, Completion<()>) {
        let (completer, waiting) = completion(Awaited::Other("a frame to leave"));
        (leaving.insert(RunId(run), completer), waiting)
    }

    #[test]
    fn a_cancelled_departure_never_ends_another_one() {
        let mut leaving = Leaving::default();
        let (first, mut cancelled) = leave(&mut leaving, 1);
        let (other, mut stays) = leave(&mut leaving, 2);
        leaving.cancel(|run| run == RunId(1), &|| TransportError::closed("a run"));
        assert!(cancelled.try_take().unwrap().is_err());
        let (second, mut after) = leave(&mut leaving, 1);
        assert_ne!(first, second);
        // The transport tells of the first one late.
        assert!(leaving.remove(first).is_none());
        assert!(after.try_take().is_none() && stays.try_take().is_none());
        for (id, waiting) in [(second, &mut after), (other, &mut stays)] {
            leaving.remove(id).unwrap().complete(Ok(()));
            waiting.try_take().unwrap().unwrap();
            assert!(leaving.remove(id).is_none(), "told twice");
        }
        assert_eq!(leaving.slots.len(), 2);
    }
}

//! Posted places of one link, by slot.
//!
//! Owns the slots and the receivers' completers. Invariants: a slot is used once; a claimed place
//! keeps its entry until it is filled, so that a cancelled receive does not make its frame unknown.

use std::collections::hash_map::Entry;

use crate::completion::Completer;
use crate::error::TransportError;
use crate::frame::{FrameHeader, FrameMeta, Grant};
use crate::ids::{IdMap, RunId, Tag};
use crate::link::{PostRecv, Received};
use crate::region::Region;

use super::LINK_POSTS_MAX;

/// A place that a reader fills now.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) region: Region,
}

#[derive(Default)]
pub(super) struct Places {
    by_slot: IdMap<u32, Posted>,
    by_tag: IdMap<(RunId, Tag), u32>,
    next_slot: u32,
}

struct Posted {
    run: RunId,
    tag: Tag,
    len: usize,
    /// None while a reader fills it.
    region: Option<Region>,
    /// None once the receiver has been told that nothing will come.
    completer: Option<Completer<Received>>,
}

impl Places {
    pub(super) fn check(&self, post: &PostRecv) -> Result<(), TransportError> {
        if self.by_slot.len() >= LINK_POSTS_MAX {
            return Err(TransportError::TooMany { what: "posted places", limit: LINK_POSTS_MAX });
        }
        if self.by_tag.contains_key(&(post.run, post.tag)) {
            return Err(TransportError::Duplicate {
                what: format!("a posted place for {:?} of run {}", post.tag, post.run),
            });
        }
        if post.region.len() < post.len {
            return Err(TransportError::mismatch(
                "region and posted length",
                format!("{} bytes", post.region.len()),
                format!("{} bytes", post.len),
            ));
        }
        Ok(())
    }

    pub(super) fn insert(&mut self, post: PostRecv, completer: Completer<Received>) -> Grant {
        let slot = self.next_slot;
        // A slot would come again after 2^32 posts, with at most LINK_POSTS_MAX outstanding.
        self.next_slot = self.next_slot.wrapping_add(1);
        let PostRecv { run, tag, region, len } = post;
        self.by_tag.insert((run, tag), slot);
        let posted = Posted { run, tag, len, region: Some(region), completer: Some(completer) };
        self.by_slot.insert(slot, posted);
        Grant { run, tag, slot, bytes: len as u64 }
    }

    /// Takes the region of a header's slot for filling; `None` when the slot is not posted.
    pub(super) fn claim(&mut self, header: &FrameHeader) -> Result<Option<Place>, TransportError> {
        let Some(posted) = self.by_slot.get_mut(&header.slot) else { return Ok(None) };
        posted.claim(header).map(|region| Some(Place { region }))
    }

    /// Claims a place and fills it at once, if the frame's description is as `checked` and fits;
    /// else its receiver learns why it does not. `None` when the slot is not posted, false when the
    /// receiver is told nothing new.
    #[inline]
    pub(super) fn claim_and_fill(
        &mut self,
        header: &FrameHeader,
        checked: Result<(), TransportError>,
        meta: FrameMeta,
        payload: &[u8],
    ) -> Result<Option<bool>, TransportError> {
        let Entry::Occupied(mut entry) = self.by_slot.entry(header.slot) else { return Ok(None) };
        let posted = entry.get_mut();
        let mut region = posted.claim(header)?;
        let checked = checked.and_then(|()| posted.check_len(header, meta.reuse));
        if checked.is_ok() {
            let Some(into) = region.bytes_mut().get_mut(..payload.len()) else {
                return Err(TransportError::malformed("frame: larger than its place"));
            };
            into.copy_from_slice(payload);
        }
        let posted = entry.remove();
        self.forget_tag(header.slot, (posted.run, posted.tag));
        let Some(completer) = posted.completer else { return Ok(Some(false)) };
        let filled = checked.is_ok();
        completer.complete(checked.map(|()| Received { region, len: payload.len(), meta }));
        Ok(Some(filled))
    }

    /// A frame fills its place exactly, unless it brings no payload by intention.
    pub(super) fn check_len(
        &self,
        header: &FrameHeader,
        reuse: bool,
    ) -> Result<(), TransportError> {
        self.by_slot.get(&header.slot).map_or(Ok(()), |posted| posted.check_len(header, reuse))
    }

    /// Delivers; false when the receiver is no longer interested.
    pub(super) fn fill(&mut self, slot: u32, received: Received) -> bool {
        match self.remove(slot) {
            Some(completer) => {
                completer.complete(Ok(received));
                true
            }
            None => false,
        }
    }

    pub(super) fn fail(&mut self, slot: u32, error: TransportError) {
        if let Some(completer) = self.remove(slot) {
            completer.complete(Err(error));
        }
    }

    pub(super) fn cancel(&mut self, run: RunId, error: &dyn Fn() -> TransportError) {
        self.by_tag.retain(|key, _| key.0 != run);
        self.by_slot.retain(|_, posted| {
            if posted.run != run {
                return true;
            }
            if let Some(completer) = posted.completer.take() {
                completer.complete(Err(error()));
            }
            posted.region.is_none()
        });
    }

    pub(super) fn cancel_all(&mut self, error: &dyn Fn() -> TransportError) {
        self.by_tag.clear();
        for (_, posted) in self.by_slot.drain() {
            if let Some(completer) = posted.completer {
                completer.complete(Err(error()));
            }
        }
    }

    fn remove(&mut self, slot: u32) -> Option<Completer<Received>> {
        let posted = self.by_slot.remove(&slot)?;
        self.forget_tag(slot, (posted.run, posted.tag));
        posted.completer
    }

    /// A tag may be another place's by now, where its own was cancelled while it was filled.
    fn forget_tag(&mut self, slot: u32, tag: (RunId, Tag)) {
        if let Entry::Occupied(entry) = self.by_tag.entry(tag)
            && *entry.get() == slot
        {
            entry.remove();
        }
    }
}

impl Posted {
    /// Takes the region for filling.
    fn claim(&mut self, header: &FrameHeader) -> Result<Region, TransportError> {
        if (self.run, self.tag) != (header.run, header.tag) {
            return Err(TransportError::malformed(format!(
                "frame: slot {} was granted for {:?} of run {}, not for {:?} of run {}",
                header.slot, self.tag, self.run, header.tag, header.run
            )));
        }
        if header.payload_len > self.len as u64 {
            return Err(TransportError::malformed(format!(
                "frame: {} bytes for a place of {}",
                header.payload_len, self.len
            )));
        }
        self.region.take().ok_or_else(|| {
            let slot = header.slot;
            TransportError::malformed(format!("frame: slot {slot} is being filled already"))
        })
    }

    fn check_len(&self, header: &FrameHeader, reuse: bool) -> Result<(), TransportError> {
        if reuse || header.payload_len == self.len as u64 {
            return Ok(());
        }
        Err(TransportError::mismatch("frame bytes", self.len, header.payload_len))
    }
}

//! Frames of one link that wait for their grant, grants that wait for their frame, and frames on
//! their way.
//!
//! Owns the senders' completers from the moment of sending until the transport has taken the frame.
//! Invariant: a frame leaves only with a grant of exactly its size (or none, for `reuse`); anything
//! else is refused at both ends.

use std::collections::HashMap;

use crate::completion::Completer;
use crate::error::TransportError;
use crate::frame::{FrameMeta, Grant, Refusal};
use crate::ids::{RunId, Tag};
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

#[derive(Default)]
pub(super) struct Departures {
    held: HashMap<(RunId, Tag), Held>,
    grants: HashMap<(RunId, Tag), Grant>,
    leaving: HashMap<u64, (RunId, Completer<()>)>,
    next_id: u64,
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
    pub(super) fn admit(&self, run: RunId, tag: Tag) -> Result<(), TransportError> {
        if self.held.len() >= LINK_SENDS_MAX {
            return Err(TransportError::TooMany { what: "waiting frames", limit: LINK_SENDS_MAX });
        }
        if self.held.contains_key(&(run, tag)) {
            return Err(TransportError::Duplicate { what: format!("frame {tag:?} of run {run}") });
        }
        Ok(())
    }

    pub(super) fn insert(
        &mut self,
        frame: SendFrame,
        completer: Completer<()>,
        checked: Result<(), TransportError>,
    ) -> Option<Step> {
        let key = (frame.run, frame.tag);
        let held = match checked {
            Ok(()) => Held::Frame { frame, completer },
            Err(error) => {
                let disagreement = Disagreement::of(&error);
                completer.complete(Err(error));
                Held::Refused(disagreement)
            }
        };
        match self.grants.remove(&key) {
            Some(grant) => Some(self.join(grant, held)),
            None => {
                self.held.insert(key, held);
                None
            }
        }
    }

    pub(super) fn granted(&mut self, grant: Grant) -> Result<Option<Step>, TransportError> {
        let key = (grant.run, grant.tag);
        if let Some(held) = self.held.remove(&key) {
            return Ok(Some(self.join(grant, held)));
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
        if let Some((_, completer)) = self.leaving.remove(&id) {
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
            for (_, (_, completer)) in self.leaving.extract_if(|_, (of, _)| *of == run) {
                completer.complete(Err(error()));
            }
        }
    }

    pub(super) fn cancel_all(&mut self, error: &dyn Fn() -> TransportError) {
        self.grants.clear();
        for (_, held) in self.held.drain() {
            held.resolve(error);
        }
        for (_, (_, completer)) in self.leaving.drain() {
            completer.complete(Err(error()));
        }
    }

    fn join(&mut self, grant: Grant, held: Held) -> Step {
        let (frame, completer) = match held {
            Held::Frame { frame, completer } => (frame, completer),
            Held::Refused(disagreement) => return disagreement.refuse(&grant),
        };
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
        let id = self.next_id;
        self.next_id += 1;
        self.leaving.insert(id, (frame.run, completer));
        let SendFrame { run, tag, meta, payload } = frame;
        Step::Depart(Departure { id, slot: grant.slot, run, tag, meta, payload })
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

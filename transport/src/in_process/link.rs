//! A pair of link ends that hand frames to each other.
//!
//! Owns the two tables of one pair. Invariants: the two tables are never locked at the same time,
//! and no lock is held while bytes are copied.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::completion::Completion;
use crate::error::TransportError;
use crate::frame::{FRAME_BYTES_MAX, FrameHeader};
use crate::ids::{Epoch, PeerId, RunId};
use crate::link::table::{Arrival, Departure, LinkTable, Step};
use crate::link::{Carrier, Link, LinkStats, PostRecv, Received, SendFrame};
use crate::ready::Readiness;
use crate::region::MemKind;

/// Which end of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Low,
    High,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Low => Self::High,
            Self::High => Self::Low,
        }
    }
}

/// One end of a pair.
pub(super) struct InProcessLink {
    pair: Arc<Pair>,
    side: Side,
    peer: PeerId,
}

/// Makes the two ends of a link between `low` and `high`, in this order; whether both have their
/// frames in memory of one device.
pub(super) fn pair(
    (low, high): (PeerId, PeerId),
    epoch: Epoch,
    one_device: bool,
) -> (InProcessLink, InProcessLink) {
    let table = |peer| {
        let mut table = LinkTable::new(peer, epoch, FRAME_BYTES_MAX);
        if one_device {
            table.take_device_memory();
        }
        Mutex::new(table)
    };
    let (low_ready, high_ready) = (Readiness::default(), Readiness::default());
    let pair = Arc::new(Pair { epoch, low: table(high), high: table(low), low_ready, high_ready });
    (
        InProcessLink { pair: Arc::clone(&pair), side: Side::Low, peer: high },
        InProcessLink { pair, side: Side::High, peer: low },
    )
}

impl Link for InProcessLink {
    fn peer(&self) -> PeerId {
        self.peer
    }

    fn post_recv(&self, post: PostRecv) -> Completion<Received> {
        let mut table = self.pair.table(self.side);
        let (completer, waiting) = table.receiving((post.run, post.tag), None);
        let grant = table.post(post, completer);
        drop(table);
        if let Some(grant) = grant {
            let sender = self.side.other();
            let granted = self.pair.table(sender).granted(grant);
            match granted {
                Ok(step) => self.pair.carry(sender, step),
                Err(error) => self.pair.close(&error.to_string()),
            }
        }
        waiting
    }

    fn send(&self, frame: SendFrame) -> Completion<()> {
        let mut table = self.pair.table(self.side);
        let (completer, waiting) = table.sending((frame.run, frame.tag), None);
        let step = table.send(frame, completer);
        drop(table);
        self.pair.carry(self.side, step);
        waiting
    }

    fn abort_run(&self, run: RunId, cause: &str) {
        if self.pair.table(self.side).abort(run, cause) {
            self.pair.table(self.side.other()).abort(run, cause);
        }
    }

    fn end_run(&self, run: RunId) {
        self.pair.table(self.side).end(run);
    }

    fn close(&self, cause: &str) {
        self.pair.close(cause);
    }

    fn closed(&self) -> Option<String> {
        self.pair.table(self.side).closed().map(str::to_owned)
    }

    fn takes(&self, kind: MemKind) -> bool {
        self.pair.table(self.side).takes(kind)
    }

    fn carrier(&self) -> Carrier {
        Carrier::only("in-process")
    }

    fn stats(&self) -> LinkStats {
        self.pair.table(self.side).stats()
    }
}

struct Pair {
    epoch: Epoch,
    low: Mutex<LinkTable>,
    high: Mutex<LinkTable>,
    low_ready: Readiness,
    high_ready: Readiness,
}

impl Pair {
    fn table(&self, side: Side) -> MutexGuard<'_, LinkTable> {
        match side {
            Side::Low => &self.low,
            Side::High => &self.high,
        }
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, cause: &str) {
        for side in [Side::Low, Side::High] {
            self.table(side).close(cause);
        }
    }

    fn carry(self: &Arc<Self>, sender: Side, step: Option<Step>) {
        match step {
            None => {}
            Some(Step::Refuse(refusal)) => self.table(sender.other()).refused(refusal),
            Some(Step::Depart(departure)) => match departure.payload.ready().cloned() {
                Some(ready) if !departure.payload.is_ready() => {
                    // Sending never waits, so a payload that is not ready is waited for elsewhere.
                    let pair = Arc::clone(self);
                    let then = move |outcome: Result<(), TransportError>| match outcome {
                        Ok(()) => pair.copy_or_close(sender, departure),
                        Err(error) => pair.close(&error.to_string()),
                    };
                    self.readiness(sender).when(ready, Box::new(then));
                }
                _ => self.copy_or_close(sender, departure),
            },
        }
    }

    fn readiness(&self, side: Side) -> &Readiness {
        match side {
            Side::Low => &self.low_ready,
            Side::High => &self.high_ready,
        }
    }

    fn copy_or_close(&self, sender: Side, departure: Departure) {
        if let Err(error) = self.copy(sender, departure) {
            self.close(&error.to_string());
        }
    }

    fn copy(&self, sender: Side, departure: Departure) -> Result<(), TransportError> {
        let Departure { id, slot, run, tag, meta, payload } = departure;
        let payload_len = payload.len() as u64;
        let header = FrameHeader {
            epoch: self.epoch,
            run,
            tag,
            slot,
            meta_len: 0,
            payload_len,
            sequence: 0,
        };
        let receiver = sender.other();
        // Each lock ends with its statement: the copy runs without one.
        let arrival = self.table(receiver).arriving(&header)?;
        if let Arrival::Place(mut place) = arrival
            && self.table(receiver).agrees(&header, &meta)
        {
            place.region.fill(&payload)?;
            self.table(receiver).arrived(&header, place.region, meta);
        }
        self.table(sender).departed(id, payload_len);
        Ok(())
    }
}

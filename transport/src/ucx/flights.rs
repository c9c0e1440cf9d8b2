//! Operations that UCX has under way, and what they keep alive.
//!
//! Owns regions, payloads and fronts from the moment UCX is told of them until it is done with
//! them. Invariants: what UCX may still touch is never dropped before its operation has ended or
//! its worker is destroyed; slots are used again, so the steady state allocates nothing.

use std::cell::RefCell;
use std::ffi::c_void;

use ucx_sys::ucs_status_t;

use super::inbox::{Finished, Inbox};
use super::lane::LaneId;
use crate::frame::{FrameHeader, FrameMeta};
use crate::region::{Region, Slice};

/// What is under way.
pub(super) enum Operation {
    Send {
        lane: LaneId,
        departure: u64,
        payload: Slice,
    },
    Receive {
        lane: LaneId,
        header: FrameHeader,
        meta: FrameMeta,
        region: Region,
    },
    Grant {
        lane: LaneId,
    },
    Probe {
        lane: LaneId,
    },
    /// An endpoint that closes.
    Close,
}

/// What a callback gets: where to say that the operation has ended.
struct Ticket {
    inbox: *const RefCell<Inbox>,
    index: usize,
}

struct Slot {
    ticket: Box<Ticket>,
    /// The header of an active message, which UCX reads until it is sent.
    front: Vec<u8>,
    operation: Option<Operation>,
}

/// The operations of one worker.
#[derive(Default)]
pub(super) struct Flights {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

impl Flights {
    /// A slot whose front may be written.
    pub(super) fn reserve(&mut self, inbox: *const RefCell<Inbox>) -> usize {
        if let Some(index) = self.free.pop() {
            return index;
        }
        let index = self.slots.len();
        let ticket = Box::new(Ticket { inbox, index });
        self.slots.push(Slot { ticket, front: Vec::new(), operation: None });
        index
    }

    /// The front of a reserved slot.
    pub(super) fn front(&mut self, index: usize) -> Option<&mut Vec<u8>> {
        self.slots.get_mut(index).map(|slot| &mut slot.front)
    }

    /// What to give UCX as the user data of a slot's operation.
    pub(super) fn ticket(&self, index: usize) -> *mut c_void {
        let none = std::ptr::null::<Ticket>();
        self.slots.get(index).map_or(none, |slot| &*slot.ticket).cast_mut().cast()
    }

    /// Keeps what the operation of a reserved slot needs.
    pub(super) fn start(&mut self, index: usize, operation: Operation) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.operation = Some(operation);
        }
    }

    /// The operation has ended: gives back what it kept, and frees the slot.
    pub(super) fn finish(&mut self, index: usize) -> Option<Operation> {
        let operation = self.slots.get_mut(index)?.operation.take();
        self.free.push(index);
        operation
    }

    /// The regions in a device's memory that were not filled when their worker ended. Copies on a
    /// device go on without their worker, so no pool is to have them.
    pub(super) fn unfilled_on_device(&mut self) -> Vec<Region> {
        let left = self.slots.iter_mut().filter_map(|slot| {
            slot.operation.take_if(|operation| {
                matches!(operation, Operation::Receive { region, .. } if region.kind().is_device())
            })
        });
        let mut regions: Vec<_> = left
            .filter_map(|operation| match operation {
                Operation::Receive { region, .. } => Some(region),
                Operation::Send { .. }
                | Operation::Grant { .. }
                | Operation::Probe { .. }
                | Operation::Close => None,
            })
            .collect();
        regions.iter_mut().for_each(Region::leave_pool);
        regions
    }

    /// Frees a reserved slot whose operation is not under way.
    pub(super) fn give_back(&mut self, index: usize) {
        self.free.push(index);
    }

    /// How many operations are under way.
    pub(super) fn under_way(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// # Safety
/// `ticket` comes from [`Flights::ticket`], whose flights and inbox live as long as their worker.
unsafe fn ended(request: *mut c_void, ticket: *mut c_void, status: ucs_status_t) {
    // SAFETY: the caller's promise; UCX calls this on the worker's thread.
    let (inbox, index) = unsafe {
        let ticket = &*ticket.cast_const().cast::<Ticket>();
        (&*ticket.inbox, ticket.index)
    };
    // Borrowed only while no call into UCX is under way.
    if let Ok(mut inbox) = inbox.try_borrow_mut() {
        inbox.happened.finished.push(Finished { index, status, request });
    }
}

pub(super) unsafe extern "C" fn on_sent(
    request: *mut c_void,
    status: ucs_status_t,
    ticket: *mut c_void,
) {
    // SAFETY: the user data of the operation.
    unsafe { ended(request, ticket, status) }
}

pub(super) unsafe extern "C" fn on_received(
    request: *mut c_void,
    status: ucs_status_t,
    _len: usize,
    ticket: *mut c_void,
) {
    // SAFETY: the user data of the operation.
    unsafe { ended(request, ticket, status) }
}

#[cfg(test)]
mod tests {
    use std::any::Any;

    use super::*;
    use crate::ids::{Epoch, RunId, Tag};
    use crate::region::{MemKind, Memory};

    struct OnDevice;

    impl Memory for OnDevice {
        fn kind(&self) -> MemKind {
            MemKind::Cuda { device: 0 }
        }
        fn len(&self) -> usize {
            8
        }
        fn host(&self) -> Option<&[u8]> {
            None
        }
        fn host_mut(&mut self) -> Option<&mut [u8]> {
            None
        }
        fn as_any(&self) -> &dyn Any {
            self
        }
        fn as_any_mut(&mut self) -> &mut dyn Any {
            self
        }
    }

    fn receive(region: Region) -> Operation {
        let (epoch, run, tag) = (Epoch(1), RunId(1), Tag(1));
        let header =
            FrameHeader { epoch, run, tag, slot: 0, meta_len: 0, payload_len: 8, sequence: 0 };
        let meta = FrameMeta::raw(epoch, 8);
        Operation::Receive { lane: LaneId(1), header, meta, region }
    }

    #[test]
    fn only_what_a_device_may_still_fill_is_taken_out_when_a_worker_ends() {
        let mut flights = Flights::default();
        let inbox = RefCell::new(Inbox::default());
        let regions = [
            Region::from_memory(Box::new(OnDevice)),
            Region::from_memory(Box::new(OnDevice)),
            Region::host(8),
        ];
        for (place, region) in regions.into_iter().enumerate() {
            let index = flights.reserve(&raw const inbox);
            flights.start(index, receive(region));
            assert_eq!(index, place);
        }
        // The first one was filled.
        assert!(matches!(flights.finish(0), Some(Operation::Receive { .. })));
        let unfilled = flights.unfilled_on_device();
        assert_eq!(unfilled.iter().map(Region::kind).collect::<Vec<_>>(), [OnDevice.kind()]);
        assert!(flights.unfilled_on_device().is_empty());
        assert!(matches!(flights.finish(2), Some(Operation::Receive { .. })), "host memory stays");
    }
}

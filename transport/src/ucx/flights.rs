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
        inbox.finished.push(Finished { index, status, request });
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

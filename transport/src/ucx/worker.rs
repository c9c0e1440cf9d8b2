//! A UCP worker and its endpoints: the safe face of UCX for the engine.
//!
//! Owns the worker's life, its inbox and its flights. One thread at a time is in it
//! (`UCS_THREAD_MODE_SERIALIZED`; the type is not `Sync`). Invariants: whatever UCX may touch is in
//! the flights until UCX is done; dropping the worker ends UCX's part first and frees memory
//! afterwards.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::Arc;
use std::thread::Builder;

use ucx_sys::bindings as ucp;
use ucx_sys::{ptr_is_err, ptr_status, status_text, ucs_status_ptr_t, ucs_status_t};

use super::context::{Context, check};
use super::flights::{Flights, Operation, on_received, on_sent};
use super::inbox::{
    FRAME_MESSAGE, Inbox, Notice, Rendezvous, on_failure, on_frame, on_grant, on_probe,
};
use super::memory::Place;
use crate::error::TransportError;
use crate::frame::DeviceOffer;
use crate::region::{Region, Slice};

/// What came of starting an operation.
#[derive(Clone, Copy)]
pub(super) enum Started {
    /// It ended at once.
    Done,
    /// What it needs is to be given to [`Worker::keep`] before anything else is done with UCX.
    UnderWay(Flight),
    Failed(ucs_status_t),
}

/// An operation that is under way.
#[derive(Clone, Copy)]
pub(super) struct Flight(usize);

pub(super) struct Worker {
    raw: ucp::ucp_worker_h,
    efd: RawFd,
    front_bytes_max: usize,
    inbox: Box<RefCell<Inbox>>,
    flights: Flights,
    context: Arc<Context>,
}

// SAFETY: UCX allows another thread to go on where one has left off, and only exclusive access,
// which the engine's lock gives, leads here.
unsafe impl Send for Worker {}

impl Worker {
    pub(super) fn open(context: Arc<Context>) -> Result<Self, TransportError> {
        let library = context.library;
        // SAFETY: all-zero is a valid value of this C structure; the mask says what is set.
        let mut params: ucp::ucp_worker_params_t = unsafe { std::mem::zeroed() };
        params.field_mask = u64::from(ucp::UCP_WORKER_PARAM_FIELD_THREAD_MODE);
        params.thread_mode = ucp::UCS_THREAD_MODE_SERIALIZED;
        let mut raw = ptr::null_mut();
        // SAFETY: the context lives as long as the worker, which holds it.
        let status = unsafe { library.ucp.ucp_worker_create(context.raw(), &params, &mut raw) };
        check(library, "make a worker", status)?;
        let inbox = Box::default();
        let flights = Flights::default();
        let mut worker = Self { raw, efd: -1, front_bytes_max: 0, inbox, flights, context };
        worker.listen(FRAME_MESSAGE, Some(on_frame))?;
        worker.listen(Notice::Probe as u32, Some(on_probe))?;
        worker.listen(Notice::Grant as u32, Some(on_grant))?;
        worker.front_bytes_max = worker.query_front_bytes_max()?;
        // SAFETY: the worker lives; writes one number.
        let status = unsafe { library.ucp.ucp_worker_get_efd(worker.raw, &mut worker.efd) };
        check(library, "give an event descriptor", status)?;
        Ok(worker)
    }

    fn listen(&self, id: u32, cb: ucp::ucp_am_recv_callback_t) -> Result<(), TransportError> {
        let fields = ucp::UCP_AM_HANDLER_PARAM_FIELD_ID
            | ucp::UCP_AM_HANDLER_PARAM_FIELD_CB
            | ucp::UCP_AM_HANDLER_PARAM_FIELD_ARG;
        let param = ucp::ucp_am_handler_param_t {
            field_mask: u64::from(fields),
            id,
            flags: 0,
            cb,
            arg: self.inbox_address().cast_mut().cast(),
        };
        let library = self.context.library;
        // SAFETY: the handler's argument is the boxed inbox, which outlives the worker.
        let status = unsafe { library.ucp.ucp_worker_set_am_recv_handler(self.raw, &param) };
        check(library, "take a message handler", status)
    }

    fn query_front_bytes_max(&self) -> Result<usize, TransportError> {
        let mut attributes = self.attributes();
        attributes.field_mask = u64::from(ucp::UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER);
        // SAFETY: the worker lives, and the structure is written within its size.
        let status =
            unsafe { self.context.library.ucp.ucp_worker_query(self.raw, &mut attributes) };
        check(self.context.library, "say how long a header may be", status)?;
        Ok(attributes.max_am_header)
    }

    fn attributes(&self) -> ucp::ucp_worker_attr_t {
        // SAFETY: all-zero is a valid value of this C structure; the mask says what is asked.
        unsafe { std::mem::zeroed() }
    }

    /// Where peers reach this worker.
    pub(super) fn address(&self) -> Result<Vec<u8>, TransportError> {
        let library = self.context.library;
        let mut attributes = self.attributes();
        attributes.field_mask = u64::from(ucp::UCP_WORKER_ATTR_FIELD_ADDRESS);
        // SAFETY: the worker lives; UCX gives a block that is copied and given back here.
        unsafe {
            let status = library.ucp.ucp_worker_query(self.raw, &mut attributes);
            check(library, "say where it is", status)?;
            let (at, len) = (attributes.address.cast::<u8>(), attributes.address_length);
            let address = std::slice::from_raw_parts(at, len).to_vec();
            library.ucp.ucp_worker_release_address(self.raw, attributes.address);
            Ok(address)
        }
    }

    /// Reaches out to a peer's worker. Only networks know the failure of a peer by themselves
    /// (UCX 1.13); within a host the QUIC connection does.
    pub(super) fn connect(
        &self,
        address: &[u8],
        peer_failures: bool,
    ) -> Result<ucp::ucp_ep_h, TransportError> {
        // SAFETY: all-zero is a valid value of this C structure; the mask says what is set.
        let mut params: ucp::ucp_ep_params_t = unsafe { std::mem::zeroed() };
        params.field_mask = u64::from(ucp::UCP_EP_PARAM_FIELD_REMOTE_ADDRESS);
        params.address = address.as_ptr().cast();
        if peer_failures {
            params.field_mask |= u64::from(
                ucp::UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | ucp::UCP_EP_PARAM_FIELD_ERR_HANDLER,
            );
            params.err_mode = ucp::UCP_ERR_HANDLING_MODE_PEER;
            params.err_handler.cb = Some(on_failure);
            params.err_handler.arg = self.inbox_address().cast_mut().cast();
        }
        let mut endpoint = ptr::null_mut();
        let library = self.context.library;
        // SAFETY: the address is what a worker gave its peer, who is authenticated; it is read
        // during the call. The handler's argument outlives the worker.
        let status = unsafe { library.ucp.ucp_ep_create(self.raw, &params, &mut endpoint) };
        check(library, "reach a peer's worker", status)?;
        Ok(endpoint)
    }

    /// Closes an endpoint that knows failures at once; what is under way on it ends.
    pub(super) fn disconnect(&mut self, endpoint: ucp::ucp_ep_h) {
        let index = self.flights.reserve(self.inbox_address());
        let mut param = self.param(index);
        param.op_attr_mask |= ucp::UCP_OP_ATTR_FIELD_FLAGS;
        param.flags = ucp::UCP_EP_CLOSE_FLAG_FORCE;
        // SAFETY: the endpoint was made by `connect` and is closed once; nobody uses it again.
        let request = unsafe { self.context.library.ucp.ucp_ep_close_nbx(endpoint, &param) };
        if let Started::UnderWay(flight) = self.started(index, request) {
            self.keep(flight, Operation::Close);
        }
    }

    /// Whether the memory of this process's device is taken.
    pub(super) fn device_offer(&self) -> DeviceOffer {
        self.context.device_offer()
    }

    /// Where the bytes of a slice are.
    pub(super) fn place_of(&self, payload: &Slice) -> Option<Place> {
        Place::of_slice(payload, &self.context)
    }

    /// Where the first `len` bytes of a region go.
    pub(super) fn place_in(&self, region: &mut Region, len: usize) -> Option<Place> {
        Place::of_region(region, len, &self.context)
    }

    /// Sends a frame whose front `write` writes; the caller has what is in `place`.
    pub(super) fn send(
        &mut self,
        endpoint: ucp::ucp_ep_h,
        place: Place,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), TransportError>,
    ) -> Result<Started, TransportError> {
        let index = self.flights.reserve(self.inbox_address());
        let written = match self.flights.front(index) {
            Some(front) => write(front).map(|()| (front.as_ptr(), front.len())),
            None => Err(TransportError::closed("a worker of UCX")),
        };
        let too_large = |bytes: usize, limit: usize| TransportError::FrameTooLarge {
            what: "front of a frame over UCX",
            bytes: bytes as u64,
            limit: limit as u64,
        };
        let (front, front_len) = match written {
            Ok((_, len)) if len > self.front_bytes_max => {
                self.flights.give_back(index);
                return Err(too_large(len, self.front_bytes_max));
            }
            Ok(written) => written,
            Err(error) => {
                self.flights.give_back(index);
                return Err(error);
            }
        };
        let mut param = self.param(index);
        place.describe(&mut param);
        if place.is_on_device() {
            // The receiver fetches it, as it may not be able to copy what comes into its place.
            param.op_attr_mask |= ucp::UCP_OP_ATTR_FIELD_FLAGS;
            param.flags = ucp::UCP_AM_SEND_FLAG_RNDV;
        }
        param.cb.send = Some(on_sent);
        // SAFETY: the front is in the flights; the payload is the caller's during this call, and
        // goes to the flights if UCX needs it for longer.
        let request = unsafe {
            self.context.library.ucp.ucp_am_send_nbx(
                endpoint,
                FRAME_MESSAGE,
                front.cast(),
                front_len,
                place.at.cast_const().cast(),
                place.len,
                &param,
            )
        };
        Ok(self.started(index, request))
    }

    /// Sends a message without a payload, which `write` writes.
    pub(super) fn tell(
        &mut self,
        endpoint: ucp::ucp_ep_h,
        notice: Notice,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Started {
        let index = self.flights.reserve(self.inbox_address());
        let (mut at, mut len) = (ptr::null(), 0);
        if let Some(front) = self.flights.front(index) {
            write(front);
            (at, len) = (front.as_ptr(), front.len());
        }
        let param = self.param(index);
        // SAFETY: the header stays in the flights until the operation has ended.
        let request = unsafe {
            self.context.library.ucp.ucp_am_send_nbx(
                endpoint,
                notice as u32,
                at.cast(),
                len,
                ptr::null(),
                0,
                &param,
            )
        };
        self.started(index, request)
    }

    /// Fetches a large payload into its place, which the caller has.
    pub(super) fn fetch(&mut self, data: *mut std::ffi::c_void, place: Place) -> Started {
        let index = self.flights.reserve(self.inbox_address());
        let mut param = self.param(index);
        place.describe(&mut param);
        param.cb.recv_am = Some(on_received);
        // SAFETY: the descriptor came from UCX and is used once; the region is the caller's during
        // this call, goes to the flights if UCX needs it for longer, and nobody else touches it.
        let request = unsafe {
            let ucp = &self.context.library.ucp;
            ucp.ucp_am_recv_data_nbx(self.raw, data, place.at.cast(), place.len, &param)
        };
        self.started(index, request)
    }

    /// Keeps what an operation needs until it has ended.
    pub(super) fn keep(&mut self, flight: Flight, operation: Operation) {
        self.flights.start(flight.0, operation);
    }

    /// Lets a large payload go that nobody wants any more.
    pub(super) fn release(&self, rendezvous: Rendezvous) {
        // SAFETY: the descriptor came from UCX and is given back once.
        unsafe { self.context.library.ucp.ucp_am_data_release(self.raw, rendezvous.data) }
    }

    /// Does what there is to do; true when there was something.
    pub(super) fn progress(&self) -> bool {
        // SAFETY: exclusive access; callbacks find the inbox not borrowed.
        unsafe { self.context.library.ucp.ucp_worker_progress(self.raw) != 0 }
    }

    /// Whether the event descriptor will tell of what comes next; else progress first.
    pub(super) fn arm(&self) -> bool {
        // SAFETY: exclusive access.
        unsafe { self.context.library.ucp.ucp_worker_arm(self.raw) == ucp::UCS_OK }
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.efd
    }

    pub(super) fn inbox(&self) -> &RefCell<Inbox> {
        &self.inbox
    }

    /// Gives back what an ended operation kept.
    pub(super) fn finish(&mut self, finished: &super::inbox::Finished) -> Option<Operation> {
        // SAFETY: the request of an operation that has ended, given back once.
        unsafe { self.context.library.ucp.ucp_request_free(finished.request) };
        self.flights.finish(finished.index)
    }

    /// How many operations are under way.
    pub(super) fn under_way(&self) -> usize {
        self.flights.under_way()
    }

    /// UCX's words for a status.
    pub(super) fn words(&self, status: ucs_status_t) -> String {
        status_text(&self.context.library.ucp, status)
    }

    fn inbox_address(&self) -> *const RefCell<Inbox> {
        &raw const *self.inbox
    }

    fn param(&self, index: usize) -> ucp::ucp_request_param_t {
        // SAFETY: all-zero is a valid value of this C structure; the mask says what is set.
        let mut param: ucp::ucp_request_param_t = unsafe { std::mem::zeroed() };
        param.op_attr_mask = ucp::UCP_OP_ATTR_FIELD_CALLBACK | ucp::UCP_OP_ATTR_FIELD_USER_DATA;
        param.cb.send = Some(on_sent);
        param.user_data = self.flights.ticket(index);
        param
    }

    fn started(&mut self, index: usize, request: ucs_status_ptr_t) -> Started {
        if request.is_null() {
            self.flights.give_back(index);
            return Started::Done;
        }
        if ptr_is_err(request) {
            self.flights.give_back(index);
            return Started::Failed(ptr_status(request));
        }
        Started::UnderWay(Flight(index))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: exclusive access; endpoints and operations end with it, and what they
        // touched is dropped after this, with the flights.
        unsafe { self.context.library.ucp.ucp_worker_destroy(self.raw) }
        let unfilled = self.flights.unfilled_on_device();
        if !unfilled.is_empty() {
            // A device waits for its copies when memory is freed, and other links do not wait with
            // it. Without a thread they are freed here.
            let freeing = move || drop(unfilled);
            if let Err(error) = Builder::new().name("ditmesh-freeing".to_owned()).spawn(freeing) {
                tracing::warn!(%error, "memory of a device is freed while other links wait");
            }
        }
    }
}

//! A UCP context: which transports of UCX may be used.
//!
//! Owns the configuration and the context's life. Knows no worker. Invariants: a context outlives
//! its workers, which hold it; it is made for workers on several threads, so it may be shared.

use std::ffi::CString;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use ucx_sys::bindings as ucp;
use ucx_sys::{Library, status_text};

use super::UcxConfig;
use crate::error::TransportError;
use crate::frame::DeviceOffer;
use crate::region::{DeviceMemory, MemKind};

/// How often UCX looks whether idle peers live; QUIC's own silence decides sooner or as soon.
const KEEPALIVE_INTERVAL: &str = "500ms";

/// Between processes of one host. CMA reads the sender's memory and never writes the receiver's
/// (`RNDV_SCHEME`): a closed link's regions are used again while its peer may still be at work.
const SHARED_MEMORY: &[(&str, &str)] =
    &[("TLS", "posix,sysv,cma,self"), ("RNDV_SCHEME", "get_zcopy"), QUEUE_ELEMENT];

/// The same for a process with a GPU, whose memory its peers read.
const SHARED_WITH_GPU: &[(&str, &str)] = &[
    ("TLS", "posix,sysv,cma,self,cuda_copy,cuda_ipc"),
    ("RNDV_SCHEME", "get_zcopy"),
    QUEUE_ELEMENT,
];

/// The elements of the queues in shared memory, in bytes: a small frame fits into one with its
/// front (UCX's own 128 do not take it), and so is written once and read once. Both ends must have
/// the same, so it is set whatever the environment says.
const QUEUE_ELEMENT: (&str, &str) = ("MM_FIFO_ELEM_SIZE", "512");

/// Between hosts: what RDMA devices offer, and TCP; what is not there is passed over.
const NETWORK: &[(&str, &str)] = &[("TLS", "^posix,sysv,cma,xpmem,knem")];

/// Which transports of UCX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Path {
    /// Shared memory of one host.
    SharedMemory,
    /// TCP, or RDMA where there is a device for it.
    Network,
}

pub(super) struct Context {
    pub(super) library: &'static Library,
    raw: ucp::ucp_context_h,
    /// The device of this process, if frames may come from one.
    device: Option<Arc<dyn DeviceMemory>>,
    /// Bytes of the blocks that it knows.
    pub(super) mapped_bytes: AtomicUsize,
}

// SAFETY: the context is made with MT_WORKERS_SHARED, so UCX locks what its functions touch.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn open(
        library: &'static Library,
        path: Path,
        config: &UcxConfig,
        device: Option<Arc<dyn DeviceMemory>>,
    ) -> Result<Self, TransportError> {
        let settings = Settings::read(library)?;
        let own: &[(&str, &str)] = match (path, &device) {
            (Path::SharedMemory, None) => SHARED_MEMORY,
            (Path::SharedMemory, Some(_)) => SHARED_WITH_GPU,
            (Path::Network, _) => NETWORK,
        };
        enter(device.as_ref());
        for (name, value) in own {
            settings.set(name, value)?;
        }
        settings.set("KEEPALIVE_INTERVAL", KEEPALIVE_INTERVAL)?;
        if let (Path::Network, Some(devices)) = (path, &config.devices) {
            settings.set("NET_DEVICES", devices)?;
        }
        // SAFETY: all-zero is a valid value of this C structure; the mask says what is set.
        let mut params: ucp::ucp_params_t = unsafe { std::mem::zeroed() };
        params.field_mask =
            u64::from(ucp::UCP_PARAM_FIELD_FEATURES | ucp::UCP_PARAM_FIELD_MT_WORKERS_SHARED);
        params.features = u64::from(ucp::UCP_FEATURE_AM | ucp::UCP_FEATURE_WAKEUP);
        params.mt_workers_shared = 1;
        let mut raw = ptr::null_mut();
        // SAFETY: all pointers are to live values of the right types.
        let status = unsafe { ucx_sys::init(&library.ucp, &params, settings.raw, &mut raw) };
        check(library, "open its transports", status)?;
        Ok(Self { library, raw, device, mapped_bytes: AtomicUsize::new(0) })
    }

    /// Whether the memory of this process's device is taken.
    pub(super) fn device_offer(&self) -> DeviceOffer {
        let Some(device) = &self.device else { return DeviceOffer::NoDevice };
        // SAFETY: all-zero is a valid value of this C structure; the mask says what is asked.
        let mut attributes: ucp::ucp_context_attr_t = unsafe { std::mem::zeroed() };
        attributes.field_mask = u64::from(ucp::UCP_ATTR_FIELD_MEMORY_TYPES);
        // SAFETY: the context lives, and the structure is written within its size.
        let status = unsafe { self.library.ucp.ucp_context_query(self.raw, &mut attributes) };
        if let Err(error) = check(self.library, "say what memory it takes", status) {
            return DeviceOffer::Staged(error.to_string());
        }
        let wanted = match device.kind() {
            MemKind::Host | MemKind::Pinned => ucp::UCS_MEMORY_TYPE_HOST,
            MemKind::Cuda { .. } => ucp::UCS_MEMORY_TYPE_CUDA,
        };
        match attributes.memory_types & (1 << wanted) {
            0 => DeviceOffer::Staged("this UCX has no modules for CUDA".to_owned()),
            _ => DeviceOffer::Direct,
        }
    }

    /// Lets the calling thread use the device; before whatever may touch its memory.
    pub(super) fn enter(&self) {
        enter(self.device.as_ref());
    }

    pub(super) fn raw(&self) -> ucp::ucp_context_h {
        self.raw
    }
}

fn enter(device: Option<&Arc<dyn DeviceMemory>>) {
    if let Some(device) = device {
        device.enter();
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.enter();
        // SAFETY: made by ucp_init_version, and every worker of it held this value.
        unsafe { self.library.ucp.ucp_cleanup(self.raw) }
    }
}

/// UCX's configuration: the environment's `UCX_*`, then what is set here.
struct Settings {
    library: &'static Library,
    raw: *mut ucp::ucp_config_t,
}

impl Settings {
    fn read(library: &'static Library) -> Result<Self, TransportError> {
        let mut raw = ptr::null_mut();
        // SAFETY: no prefix and no file is allowed; writes one pointer.
        let status = unsafe { library.ucp.ucp_config_read(ptr::null(), ptr::null(), &mut raw) };
        check(library, "read its configuration", status)?;
        Ok(Self { library, raw })
    }

    fn set(&self, name: &str, value: &str) -> Result<(), TransportError> {
        let text = |text: &str| {
            let nul = |_| TransportError::malformed(format!("setting of UCX: {text:?}"));
            CString::new(text).map_err(nul)
        };
        let (key, text) = (text(name)?, text(value)?);
        // SAFETY: the configuration lives, and the texts are copied.
        let status =
            unsafe { self.library.ucp.ucp_config_modify(self.raw, key.as_ptr(), text.as_ptr()) };
        check(self.library, &format!("set {name} to {value}"), status)
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        // SAFETY: made by ucp_config_read and released once.
        unsafe { self.library.ucp.ucp_config_release(self.raw) }
    }
}

/// A status of UCX as a result.
pub(super) fn check(
    library: &Library,
    what: &str,
    status: ucx_sys::ucs_status_t,
) -> Result<(), TransportError> {
    if status == ucp::UCS_OK {
        return Ok(());
    }
    let cause = status_text(&library.ucp, status);
    Err(TransportError::Ucx { what: what.to_owned(), cause })
}

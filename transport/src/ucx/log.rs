//! What UCX has to say goes to `tracing`, and never to standard output.
//!
//! Owns the one handler of the process. Invariant: nothing is printed; standard output may carry a
//! protocol.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::sync::Once;

use ucx_sys::Library;
use ucx_sys::bindings::{self as ucp, __va_list_tag};

/// The longest message, in bytes; longer ones are cut.
const MESSAGE_BYTES_MAX: usize = 512;

unsafe extern "C" {
    fn vsnprintf(
        out: *mut c_char,
        size: usize,
        format: *const c_char,
        arguments: *mut __va_list_tag,
    ) -> c_int;
}

/// Takes UCX's messages over, once.
pub(super) fn install(library: &'static Library) {
    static INSTALLED: Once = Once::new();
    // SAFETY: the handler is a function of this program and UCX is never unloaded.
    INSTALLED.call_once(|| unsafe { library.ucp.ucs_log_push_handler(Some(tell)) });
}

unsafe extern "C" fn tell(
    _file: *const c_char,
    _line: c_uint,
    _function: *const c_char,
    level: ucp::ucs_log_level_t,
    _component: *const ucp::ucs_log_component_config_t,
    format: *const c_char,
    arguments: *mut __va_list_tag,
) -> ucp::ucs_log_func_rc_t {
    if level <= ucp::UCS_LOG_LEVEL_INFO {
        let mut text = [0; MESSAGE_BYTES_MAX];
        // SAFETY: a format and its arguments, from UCX, into a buffer of the given size that
        // vsnprintf ends with a zero byte. A va_list parameter is a pointer on x86-64 and AArch64.
        let text = unsafe {
            vsnprintf(text.as_mut_ptr(), text.len(), format, arguments);
            CStr::from_ptr(text.as_ptr())
        };
        let text = text.to_string_lossy();
        // A link that breaks is told by its own error; UCX's words are for whoever looks closer.
        if level <= ucp::UCS_LOG_LEVEL_ERROR {
            tracing::info!(target: "ditmesh_transport::ucx", "ucx: {text}");
        } else {
            tracing::debug!(target: "ditmesh_transport::ucx", "ucx: {text}");
        }
    }
    ucp::UCS_LOG_FUNC_RC_STOP
}

//! Bindings of UCX's `ucp/api/ucp.h`, opened at run time.
//!
//! Owns the generated declarations ([`bindings`]), the finding of `libucp.so.0`, the check that it
//! is not older than the headers they were made from, and by hand what C writes as inline functions
//! and macros. Owns no safety: every function of [`Ucp`] is as unsafe as in C. Invariants: nothing
//! of UCX is needed to build or to start a program; once opened, the library stays.
//!
//! The generated file comes from Debian's `libucx-dev` 1.13.1; see `src/bin/regenerate.rs`.

mod open;

/// The generated declarations.
#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    rustdoc::all
)]
#[rustfmt::skip]
pub mod bindings;

use std::ffi::CStr;

pub use bindings::{Ucp, ucs_status_ptr_t, ucs_status_t};
pub use open::{LIBRARY, Library, OpenError, Version, library};

/// `UCS_PTR_IS_ERR`: whether a request pointer is a status below zero.
pub fn ptr_is_err(request: ucs_status_ptr_t) -> bool {
    // The last statuses of the address range, as `UCS_ERR_LAST` bounds them.
    request.addr() >= usize::MAX - usize::from(bindings::UCS_ERR_LAST.unsigned_abs())
}

/// `UCS_PTR_STATUS`: the status of a pointer that is no request.
pub fn ptr_status(request: ucs_status_ptr_t) -> ucs_status_t {
    request.addr() as isize as ucs_status_t
}

/// `UCS_PTR_IS_PTR`: whether the pointer names a request that is under way.
pub fn ptr_is_request(request: ucs_status_ptr_t) -> bool {
    !request.is_null() && !ptr_is_err(request)
}

/// `ucp_init`, which C has inline: the headers' version is told to the library.
///
/// # Safety
/// As `ucp_init_version`.
pub unsafe fn init(
    ucp: &Ucp,
    params: *const bindings::ucp_params_t,
    config: *const bindings::ucp_config_t,
    context: *mut bindings::ucp_context_h,
) -> ucs_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        ucp.ucp_init_version(
            bindings::UCP_API_MAJOR,
            bindings::UCP_API_MINOR,
            params,
            config,
            context,
        )
    }
}

/// `ucs_status_string` as owned text.
pub fn status_text(ucp: &Ucp, status: ucs_status_t) -> String {
    // SAFETY: takes any number and returns a text that lives for ever.
    let text = unsafe { CStr::from_ptr(ucp.ucs_status_string(status)) };
    text.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(status: isize) -> ucs_status_ptr_t {
        std::ptr::without_provenance_mut(status as usize)
    }

    #[test]
    fn statuses_and_requests_are_told_apart() {
        for status in [bindings::UCS_ERR_NO_MESSAGE, bindings::UCS_ERR_CANCELED, -80] {
            let request = pointer(status as isize);
            assert!(ptr_is_err(request) && !ptr_is_request(request));
            assert_eq!(ptr_status(request), status);
        }
        assert!(!ptr_is_err(std::ptr::null_mut()) && !ptr_is_request(std::ptr::null_mut()));
        let live = &mut 0_u64 as *mut u64;
        assert!(ptr_is_request(live.cast()));
    }

    #[test]
    fn an_installed_library_says_its_version_and_words() {
        match library() {
            Ok(ucx) => {
                assert!(ucx.version >= Version::HEADERS);
                assert_eq!(status_text(&ucx.ucp, bindings::UCS_OK), "Success");
            }
            Err(error) => eprintln!("skipped: {error}"),
        }
    }
}

//! Makes `src/bindings.rs` from the UCX headers of this machine:
//! `cargo run -p ucx-sys --features regenerate`.
//!
//! Owns the list of what is bound. Needs `libucx-dev` and `libclang-dev`; nothing else does.

use std::path::Path;

/// What is bound of libucp and, through it, of libucs.
const FUNCTIONS: [&str; 27] = [
    "ucp_get_version",
    "ucp_config_read",
    "ucp_config_modify",
    "ucp_config_release",
    "ucp_init_version",
    "ucp_cleanup",
    "ucp_context_query",
    "ucp_mem_map",
    "ucp_mem_unmap",
    "ucp_worker_create",
    "ucp_worker_destroy",
    "ucp_worker_query",
    "ucp_worker_release_address",
    "ucp_worker_get_efd",
    "ucp_worker_arm",
    "ucp_worker_signal",
    "ucp_worker_progress",
    "ucp_worker_set_am_recv_handler",
    "ucp_ep_create",
    "ucp_ep_close_nbx",
    "ucp_am_send_nbx",
    "ucp_am_recv_data_nbx",
    "ucp_am_data_release",
    "ucp_request_free",
    "ucp_request_check_status",
    "ucs_status_string",
    "ucs_log_push_handler",
];

/// Enumerations and macros that the functions' arguments are made of.
const VALUES: [&str; 3] = ["UCP_.*", "UCS_(OK|INPROGRESS|ERR_.*|MEMORY_TYPE_.*|LOG_.*)", "ucp_.*"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut builder = bindgen::Builder::default()
        .header_contents("ucx.h", "#include <ucp/api/ucp.h>\n#include <ucs/debug/log_def.h>\n")
        .dynamic_library_name("Ucp")
        .dynamic_link_require_all(true)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_debug(false)
        .derive_default(false)
        .use_core()
        // A va_list is passed on and never looked into.
        .blocklist_type("__va_list_tag")
        .raw_line("pub type __va_list_tag = ::core::ffi::c_void;");
    for function in FUNCTIONS {
        builder = builder.allowlist_function(function);
    }
    for values in VALUES {
        builder = builder.allowlist_var(values);
    }
    for types in ["ucp_params", "ucp_.*_params_t", "ucp_.*_attr_t", "ucp_.*_field", "ucs_status_t"]
    {
        builder = builder.allowlist_type(types);
    }
    let types = [
        "ucp_feature",
        "ucp_op_attr_t",
        "ucp_am_.*",
        "ucs_memory_type_t",
        "ucp_err_handl.*",
        "ucp_send_am_flags",
        "ucp_ep_close_flags_t",
    ];
    for name in types {
        builder = builder.allowlist_type(name);
    }
    // bindgen writes for libloading 0.8, where a name was anything like an OsStr.
    let text = builder.generate()?.to_string();
    let text = text.replace("P: AsRef<::std::ffi::OsStr>", "P: ::libloading::AsFilename");
    std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bindings.rs"), text)?;
    Ok(())
}

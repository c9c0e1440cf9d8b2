//! Meshes whose frames ride on UCX where that is wanted and possible.
//!
//! Owns the fabric (QUIC's, with lanes of UCX), the choice between the two for each link, the one
//! thread that UCX runs on, and the safe layer over `ucx_sys`. Control, grants, aborts and
//! heartbeats stay on QUIC, which also authenticates: workers' addresses and nonces travel on the
//! control connection of the link they are for. Invariants: frames ride on UCX only when both ends
//! have heard each other over it; UCX encrypts and authenticates nothing, so it crosses hosts only
//! with [`UcxConfig::trusted_network`]; a program without UCX runs, and says why it has none.

mod choice;
mod coming;
mod commands;
mod context;
mod driver;
mod engine;
mod fabric;
mod flights;
mod front;
mod host;
mod inbox;
mod lane;
mod log;
mod memory;
mod seats;
mod upgrade;
mod worker;

pub use choice::LaneChoice;
pub use fabric::UcxFabric;

use crate::error::TransportError;

/// What UCX may be used for, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UcxConfig {
    /// Links whose ends are on one host.
    pub same_host: LaneChoice,
    /// Links between hosts.
    pub other_host: LaneChoice,
    /// Whether frames may cross hosts unencrypted: everybody who can send to or listen on the
    /// network between them can read and forge them.
    pub trusted_network: bool,
    /// UCX's network devices (`UCX_NET_DEVICES`), as in `eth0` or `mlx5_0:1,eth0`; all by default.
    pub devices: Option<String>,
}

/// Names and values for the environment of a process that computes on a GPU, read by UCX when it is
/// opened. By default UCX watches every allocation on a GPU, to know later what kind of memory an
/// address is and whether its registration holds; with hundreds of tensors in a step that costs
/// more than the frames do (docs/cuda.md has the figures). Here both go with each request.
const GPU_ENVIRONMENT: [(&str, &str); 2] = [("UCX_MEMTYPE_CACHE", "n"), ("UCX_RCACHE_ENABLE", "n")];

/// Those of them that this process has not, and with it whatever it starts: what the user has set
/// goes first.
pub fn gpu_environment() -> impl Iterator<Item = (&'static str, &'static str)> {
    GPU_ENVIRONMENT.into_iter().filter(|(name, _)| std::env::var_os(name).is_none())
}

/// The version of UCX on this machine.
///
/// # Errors
/// [`TransportError::Ucx`] when it cannot be opened here.
pub fn version() -> Result<String, TransportError> {
    library().map(|library| library.version.to_string())
}

/// The body of the fuzz target `front` and of its test: no front of a frame may panic its reader.
pub fn read_any_front(bytes: &[u8]) {
    let named = front::nonce(bytes).is_some();
    if let Ok((header, meta)) = front::read(bytes) {
        assert!(named && bytes.len() > header.meta_len as usize);
        let _ = meta.check(header.payload_len);
    }
}

fn library() -> Result<&'static ucx_sys::Library, TransportError> {
    let library = ucx_sys::library();
    let library = library.map_err(|error| TransportError::Ucx {
        what: "be used".to_owned(),
        cause: error.to_string(),
    })?;
    log::install(library);
    Ok(library)
}

//! The user's folder for caches: where the built-in model is unpacked and calibrations are kept.

use std::io;
use std::path::{Path, PathBuf};

/// Variable that names the folder for caches, before `XDG_CACHE_HOME` and `~/.cache`.
pub const VARIABLE: &str = "DITMESH_CACHE_DIR";

/// The user's folder for caches.
///
/// # Errors
/// When none of the variables that name it is set.
pub fn root() -> io::Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let named = set(VARIABLE).or_else(|| set("XDG_CACHE_HOME")).map(PathBuf::from);
    named.or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache"))).ok_or_else(|| {
        let message = format!("no folder for caches: HOME is not set; set {VARIABLE}");
        io::Error::new(io::ErrorKind::NotFound, message)
    })
}

//! Finding and opening the library, once per process.
//!
//! Owns the one handle. Invariant: a library older than the headers, or of another major version,
//! is refused before any of its other functions is called.

use std::fmt;
use std::sync::OnceLock;

use crate::bindings::{UCP_API_MAJOR, UCP_API_MINOR, Ucp};

/// What is opened; it brings libucs and libuct along.
pub const LIBRARY: &str = "libucp.so.0";

/// A version of UCX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Another one is another interface.
    pub major: u32,
    /// A higher one can do more.
    pub minor: u32,
    /// Corrections.
    pub release: u32,
}

impl Version {
    /// Of the headers that the bindings were made from.
    pub const HEADERS: Self = Self { major: UCP_API_MAJOR, minor: UCP_API_MINOR, release: 0 };

    fn serves(self) -> bool {
        self.major == Self::HEADERS.major && self >= Self::HEADERS
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.release)
    }
}

/// Why UCX cannot be used in this process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is not installed, or lacks a function.
    #[error(
        "cannot open {LIBRARY}: {cause}; install UCX (Debian and Ubuntu: `apt install libucx0`)"
    )]
    Missing {
        /// What the loader said.
        cause: String,
    },
    /// It is not the version that the bindings were made for.
    #[error(
        "{LIBRARY} is UCX {found}, and this build speaks {}.{} or later of major {}",
        Version::HEADERS.major, Version::HEADERS.minor, Version::HEADERS.major
    )]
    Version {
        /// What the library says of itself.
        found: Version,
    },
}

/// The opened library.
pub struct Library {
    /// Its functions.
    pub ucp: Ucp,
    /// Its version.
    pub version: Version,
}

/// The library of this process; opened by the first call, and kept.
///
/// # Errors
/// [`OpenError`], the same at every call.
pub fn library() -> Result<&'static Library, OpenError> {
    static OPENED: OnceLock<Result<Library, OpenError>> = OnceLock::new();
    OPENED.get_or_init(open).as_ref().map_err(Clone::clone)
}

fn open() -> Result<Library, OpenError> {
    let missing = |error: libloading::Error| OpenError::Missing { cause: error.to_string() };
    // SAFETY: UCX's constructors read the environment and prepare its logging; it is never
    // unloaded.
    let ucp = unsafe { Ucp::new(LIBRARY) }.map_err(missing)?;
    let mut version = Version { major: 0, minor: 0, release: 0 };
    // SAFETY: writes three numbers.
    unsafe {
        ucp.ucp_get_version(&mut version.major, &mut version.minor, &mut version.release);
    }
    if version.serves() {
        Ok(Library { ucp, version })
    } else {
        Err(OpenError::Version { found: version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_and_other_versions_are_refused() {
        let of = |major, minor| Version { major, minor, release: 1 };
        assert!(of(1, 13).serves() && of(1, 22).serves());
        assert!(!of(1, 12).serves() && !of(2, 13).serves() && !of(0, 99).serves());
    }
}

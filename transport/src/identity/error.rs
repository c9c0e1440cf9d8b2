//! What can be wrong with keys and certificates; every message names the file and what to do.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A key or certificate cannot be read, written or used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file is not there.
    #[error(
        "{} is missing: run `ditmesh certs`, or copy the file from the node that made it",
        path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A file is larger than any key or certificate.
    #[error(
        "{} has {bytes} bytes, the limit for keys and certificates is {limit}",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// The bound in bytes.
        limit: u64,
    },
    /// A file is there but is not what it should be.
    #[error(
        "{} cannot be used: {cause}; run `ditmesh certs` to make new certificates",
        path.display()
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A name that cannot stand in a certificate.
    #[error(
        "{what} name {name:?} cannot stand in a certificate: use lower-case letters, digits and \
         hyphens, labels of at most 63 characters separated by dots"
    )]
    Name {
        /// Cluster, node, client or worker.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The TLS library refused.
    #[error("cannot {what}: {cause}")]
    Tls {
        /// What was attempted.
        what: &'static str,
        /// What the library said.
        cause: String,
    },
}

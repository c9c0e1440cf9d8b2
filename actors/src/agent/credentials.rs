//! A node's certificate and key on their way down a pipe: from a launcher to an agent, from an
//! agent to its workers.
//!
//! Invariant: never printed, never in arguments, never in a file of the host that is told.

use std::fmt;

use ditmesh_transport::identity::{Identity, IdentityError, IdentityPem};
use serde::{Deserialize, Serialize};

/// What a process of a node proves itself with.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Credentials {
    certificate: String,
    key: String,
    authority: String,
}

impl Credentials {
    /// Those of `identity`.
    pub(crate) fn of(identity: &Identity) -> Self {
        let IdentityPem { certificate, key, authority } = identity.to_pem();
        Self { certificate, key, authority }
    }

    /// The identity they make.
    ///
    /// # Errors
    /// When a text is not what it should be.
    pub(crate) fn identity(&self) -> Result<Identity, IdentityError> {
        let Self { certificate, key, authority } = self.clone();
        Identity::from_pem(IdentityPem { certificate, key, authority })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

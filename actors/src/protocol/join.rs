//! The one question of a machine that joins, and its answer: JSON over the joiners' TLS.
//!
//! Owns their form. Secrets are in them: they are never printed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::manifest::{Manifest, NodeSection};

/// Asks to be let in.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct JoinQuestion {
    /// [`SCHEMA`](super::SCHEMA) of the joiner.
    pub(crate) schema: u64,
    /// Its build, for people.
    pub(crate) build: String,
    /// Which token.
    pub(crate) token: String,
    /// What proves it.
    pub(crate) secret: String,
    /// Name, address and devices.
    pub(crate) node: NodeSection,
    /// Public half of its key.
    pub(crate) key: Vec<u8>,
}

impl fmt::Debug for JoinQuestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinQuestion({}, token {})", self.node.name, self.token)
    }
}

/// Whether it is let in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum JoinAnswer {
    /// It is.
    Admitted(Box<Admission>),
    /// It is not, and why.
    Refused(String),
}

/// What a machine needs to be a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Admission {
    /// For the joiner's key, PEM.
    pub(crate) certificate: String,
    /// The authority's, PEM.
    pub(crate) authority: String,
    /// The cluster's, with the node in it.
    pub(crate) manifest: Manifest,
}

//! Why a member is no longer one.
//!
//! Owns the typed cause that travels from membership to the group actors and into the message a
//! user reads.

use super::Incarnation;

/// Why a node or device was lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// Its agent saw the worker process end.
    #[error("its worker ended ({status})")]
    Exited {
        /// As the system says it.
        status: String,
    },
    /// Nothing was heard of it for too long.
    #[error("silent for {milliseconds} ms")]
    Silent {
        /// Length of the silence.
        milliseconds: u64,
    },
    /// It is heard, but does not end what it computes.
    #[error("it hangs: it did not stop within {milliseconds} ms")]
    Hung {
        /// What it was given to stop.
        milliseconds: u64,
    },
    /// Its session ended.
    #[error("its session ended ({reason})")]
    Closed {
        /// Why.
        reason: String,
    },
    /// A newer life of it joined.
    #[error("it came back as incarnation {by}")]
    Replaced {
        /// The newer one.
        by: Incarnation,
    },
    /// It left, as somebody asked.
    #[error("it left")]
    Left,
    /// Somebody said that it is gone.
    #[error("it was forced to leave")]
    Forced,
    /// The node it is on was lost.
    #[error("node {node} was lost: {cause}")]
    Node {
        /// Which node.
        node: String,
        /// Why.
        cause: Box<Loss>,
    },
}

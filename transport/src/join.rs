//! How a machine that has no certificate yet asks for one: one question and one answer over TLS.
//!
//! Owns the token (what a machine is given to join with), its hash (what the cluster keeps of it),
//! the exchange and the signing of the joiner's key. Does not decide who may join, nor what the
//! question says. Invariants: the joiner knows the cluster by the authority's certificate in its
//! token and speaks to nobody else; its private key never leaves it; nobody without a certificate
//! can do anything but ask this one question, and only while the door is open.

mod ask;
mod door;
mod key;
mod token;

use std::time::Duration;

pub use ask::ask;
pub use door::Joining;
pub(crate) use door::{JOINS_WAITING_MAX, answer};
pub use key::JoinKey;
pub(crate) use key::PublicKey;
pub use token::{JoinToken, TokenError, TokenHash};

/// The protocol's name in TLS.
pub(crate) const ALPN: &[u8] = b"ditmesh-join";

/// Longest question or answer, in bytes.
pub const JOIN_BYTES_MAX: usize = 256 << 10;

/// Longest time for one of them, and for the answer to be found.
pub const JOIN_DEADLINE: Duration = Duration::from_secs(10);

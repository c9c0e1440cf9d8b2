//! What makes the links of a host slow or broken, as that host can see it.
//!
//! Owns looking: [`host`] at the host itself, [`ports`] at the ports of others. Runs in the process
//! of whoever asks and in every agent. Does not judge what takes two ends to know (which end limits
//! a path, whether clocks agree): that is made of several hosts' answers by `ditmesh doctor`.
//! Invariant: nothing is changed on the host, and every look ends by its deadline.

pub mod clock;
mod finding;
pub mod host;
pub mod ports;

use std::net::{IpAddr, ToSocketAddrs};

/// The address behind a host's name.
///
/// # Errors
/// In the system's words.
pub fn resolve(host: &str) -> Result<IpAddr, String> {
    let mut found = (host, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    found.next().map(|address| address.ip()).ok_or_else(|| "it is unknown".to_owned())
}

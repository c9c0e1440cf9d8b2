//! Where the bulk connections of a fabric are accepted.
//!
//! Owns a short list of addresses that can be copied. Invariant: it has one to
//! [`BULK_LANES_MAX`] entries.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::error::TransportError;

/// The most bulk connections per pair of peers.
pub const BULK_LANES_MAX: usize = 4;

/// The UDP addresses of a fabric's bulk endpoints; prints as `host:port,host:port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneAddresses {
    /// Places past `len` repeat the first, so that equal lists are equal.
    all: [SocketAddr; BULK_LANES_MAX],
    len: usize,
}

impl LaneAddresses {
    /// A list of one.
    pub fn one(address: SocketAddr) -> Self {
        Self { all: [address; BULK_LANES_MAX], len: 1 }
    }

    /// A list in the order of lanes.
    ///
    /// # Errors
    /// [`TransportError::Malformed`] when there are none or more than [`BULK_LANES_MAX`].
    pub fn new(addresses: &[SocketAddr]) -> Result<Self, TransportError> {
        let (Some(first), true) = (addresses.first(), addresses.len() <= BULK_LANES_MAX) else {
            return Err(TransportError::malformed(format!(
                "bulk addresses: {} of them, 1 to {BULK_LANES_MAX} expected",
                addresses.len()
            )));
        };
        let mut lanes = Self { all: [*first; BULK_LANES_MAX], len: addresses.len() };
        for (place, address) in lanes.all.iter_mut().zip(addresses) {
            *place = *address;
        }
        Ok(lanes)
    }

    /// The addresses, lane 0 first.
    pub fn as_slice(&self) -> &[SocketAddr] {
        self.all.get(..self.len).unwrap_or_default()
    }

    /// The same ports on another host.
    #[must_use]
    pub fn on(mut self, ip: IpAddr) -> Self {
        self.all.iter_mut().for_each(|address| address.set_ip(ip));
        self
    }
}

impl fmt::Display for LaneAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (lane, address) in self.as_slice().iter().enumerate() {
            let comma = if lane == 0 { "" } else { "," };
            write!(f, "{comma}{address}")?;
        }
        Ok(())
    }
}

impl FromStr for LaneAddresses {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // One more than the limit is enough to refuse.
        let parts = text.split(',').take(BULK_LANES_MAX + 1).map(str::parse);
        let addresses: Result<Vec<SocketAddr>, _> = parts.collect();
        let malformed = |_| TransportError::malformed(format!("bulk addresses {text:?}"));
        Self::new(&addresses.map_err(malformed)?)
    }
}

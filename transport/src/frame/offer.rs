//! What the two ends of a QUIC link tell each other before frames may ride on UCX instead.
//!
//! Owns the message and its bounds. Does not own the choice; see `ucx/choice.rs`. The message
//! travels on the authenticated control connection, so whoever knows the nonce is the peer.

use rkyv::{Archive, Deserialize, Serialize};

use crate::error::TransportError;

/// The longest address of a UCX worker, in bytes.
pub(crate) const UCX_ADDRESS_BYTES_MAX: usize = 16 << 10;

/// A name for one end of one link that nobody guesses.
pub type Nonce = [u8; 16];

/// One end's side of the choice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct LaneOffer {
    /// What frames to this end carry in front.
    pub nonce: Nonce,
    /// This host and its namespaces, as far as shared memory needs them to be the same.
    pub host: [u8; 16],
    /// Whether the two are on one host, as this end sees it.
    pub same_host: bool,
    /// What this end wants: 0 QUIC, 1 UCX, 2 whatever is best.
    pub choice: u8,
    /// Where this end's UCX worker is; empty when it has none.
    pub address: Vec<u8>,
    /// Why it has none.
    pub cause: String,
    /// Whether frames to and from this end may stay in the memory of its device.
    pub device: DeviceOffer,
}

/// What one end does with frames that come from a device, and go to one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub enum DeviceOffer {
    /// It computes in host memory.
    #[default]
    NoDevice,
    /// UCX takes its device's memory.
    Direct,
    /// They pass through host memory, for this reason.
    Staged(String),
}

impl LaneOffer {
    /// Checks what the archive's own check does not.
    ///
    /// # Errors
    /// [`TransportError::FrameTooLarge`] or [`TransportError::Malformed`].
    pub fn check(&self) -> Result<(), TransportError> {
        if self.address.len() > UCX_ADDRESS_BYTES_MAX {
            return Err(TransportError::FrameTooLarge {
                what: "address of a UCX worker",
                bytes: self.address.len() as u64,
                limit: UCX_ADDRESS_BYTES_MAX as u64,
            });
        }
        if self.choice > 2 {
            return Err(TransportError::malformed(format!("lane offer: choice {}", self.choice)));
        }
        Ok(())
    }
}

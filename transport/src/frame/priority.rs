//! What goes first when several frames wait for one peer.
//!
//! Owns the classes and their order. Heartbeats and grants are above all of them, on connections of
//! their own. Invariant: order within a class is the order of sending; between classes there is
//! none, because a frame is placed by its slot.

use rkyv::{Archive, Deserialize, Serialize};

/// The class of a frame; a higher one overtakes a lower one, even in the middle of it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Archive,
    Serialize,
    Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub enum Priority {
    /// Weights, checkpoints, finished pictures: nobody computes with them now.
    Bulk,
    /// Keys, values and attention results inside a block.
    #[default]
    Exchange,
    /// Latents and the next patch's activations: the peer's compute waits for them.
    Next,
}

impl Priority {
    /// Every class, the lowest first.
    pub const ALL: [Self; 3] = [Self::Bulk, Self::Exchange, Self::Next];

    /// Its place in [`Self::ALL`].
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Bulk => 0,
            Self::Exchange => 1,
            Self::Next => 2,
        }
    }
}

//! The names of things on the wire: who (peer), which execution (run), which mesh (epoch), which
//! process (incarnation), which message (tag).
//!
//! Owns the newtypes, how they print, and the map that finds things by them. Does not own how they
//! are handed out: the coordinator numbers epochs and runs, the planner makes tags.

use std::collections::HashMap;
use std::fmt;

use foldhash::fast::RandomState;

use rkyv::{Archive, Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            Archive, Serialize, Deserialize,
        )]
        #[rkyv(attr(allow(missing_docs)))]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

id! {
    /// A member of one mesh: the ranks are `0..world`, the controller is `world`.
    PeerId(u32)
}
id! {
    /// One execution of one program for a batch of images.
    RunId(u64)
}
id! {
    /// The number of a mesh; a later mesh has a higher epoch.
    Epoch(u64)
}
id! {
    /// One life of one process: a restarted process has another incarnation.
    Incarnation(u64)
}
id! {
    /// One message of one run between one sender and one receiver; opaque to this crate.
    Tag(u64)
}

/// Finds things by numbers that members of the cluster have handed out. Its hash costs a few
/// nanoseconds; the seed is random, so that no peer knows which of its numbers collide, but it is
/// not for what strangers choose.
pub(crate) type IdMap<K, V> = HashMap<K, V, RandomState>;

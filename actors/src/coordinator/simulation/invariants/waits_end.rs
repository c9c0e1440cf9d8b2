//! Every wait ends by its deadline: a rank that waits for a frame gets it, or is told to stop.

use std::time::Duration;

use super::Watch;
use crate::membership::Now;

pub(in super::super) const NAME: &str = "waits end";

/// The longest that a rank which can be reached may wait: detection of a silent peer, the loss told,
/// and what a mesh of this size computes in between.
const WAIT_MAX: Duration = Duration::from_secs(8);

impl Watch {
    /// A rank waits since then.
    pub(in super::super) fn waits(&mut self, since: Now, now: Now, who: impl std::fmt::Display) {
        if now.saturating_sub(since) > WAIT_MAX {
            self.broken(NAME, format!("{who} since {since:?}, it is {now:?}"));
        }
    }
}

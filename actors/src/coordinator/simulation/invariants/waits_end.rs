//! Every wait ends by its deadline: a rank that waits for a frame gets it, or is told to stop; a
//! request that waits for its turn or a mesh gets it by its deadline, or ends.

use std::time::Duration;

use super::Watch;
use crate::membership::Now;

pub(in super::super) const NAME: &str = "waits end";

/// The longest that a rank which can be reached may wait: five of the slowest steps here until it
/// is noticed that a device hangs, two seconds to stop the others, and the loss told.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Until the coordinator looks for requests whose deadlines are over.
const LOOK_MAX: Duration = Duration::from_millis(200);

impl Watch {
    /// A request waits, with that deadline.
    pub(in super::super) fn expires(
        &mut self,
        deadline: Now,
        now: Now,
        who: impl std::fmt::Display,
    ) {
        if now > deadline + LOOK_MAX {
            self.broken(NAME, format!("{who} waits until {deadline:?}, it is {now:?}"));
        }
    }

    /// A rank waits and is late.
    pub(in super::super) fn waits(&mut self, now: Now, who: impl std::fmt::Display) {
        self.broken(NAME, format!("{who}, it is {now:?}"));
    }
}

/// Whether a rank has waited for too long.
pub(in super::super) fn is_late(since: Now, now: Now) -> bool {
    now.saturating_sub(since) > WAIT_MAX
}

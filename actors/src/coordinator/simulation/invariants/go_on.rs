//! Runs go on: once all faults are over and mended, no run stops on devices that are all there and
//! compute. One that does waits for itself, by the order of what its ranks do.

use super::Watch;
use crate::coordinator::simulation::ms;
use crate::coordinator::simulation::world::FAULTS_END;
use crate::membership::Now;

pub(in super::super) const NAME: &str = "runs go on";

/// From then on nothing is disturbed any more: the last fault is mended, what was held up has
/// arrived, and what stopped then was noticed.
const HEALED: Now = FAULTS_END.saturating_add(ms(12_000));

impl Watch {
    /// It is noticed that a run does not go on, whose devices are `disturbed` or not.
    pub(in super::super) fn stalls(&mut self, now: Now, disturbed: bool, run: u64, epoch: u64) {
        if now > HEALED && !disturbed {
            self.broken(NAME, format!("run {run} of epoch {epoch} stands still at {now:?}"));
        }
    }
}

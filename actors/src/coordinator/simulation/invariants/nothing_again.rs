//! Nothing is done again: a run goes on from the newest step that its coordinator has kept of each
//! of its requests, over losses, moves, restarts, and for a client that asks again.

use super::Watch;

pub(in super::super) const NAME: &str = "nothing again";

impl Watch {
    /// A run of a request begins at a step; so many are kept of it.
    pub(in super::super) fn begins_at(&mut self, request: u64, first_step: u32, kept: u32) {
        if first_step < kept {
            let how = format!("begins at step {first_step}, {kept} are kept");
            self.broken(NAME, format!("request {request} {how}"));
        }
    }
}

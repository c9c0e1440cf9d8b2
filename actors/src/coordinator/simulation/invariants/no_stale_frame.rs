//! No stale frame is accepted: a rank computes with what ranks of its own mesh sent, in the life in
//! which they joined it, and with nothing else.

use super::Watch;

pub(in super::super) const NAME: &str = "no stale frame";

impl Watch {
    /// A rank takes a frame; `fits` says whether mesh, run and both lives are those of now.
    pub(in super::super) fn accepted(&mut self, fits: bool, frame: impl std::fmt::Display) {
        if !fits {
            self.broken(NAME, frame);
        }
    }
}

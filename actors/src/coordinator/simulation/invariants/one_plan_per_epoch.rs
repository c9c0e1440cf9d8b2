//! No two plans of one epoch: what a number of a mesh stands for never changes, whatever dies.

use super::Watch;

pub(in super::super) const NAME: &str = "one plan per epoch";

impl Watch {
    /// The coordinator orders a mesh.
    pub(in super::super) fn ordered(&mut self, epoch: u64, mesh: String) {
        if let Some(before) = self.plans.insert(epoch, mesh.clone()) {
            self.broken(NAME, format!("epoch {epoch} is {before}, then {mesh}"));
        }
    }
}

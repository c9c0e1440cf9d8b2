//! How stale keys and values were, step by step: the record a rank keeps for its report.
//!
//! Owns the record. What is measured is [`PartitionRun::take_kv_change`].

use ditmesh_model::forward::PartitionRun;

/// Entry `i` is step `i`.
#[derive(Debug, Default)]
pub(super) struct Staleness {
    of_steps: Vec<Option<f64>>,
}

impl Staleness {
    /// A forward pass of `step` begins: what was measured until now belongs to the steps before.
    pub(super) fn begin(&mut self, step: usize, partition: &mut PartitionRun) {
        if step == self.of_steps.len() {
            return;
        }
        self.of_steps.push(partition.take_kv_change());
        self.of_steps.resize(step, None);
    }

    /// All steps, the last one included; nothing for a run that keeps no keys and values.
    pub(super) fn finish(mut self, partition: &mut PartitionRun) -> Vec<Option<f64>> {
        self.of_steps.push(partition.take_kv_change());
        if self.of_steps.iter().all(Option::is_none) { Vec::new() } else { self.of_steps }
    }
}

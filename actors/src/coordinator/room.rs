//! What a replica takes: how many runs, of how many pictures, in how much memory.
//!
//! Owns the rule that runs share a mesh where that fills a pipeline: on a mesh of one stage nobody
//! waits for a stage, and a second run would only make the first one late.

use super::State;
use crate::dispatcher::Room;
use crate::executor::agenda::RUNS_PER_MESH_MAX;
use crate::plan::{Plan, memory};
use crate::protocol::{DeviceId, RunSpec};
use crate::request::Degrees;

impl State {
    /// What a formed replica takes.
    pub(super) fn room(&self, epoch: u64) -> Room {
        let replica = self.replicas.get(&epoch);
        let stages = replica.map_or(1, |replica| replica.degrees.pipefusion_degree);
        let bytes = replica.and_then(|replica| {
            let formed = replica.ranks.as_ref()?;
            let left = formed.iter().zip(&replica.devices).filter_map(|(rank, device)| {
                Some(self.memory_bytes(device)?.saturating_sub(rank.weight_bytes_read))
            });
            left.min()
        });
        let runs_max = if stages > 1 { RUNS_PER_MESH_MAX } else { 1 };
        let images_max = self.manifest.groups.first().map_or(1, |group| group.max_batch as usize);
        Room { runs_max, images_max, bytes }
    }

    /// What a run holds on the rank where that is most; 0 when no device says what it has.
    pub(super) fn run_bytes(&self, spec: &RunSpec, degrees: Degrees) -> u64 {
        let Some(Ok(model)) = &self.model else { return 0 };
        if model.devices.iter().all(|device| self.memory_bytes(device).is_none()) {
            return 0;
        }
        let plan = Plan::new(Degrees { data_degree: 1, ..degrees }, &model.spec, spec);
        plan.map_or(0, |plan| memory::run_bytes(&plan))
    }

    fn memory_bytes(&self, device: &DeviceId) -> Option<u64> {
        let node = self.manifest.nodes.iter().find(|node| node.name == device.node)?;
        node.devices.get(device.index as usize)?.memory_bytes
    }
}

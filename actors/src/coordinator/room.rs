//! What a replica takes: how many runs, of how many pictures, in how much memory; and whether the
//! next mesh finds room beside the present one.
//!
//! Owns the rule that runs share a mesh where that fills a pipeline: on a mesh of one stage nobody
//! waits for a stage, and a second run would only make the first one late.

use super::State;
use super::formation::FormOrder;
use crate::dispatcher::Room;
use crate::executor::agenda::RUNS_PER_MESH_MAX;
use crate::plan::footprint::RankMemory;
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
        let images_max = self.manifest.groups.first().map_or(1, |group| group.max_batch as usize);
        Room { runs_max: runs_max(stages), images_max, bytes }
    }

    /// Why a mesh cannot be built beside those that its devices are in: what these hold while they
    /// run, and its own weights, are more than a device has. `None` when it can, or nobody says
    /// what there is.
    pub(super) fn no_room_beside(&self, order: &FormOrder) -> Option<String> {
        let Some(Ok(model)) = &self.model else { return None };
        let known = |device: &DeviceId| self.memory_bytes(device).is_some();
        if !order.beside || !order.devices.iter().any(known) {
            return None;
        }
        let (degrees, patches) = (order.degrees.alone(), order.num_pipeline_patch);
        let next = model.footprints(degrees, patches, &order.devices)?;
        order.devices.iter().zip(next).find_map(|(device, next)| {
            let memory = self.memory_bytes(device)?;
            let present = self.replicas.values().filter_map(|replica| {
                let rank = replica.devices.iter().position(|seated| seated == device)?;
                let patches = replica.num_pipeline_patch;
                let held = model.footprints(replica.degrees, patches, &replica.devices)?;
                held.get(rank).map(RankMemory::total)
            });
            let next = next.weights + next.text_encoder + next.vae;
            let lacking = lacking(memory, present.sum(), next)?;
            Some(format!("device {device} has {memory} bytes, {lacking} too few for both meshes"))
        })
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

/// Runs at a time on a mesh of so many stages.
pub(super) fn runs_max(stages: u32) -> usize {
    if stages > 1 { RUNS_PER_MESH_MAX } else { 1 }
}

/// Bytes that are missing to load `next` where `present` is in use; `None` when there are enough.
fn lacking(memory: u64, present: u64, next: u64) -> Option<u64> {
    present.saturating_add(next).checked_sub(memory).filter(|&bytes| bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_meshes_have_to_fit() {
        assert_eq!(lacking(100, 60, 40), None);
        assert_eq!(lacking(100, 60, 41), Some(1));
        assert_eq!(lacking(100, 0, 100), None, "a device that is in no mesh yet");
        assert_eq!(lacking(100, u64::MAX, 1), Some(u64::MAX - 100));
    }
}

//! A replica as formation sees it: where it sits and how far it is.

use super::FormationCommand;
use crate::coordinator::mesh_plan::MeshPlan;
use crate::dispatcher::ReplicaId;
use crate::protocol::DeviceId;
use crate::request::Degrees;

/// One replica, formed or being formed.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) id: ReplicaId,
    /// Position among the replicas.
    pub(super) data: u32,
    /// Of the whole mesh it was formed for.
    pub(super) degrees: Degrees,
    pub(super) devices: Vec<DeviceId>,
    pub(super) formed: bool,
    /// Told to end its runs and take no other.
    pub(super) retired: bool,
    /// One of its devices is gone, and the news of its end on the way.
    pub(super) broken: bool,
}

impl Replica {
    /// One that is being formed.
    pub(super) fn new(id: ReplicaId, data: u32, degrees: Degrees, devices: Vec<DeviceId>) -> Self {
        Self { id, data, degrees, devices, formed: false, retired: false, broken: false }
    }

    /// Whether it can be a replica of `target` as it is; of an `exact` one all degrees count, those
    /// of open requests may have more replicas or fewer by now. Where links are cut it has to sit
    /// just as planned.
    pub(super) fn is_of(&self, target: &MeshPlan, exact: bool) -> bool {
        let same = match exact {
            true => self.degrees == target.degrees,
            false => self.degrees.alone() == target.degrees.alone(),
        };
        let size = self.degrees.alone().world_size().max(1);
        let seated = match target.around_cuts {
            true => target.devices.chunks(size).any(|planned| planned == self.devices),
            false => self.devices.iter().all(|device| target.devices.contains(device)),
        };
        !self.retired && same && seated
    }

    pub(super) fn ready(&self) -> FormationCommand {
        FormationCommand::Ready { replica: self.id, degrees: self.degrees }
    }
}

/// Devices dealt out to replicas of a mesh of `degrees`; a rest is left out.
pub(super) fn chunks(devices: Vec<DeviceId>, degrees: Degrees) -> Vec<Vec<DeviceId>> {
    let size = degrees.alone().world_size().max(1);
    devices.chunks_exact(size).map(<[DeviceId]>::to_vec).collect()
}

//! Which mesh to form, from which devices, and when.
//!
//! A pure engine beside membership and dispatcher. Owns the wanted degrees, epochs and which
//! device sits in which replica. Does not own sessions, the group actors or requests.
//!
//! Invariants: a device sits in at most one replica; epochs only grow; a mesh whose forming
//! failed is not tried again until somebody wants one or a device comes, except that links are tried
//! [`LINK_RETRIES_MAX`] times in a row: a peer that died may reach here first as a failed link.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use crate::dispatcher::ReplicaId;
use crate::groups::Retry;
use crate::protocol::DeviceId;
use crate::request::Degrees;

/// How often in a row a mesh is formed again whose links could not be had.
pub(super) const LINK_RETRIES_MAX: u32 = 3;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FormationEvent {
    /// Somebody needs a mesh of these degrees and nothing runs.
    Want(Degrees),
    /// A device can be used. `epoch` is the newest it has been in.
    DeviceReady { device: DeviceId, epoch: u64 },
    /// A device cannot be used until it is ready again.
    DeviceLost(DeviceId),
    /// All ranks of a replica are formed.
    Formed(ReplicaId),
    /// A replica is gone.
    ReplicaLost { replica: ReplicaId, cause: String, retry: Retry },
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FormationCommand {
    /// Order these devices, in rank order, into a replica.
    Form { replica: ReplicaId, data: u32, degrees: Degrees, devices: Vec<DeviceId> },
    /// Give up a replica for another mesh.
    Dissolve { replica: ReplicaId, cause: String },
    /// A replica takes requests.
    Ready { replica: ReplicaId, degrees: Degrees },
    /// A mesh of these degrees will not form.
    Failed { degrees: Degrees, cause: String },
    /// There is no mesh, for this reason.
    Absent { cause: String },
}

#[derive(Debug)]
struct Replica {
    id: ReplicaId,
    devices: Vec<DeviceId>,
    formed: bool,
}

/// The engine.
#[derive(Debug)]
pub(super) struct Formation {
    devices: Vec<DeviceId>,
    ready: BTreeSet<DeviceId>,
    lost: BTreeSet<DeviceId>,
    wanted: Degrees,
    slots: Vec<Option<Replica>>,
    epoch: u64,
    failure: Option<String>,
    /// Formings in a row that failed at links.
    link_failures: u32,
}

impl Formation {
    /// `devices` of the group in order, none of them ready; the mesh to form first.
    pub(super) fn new(devices: Vec<DeviceId>, wanted: Degrees) -> Self {
        let mut formation = Self {
            devices,
            ready: BTreeSet::new(),
            lost: BTreeSet::new(),
            wanted,
            slots: Vec::new(),
            epoch: 0,
            failure: None,
            link_failures: 0,
        };
        formation.slots = formation.empty_slots();
        formation
    }

    /// Takes one event.
    pub(super) fn handle(&mut self, event: FormationEvent) -> Vec<FormationCommand> {
        let mut commands = Vec::new();
        match event {
            FormationEvent::Want(degrees) => {
                self.failure = None;
                if degrees != self.wanted {
                    let cause = format!("a request asks for {degrees}");
                    commands = self.dissolve(&cause);
                    self.wanted = degrees;
                    self.slots = self.empty_slots();
                }
            }
            FormationEvent::DeviceReady { device, epoch } => {
                self.epoch = self.epoch.max(epoch);
                self.lost.remove(&device);
                self.ready.insert(device);
                self.failure = None;
            }
            FormationEvent::DeviceLost(device) => {
                self.ready.remove(&device);
                self.lost.insert(device);
            }
            FormationEvent::Formed(id) => return self.formed(id),
            FormationEvent::ReplicaLost { replica, cause, retry } => {
                if !self.vacate(replica) {
                    return Vec::new();
                }
                let again = match retry {
                    Retry::WhenReady => true,
                    Retry::AFewTimes => {
                        self.link_failures += 1;
                        self.link_failures <= LINK_RETRIES_MAX
                    }
                    Retry::Never => false,
                };
                if !again {
                    self.link_failures = 0;
                    self.failure = Some(cause.clone());
                    commands.push(FormationCommand::Failed { degrees: self.wanted, cause });
                }
            }
        }
        commands.extend(self.fill());
        commands
    }

    /// Degrees of the mesh that is formed or being formed.
    pub(super) fn wanted(&self) -> Degrees {
        self.wanted
    }

    /// Why forming failed and is not tried again.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Whether the device sits in a formed replica.
    pub(super) fn is_seated(&self, device: &DeviceId) -> bool {
        self.replicas().any(|replica| replica.formed && replica.devices.contains(device))
    }

    /// Whether every replica of the mesh is formed.
    pub(super) fn is_complete(&self) -> bool {
        self.slots.iter().all(|slot| slot.as_ref().is_some_and(|replica| replica.formed))
    }

    fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.slots.iter().flatten()
    }

    fn empty_slots(&self) -> Vec<Option<Replica>> {
        (0..self.wanted.data_degree).map(|_| None).collect()
    }

    fn replica_size(&self) -> usize {
        Degrees { data_degree: 1, ..self.wanted }.world_size()
    }

    fn formed(&mut self, id: ReplicaId) -> Vec<FormationCommand> {
        let degrees = self.wanted;
        match self.slots.iter_mut().flatten().find(|replica| replica.id == id) {
            Some(replica) => {
                replica.formed = true;
                self.link_failures = 0;
                vec![FormationCommand::Ready { replica: id, degrees }]
            }
            None => Vec::new(),
        }
    }

    fn vacate(&mut self, id: ReplicaId) -> bool {
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(|replica| replica.id == id) {
                *slot = None;
                return true;
            }
        }
        false
    }

    fn dissolve(&mut self, cause: &str) -> Vec<FormationCommand> {
        self.slots
            .iter_mut()
            .filter_map(Option::take)
            .map(|replica| FormationCommand::Dissolve {
                replica: replica.id,
                cause: cause.to_string(),
            })
            .collect()
    }

    /// Forms every empty slot whose devices are ready.
    fn fill(&mut self) -> Vec<FormationCommand> {
        let mut commands = Vec::new();
        if self.failure.is_some() {
            return commands;
        }
        for slot in 0..self.slots.len() {
            if self.slots[slot].is_some() {
                continue;
            }
            match self.choose() {
                Ok(devices) => {
                    self.epoch += 1;
                    let id = self.epoch;
                    self.slots[slot] =
                        Some(Replica { id, devices: devices.clone(), formed: false });
                    commands.push(FormationCommand::Form {
                        replica: id,
                        data: slot as u32,
                        degrees: self.wanted,
                        devices,
                    });
                }
                Err(cause) => {
                    commands.push(FormationCommand::Absent { cause });
                    break;
                }
            }
        }
        commands
    }

    /// The first devices in manifest order that are neither lost nor taken; an error says who is
    /// missing.
    fn choose(&self) -> Result<Vec<DeviceId>, String> {
        let taken: BTreeSet<&DeviceId> =
            self.replicas().flat_map(|replica| &replica.devices).collect();
        let size = self.replica_size();
        let free: Vec<&DeviceId> =
            self.devices.iter().filter(|device| !taken.contains(device)).collect();
        let chosen: Vec<&DeviceId> =
            free.iter().copied().filter(|device| !self.lost.contains(device)).take(size).collect();
        if chosen.len() < size {
            let lost: Vec<&DeviceId> =
                free.into_iter().filter(|device| self.lost.contains(device)).collect();
            return Err(if lost.is_empty() {
                format!(
                    "{} needs more than the {} devices there are",
                    self.wanted,
                    self.devices.len()
                )
            } else {
                format!("waiting for lost {} to come back", list(&lost))
            });
        }
        let missing: Vec<&DeviceId> =
            chosen.iter().copied().filter(|device| !self.ready.contains(device)).collect();
        if !missing.is_empty() {
            return Err(format!("waiting for {}", list(&missing)));
        }
        Ok(chosen.into_iter().cloned().collect())
    }
}

fn list(devices: &[&DeviceId]) -> String {
    let names: Vec<String> = devices.iter().map(ToString::to_string).collect();
    let noun = if names.len() == 1 { "device" } else { "devices" };
    format!("{noun} {}", names.join(", "))
}

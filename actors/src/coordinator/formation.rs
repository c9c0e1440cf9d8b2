//! Which mesh is formed, from which devices, and when: over whatever devices are live.
//!
//! A pure engine beside membership and dispatcher. Owns the wanted mesh, epochs, which device sits
//! in which replica, and the switch from one mesh to the next. Does not own sessions, the group
//! actors or requests, nor what mesh devices make ([`MeshPlans`], asked for by `Plan`).
//!
//! Invariants: a device sits in at most one serving replica, and in at most one of the next mesh;
//! epochs only grow; a mesh that serves is given up for a better one only at a request boundary, or
//! at a step boundary where somebody says so, and only once the better one is formed or where both
//! do not fit; a mesh whose forming failed is not tried again until somebody wants one or the
//! devices change, except that links are tried [`LINK_RETRIES_MAX`] times in a row: a peer that
//! died may reach here first as a failed link.

mod roster;
mod seats;
#[cfg(test)]
mod tests;

use super::mesh_plan::{MeshPlan, MeshPlans, NoMesh, Question};
use super::switch::StepTimes;
use crate::dispatcher::{MeshNeed, OpenMeshes, ReplicaId};
use crate::groups::Retry;
use crate::protocol::DeviceId;
use crate::request::Degrees;
use roster::Roster;
use seats::{Replica, chunks};

/// How often in a row a mesh is formed again whose links could not be had.
pub(super) const LINK_RETRIES_MAX: u32 = 3;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FormationEvent {
    /// Somebody needs this mesh and nothing runs.
    Want(MeshNeed),
    /// A device can be used. `epoch` is the newest it has been in.
    DeviceReady { device: DeviceId, epoch: u64 },
    /// A device cannot be used until it is ready again.
    DeviceLost(DeviceId),
    /// A device is to be used no more; the mesh it is in gives way at a request boundary.
    DeviceLeaving(DeviceId),
    /// Other links count as cut than before: the same devices may make another mesh.
    CutsChanged,
    /// Devices are faster or slower than was known: the same ones may make another mesh.
    SpeedsChanged,
    /// Devices that have never come are waited for no longer.
    Settled,
    /// What the devices of a `Plan` make.
    Planned { number: u64, plans: Box<MeshPlans> },
    /// A replica of the next mesh does not fit its devices while they are in the present one.
    NoRoomBeside { replica: ReplicaId, cause: String },
    /// All ranks of a replica are formed.
    Formed(ReplicaId),
    /// A retired replica runs nothing any more, or nothing that is not to be moved.
    Idle(ReplicaId),
    /// A replica is gone; `unfit` could not load its part.
    ReplicaLost { replica: ReplicaId, cause: String, retry: Retry, unfit: Option<DeviceId> },
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FormationCommand {
    /// Say what these devices make.
    Plan(Question),
    /// Order these devices, in rank order, into a replica; `beside` the one they are in.
    Form(FormOrder),
    /// Let a replica end its runs and take no other.
    Retire { replica: ReplicaId },
    /// Give up a replica for another mesh.
    Dissolve { replica: ReplicaId, cause: String },
    /// Requests with open degrees run on these meshes from now on.
    Open(OpenMeshes),
    /// A replica takes requests.
    Ready { replica: ReplicaId, degrees: Degrees },
    /// A mesh for this need will not form.
    Failed { mesh: MeshNeed, cause: String },
    /// There is no mesh, for this reason.
    Absent { cause: String },
}

/// A replica to form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FormOrder {
    pub(super) replica: ReplicaId,
    /// Position among the replicas.
    pub(super) data: u32,
    /// Of the whole mesh.
    pub(super) degrees: Degrees,
    pub(super) num_pipeline_patch: Option<u32>,
    /// What a step is planned to take, where somebody knows.
    pub(super) step: Option<StepTimes>,
    pub(super) devices: Vec<DeviceId>,
    pub(super) beside: bool,
}

/// The engine.
#[derive(Debug)]
pub(super) struct Formation {
    roster: Roster,
    wanted: MeshNeed,
    /// Number of the last `Plan`, the degrees that it asked for, and its answer.
    planned: (u64, Option<Degrees>, Option<MeshPlans>),
    /// Somebody waits for the wanted mesh: others, which run nothing, go before it is built.
    hurried: bool,
    /// What the dispatcher was told last.
    open: OpenMeshes,
    serving: Vec<Replica>,
    /// The mesh that takes over once it is formed and the present one is idle.
    next: Vec<Replica>,
    epoch: u64,
    failure: Option<String>,
    /// Formings in a row that failed at links.
    link_failures: u32,
    /// The target does not fit beside the present mesh, which retires first.
    retire_first: bool,
}

type Commands = Vec<FormationCommand>;

impl Formation {
    /// `devices` of the group in order, none of them ready; the mesh to form first; the newest
    /// epoch that may have been used.
    pub(super) fn new(devices: Vec<DeviceId>, wanted: MeshNeed, epoch: u64) -> Self {
        Self {
            roster: Roster::new(devices),
            wanted,
            planned: (0, None, None),
            hurried: false,
            open: OpenMeshes::default(),
            serving: Vec::new(),
            next: Vec::new(),
            epoch,
            failure: None,
            link_failures: 0,
            retire_first: false,
        }
    }

    /// Takes one event.
    pub(super) fn handle(&mut self, event: FormationEvent) -> Commands {
        let mut commands = Vec::new();
        match event {
            FormationEvent::Want(mesh) => {
                self.failure = None;
                if mesh != self.wanted {
                    self.wanted = mesh;
                    self.hurried = true;
                    commands.extend(self.drop_next("another mesh is wanted"));
                }
            }
            FormationEvent::DeviceReady { device, epoch } => {
                self.epoch = self.epoch.max(epoch);
                self.roster.ready(device);
            }
            FormationEvent::DeviceLost(device) => {
                let meshes = self.serving.iter_mut().chain(&mut self.next);
                let hit = meshes.filter(|replica| replica.devices.contains(&device));
                hit.for_each(|replica| replica.broken = true);
                self.roster.lost(&device);
            }
            FormationEvent::DeviceLeaving(device) => self.roster.leaving(&device),
            FormationEvent::CutsChanged => {
                // What failed before was tried over links that are known to be cut now.
                self.link_failures = 0;
                self.roster.plan_again();
            }
            FormationEvent::SpeedsChanged => self.roster.plan_again(),
            FormationEvent::Settled => self.roster.settle(),
            FormationEvent::Planned { number, plans } => {
                if number != self.planned.0 {
                    return Vec::new();
                }
                self.planned.2 = Some(*plans);
            }
            FormationEvent::NoRoomBeside { replica, cause } => {
                if self.next.iter().any(|next| next.id == replica) {
                    self.retire_first = true;
                    commands.extend(self.drop_next(&cause));
                }
            }
            FormationEvent::Formed(id) => commands.extend(self.formed(id)),
            FormationEvent::Idle(id) => commands.extend(self.idle(id)),
            FormationEvent::ReplicaLost { replica, cause, retry, unfit } => {
                commands.extend(self.replica_lost(replica, cause, retry, unfit));
            }
        }
        commands.extend(self.plan());
        commands.extend(self.steer());
        commands
    }

    /// Why forming failed and is not tried again.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Whether the device sits in a formed replica that serves.
    pub(super) fn is_seated(&self, device: &DeviceId) -> bool {
        self.serving.iter().any(|replica| replica.formed && replica.devices.contains(device))
    }

    /// Whether the device sits anywhere, forming meshes included.
    pub(super) fn is_used(&self, device: &DeviceId) -> bool {
        self.serving.iter().chain(&self.next).any(|replica| replica.devices.contains(device))
    }

    /// The replicas of the serving mesh, once all of them are formed.
    pub(super) fn complete(&self) -> Option<Vec<ReplicaId>> {
        let complete = !self.serving.is_empty() && self.serving.iter().all(|r| r.formed);
        let wanted = self.target().map_or(0, |target| target.degrees.data_degree as usize);
        let all = self.serving.len() >= wanted || !self.next.is_empty();
        (complete && all).then(|| self.serving.iter().map(|replica| replica.id).collect())
    }

    /// How many devices there are, those that are away included.
    pub(super) fn known(&self) -> usize {
        self.roster.len()
    }

    /// What the live devices make for requests with open degrees.
    pub(super) fn plan_for(&self, guided: bool) -> Option<&MeshPlan> {
        self.planned.2.as_ref()?.get(guided).as_ref().ok()
    }

    /// Asks for plans when the usable devices are others than those last asked about, or somebody
    /// names degrees that nobody has asked for.
    fn plan(&mut self) -> Commands {
        let whole = self.serving.iter().filter(|replica| !replica.broken);
        let stay: Vec<DeviceId> = whole.flat_map(|replica| replica.devices.clone()).collect();
        let exact = match self.wanted {
            MeshNeed::Exactly(degrees) => Some(degrees),
            MeshNeed::Open { .. } => None,
        };
        let devices = match self.roster.changed(&stay) {
            Some(devices) => devices,
            None if exact.is_none() || self.planned.1 == exact => return Vec::new(),
            None => self.roster.planned().to_vec(),
        };
        if self.roster.awaited().is_some() {
            return Vec::new();
        }
        self.failure = None;
        self.retire_first = false;
        let number = self.planned.0 + 1;
        self.planned = (number, exact, None);
        vec![FormationCommand::Plan(Question { number, devices, exact })]
    }

    /// What the wanted mesh is on the devices of now.
    fn target(&self) -> Result<MeshPlan, NoMesh> {
        let plans = self.planned.2.as_ref().ok_or(NoMesh::NoDevice)?;
        let guided = match self.wanted {
            MeshNeed::Open { guided } => guided,
            MeshNeed::Exactly(_) => {
                let (_, plan) = plans.exact.as_ref().ok_or(NoMesh::NoDevice)?;
                return plan.clone().map_err(|none| none.without(self.roster.missing()));
            }
        };
        plans.get(guided).clone()
    }

    fn is_exact(&self) -> bool {
        matches!(self.wanted, MeshNeed::Exactly(_))
    }

    /// Goes from the meshes there are towards the target.
    fn steer(&mut self) -> Commands {
        if let Some(awaited) = self.roster.awaited() {
            let cause = format!("waiting for {awaited}");
            return if self.serving.is_empty() {
                vec![FormationCommand::Absent { cause }]
            } else {
                Vec::new()
            };
        }
        if self.planned.2.is_none() {
            return Vec::new();
        }
        if self.failure.is_some() {
            return self.retire_leaving();
        }
        let target = match self.target() {
            Ok(target) => target,
            Err(why) => {
                let mut commands = self.drop_next("it cannot be formed any more");
                commands.extend(self.retire_leaving());
                commands.extend(self.tell_open());
                commands.push(FormationCommand::Absent { cause: why.to_string() });
                return commands;
            }
        };
        if self.serving.iter().chain(&self.next).any(|replica| replica.broken) {
            // Its end is under way and comes with the cause.
            return Vec::new();
        }
        let (wanted, exact) = (target.degrees.data_degree as usize, self.is_exact());
        let kept = self.serving.iter().filter(|replica| replica.is_of(&target, exact)).take(wanted);
        let kept: Vec<ReplicaId> = kept.map(|replica| replica.id).collect();
        // What is not even formed goes at once.
        let mut commands = self.retire(|replica| !replica.formed && !kept.contains(&replica.id));
        let outdated = self.serving.iter().any(|replica| !kept.contains(&replica.id));
        if !self.next.is_empty() {
            let seats: Vec<&Replica> =
                self.serving.iter().filter(|replica| kept.contains(&replica.id)).collect();
            let apart = |replica: &Replica| {
                let taken = |device| seats.iter().any(|seat| seat.devices.contains(device));
                !replica.devices.iter().any(taken)
            };
            // A replica that was to replace one which stays after all would sit on its devices.
            let fits = kept.len() + self.next.len() == wanted
                && self.next.iter().all(|replica| replica.is_of(&target, exact) && apart(replica));
            if fits {
                commands.extend(self.take_over(&kept));
                return commands;
            }
            commands.extend(self.drop_next("another mesh is better by now"));
        }
        commands.extend(self.build(&target, &kept, outdated));
        commands
    }

    /// Forms what is missing of a target: beside the outdated replicas, or at once without any.
    /// Where both do not fit, the outdated ones go first.
    fn build(&mut self, target: &MeshPlan, kept: &[ReplicaId], outdated: bool) -> Commands {
        let wanted = target.degrees.data_degree as usize;
        if kept.len() >= wanted {
            self.hurried = false;
            let mut commands = self.retire_all_but(kept);
            commands.extend(self.tell_open());
            return commands;
        }
        if outdated && (self.retire_first || self.hurried) {
            return self.retire_all_but(kept);
        }
        (self.retire_first, self.hurried) = (false, false);
        let seated = self.serving.iter().filter(|replica| kept.contains(&replica.id));
        let taken: Vec<&DeviceId> = seated.flat_map(|replica| &replica.devices).collect();
        let free: Vec<DeviceId> =
            target.devices.iter().filter(|device| !taken.contains(device)).cloned().collect();
        let used: Vec<u32> = self
            .serving
            .iter()
            .filter(|replica| kept.contains(&replica.id))
            .map(|replica| replica.data)
            .collect();
        let places = (0..target.degrees.data_degree).filter(|data| !used.contains(data));
        let places: Vec<u32> = places.collect();
        let mut commands = if outdated { Vec::new() } else { self.tell_open() };
        for (data, devices) in places.into_iter().zip(chunks(free, target.degrees)) {
            self.epoch += 1;
            let (id, degrees) = (self.epoch, target.degrees);
            let replica = Replica::new(id, data, degrees, devices.clone());
            let place = if outdated { &mut self.next } else { &mut self.serving };
            place.push(replica);
            commands.push(FormationCommand::Form(FormOrder {
                replica: id,
                data,
                degrees,
                num_pipeline_patch: target.num_pipeline_patch,
                step: target.step,
                devices,
                beside: outdated,
            }));
        }
        commands
    }

    /// Lets the next mesh take over once it is formed and what it replaces is idle.
    fn take_over(&mut self, kept: &[ReplicaId]) -> Commands {
        if !self.next.iter().all(|replica| replica.formed) {
            return self.retire_leaving();
        }
        let retire = self.retire_all_but(kept);
        if self.serving.len() > kept.len() {
            return retire;
        }
        let next = std::mem::take(&mut self.next);
        let mut commands = self.tell_open();
        commands.extend(next.iter().map(Replica::ready));
        self.serving.extend(next);
        commands
    }

    fn formed(&mut self, id: ReplicaId) -> Commands {
        if let Some(replica) = self.next.iter_mut().find(|replica| replica.id == id) {
            replica.formed = true;
        }
        let Some(replica) = self.serving.iter_mut().find(|replica| replica.id == id) else {
            return Vec::new();
        };
        replica.formed = true;
        self.link_failures = 0;
        vec![replica.ready()]
    }

    fn idle(&mut self, id: ReplicaId) -> Commands {
        let retired = self.serving.iter().position(|replica| replica.id == id && replica.retired);
        let Some(place) = retired else { return Vec::new() };
        self.serving.remove(place);
        let cause = "another mesh takes over".into();
        vec![FormationCommand::Dissolve { replica: id, cause }]
    }

    fn replica_lost(
        &mut self,
        id: ReplicaId,
        cause: String,
        retry: Retry,
        unfit: Option<DeviceId>,
    ) -> Commands {
        let before = self.serving.len() + self.next.len();
        let beside = self.next.iter().any(|replica| replica.id == id);
        self.serving.retain(|replica| replica.id != id);
        self.next.retain(|replica| replica.id != id);
        if self.serving.len() + self.next.len() == before {
            return Vec::new();
        }
        let mut commands = if beside { self.drop_next(&cause) } else { Vec::new() };
        let again = match retry {
            Retry::WhenReady => {
                self.failure = None;
                true
            }
            Retry::AFewTimes => {
                self.link_failures += 1;
                self.link_failures <= LINK_RETRIES_MAX
            }
            Retry::Never => self.set_aside(unfit),
        };
        if !again {
            self.link_failures = 0;
            self.failure = Some(cause.clone());
            // With a mesh that serves there is nobody who waits for this one.
            if !beside {
                commands.push(FormationCommand::Failed { mesh: self.wanted, cause });
            }
        }
        commands
    }

    /// Plans without a device that cannot load its part, as long as there are others.
    fn set_aside(&mut self, unfit: Option<DeviceId>) -> bool {
        let open = matches!(self.wanted, MeshNeed::Open { .. });
        open && unfit.is_some_and(|device| self.roster.set_aside(&device))
    }

    fn drop_next(&mut self, cause: &str) -> Commands {
        let dropped = std::mem::take(&mut self.next).into_iter();
        let dissolve = |replica: Replica| FormationCommand::Dissolve {
            replica: replica.id,
            cause: cause.to_owned(),
        };
        dropped.map(dissolve).collect()
    }

    fn retire_all_but(&mut self, kept: &[ReplicaId]) -> Commands {
        self.retire(|replica| !kept.contains(&replica.id))
    }

    /// Retires replicas with leaving devices even when there is no mesh to follow.
    fn retire_leaving(&mut self) -> Commands {
        let leaving = self.roster.all_leaving().clone();
        self.retire(|replica| replica.devices.iter().any(|device| leaving.contains(device)))
    }

    /// A replica that is not formed runs nothing: it goes at once.
    fn retire(&mut self, which: impl Fn(&Replica) -> bool) -> Commands {
        let mut commands = Vec::new();
        self.serving.retain_mut(|replica| {
            if replica.retired || !which(replica) {
                return true;
            }
            let id = replica.id;
            replica.retired = true;
            commands.push(match replica.formed {
                true => FormationCommand::Retire { replica: id },
                false => {
                    let cause = "another mesh is better by now".into();
                    FormationCommand::Dissolve { replica: id, cause }
                }
            });
            replica.formed
        });
        commands
    }

    fn tell_open(&mut self) -> Commands {
        let open = self.planned.2.as_ref().map(MeshPlans::open).unwrap_or_default();
        if open == self.open {
            return Vec::new();
        }
        self.open = open;
        vec![FormationCommand::Open(open)]
    }
}

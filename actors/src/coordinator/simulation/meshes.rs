//! Meshes as the coordinator has them: the product's [`Conduct`] and what merges the reports of
//! ranks, without the actors of the tree between them.

use std::sync::Arc;

use super::Sabotage;
use super::coordinator::Session;
use super::runs::{Form, Start};
use super::world::{Order, Wake, World};
use crate::coordinator::advance::Step;
use crate::coordinator::formation::{FormOrder, FormationEvent};
use crate::groups::conduct::{Conduct, Conducted};
use crate::groups::group::Merge;
use crate::groups::{self, ChildReport, ReplicaMsg, ReplicaReport};
use crate::journal::Entry;
use crate::membership::{Member, Now};
use crate::protocol::{DeviceId, FromCoordinator, ToCoordinator};
use crate::request::Degrees;

/// Longest time for all ranks to join.
const FORM_WITHIN: Now = super::ms(20_000);

/// A mesh that was ordered.
pub(super) struct Mesh {
    pub(super) degrees: Degrees,
    /// By rank, with the life of the process that is meant.
    pub(super) members: Arc<Vec<(DeviceId, u64)>>,
    /// By rank: the sessions with which it was ordered.
    sessions: Vec<Option<Session>>,
    conduct: Conduct,
    merge: Merge,
}

impl World {
    pub(super) fn form_mesh(&mut self, order: FormOrder) {
        let FormOrder { replica: epoch, degrees, devices, beside, .. } = order;
        self.note(|| format!("epoch {epoch}: {degrees} on {devices:?}, beside {beside}"));
        self.watch.ordered(epoch, format!("{degrees} on {devices:?} by {}", self.lives));
        if !self.is(Sabotage::ForgetEpochs) {
            self.remembered.add(Entry::Epochs(epoch));
        }
        let Some(coordinator) = &mut self.coordinator else { return };
        let life = coordinator.number;
        let session =
            |device: &DeviceId| coordinator.sessions.get(&Member::Worker(device.clone())).copied();
        let sessions: Vec<Option<Session>> = devices.iter().map(session).collect();
        let number = |session: &Option<Session>| session.map_or(0, |session| session.number);
        let members = devices.iter().cloned().zip(sessions.iter().map(number));
        let members: Arc<Vec<(DeviceId, u64)>> = Arc::new(members.collect());
        let ranks = (0..).zip(devices.iter().cloned()).collect();
        let conduct = Conduct::new(epoch, ranks, FORM_WITHIN);
        let (deadline, message) = conduct.form_deadline();
        let merge = Merge::new(devices.len());
        let mesh = Mesh {
            degrees,
            members: Arc::clone(&members),
            sessions: sessions.clone(),
            conduct,
            merge,
        };
        coordinator.meshes.insert(epoch, mesh);
        coordinator.seated.extend(devices.iter().map(|device| (device.clone(), epoch)));
        self.at(deadline, Wake::Conduct { life, epoch, message });
        for (rank, (device, session)) in devices.iter().zip(sessions).enumerate() {
            let form = Form { epoch, rank, beside, members: Arc::clone(&members) };
            if let Some(session) = session {
                self.order(device, session, Order::Form(form));
            }
        }
    }

    pub(super) fn rank_of(&self, device: &DeviceId, epoch: u64) -> Option<u32> {
        let mesh = self.coordinator.as_ref()?.meshes.get(&epoch)?;
        Some(mesh.members.iter().position(|(member, _)| member == device)? as u32)
    }

    /// A worker says something: the proxy of its rank hears it, and whoever is above that.
    pub(super) fn rank_says(&mut self, device: &DeviceId, message: ToCoordinator) {
        let Some(coordinator) = &mut self.coordinator else { return };
        let epoch = coordinator.desk.mesh_of(&message);
        let seated = |epoch: &u64| coordinator.seated.contains(&(device.clone(), *epoch));
        let Some(epoch) = epoch.filter(seated) else { return };
        let Some(rank) = self.rank_of(device, epoch) else { return };
        let reports = match groups::Report::of_rank(rank, device, epoch, message) {
            Ok(reports) => reports,
            Err(loss) => return self.conduct_and_attend(epoch, ReplicaMsg::Failed(loss)),
        };
        for report in reports {
            let Some(mesh) = self.coordinator.as_mut().and_then(|c| c.meshes.get_mut(&epoch))
            else {
                return;
            };
            if let groups::Report::Proposed { run, after } = report {
                self.points.insert((run, rank), after);
            }
            let merged = match report {
                groups::Report::Formed(ranks) => mesh
                    .merge
                    .formed(rank as usize, ranks)
                    .map(|parts| groups::Report::Formed(parts.concat())),
                report => mesh.merge.merge(rank as usize, report),
            };
            if let Some(report) = merged {
                let report = ChildReport { child: 0, report };
                self.conduct_and_attend(epoch, ReplicaMsg::Child(report));
            }
        }
    }

    /// A mesh's supervisors hear something outside of the coordinator's turns.
    pub(super) fn conduct_and_attend(&mut self, epoch: u64, message: ReplicaMsg) {
        self.conduct_mesh(epoch, message);
        self.attend();
    }

    /// A deadline of a mesh, or the end of a device, which its supervisors hear of.
    pub(super) fn conducted_late(&mut self, life: u64, epoch: u64, message: ReplicaMsg) {
        if self.coordinator.as_ref().is_some_and(|current| current.number == life) {
            self.conduct_and_attend(epoch, message);
        }
    }

    /// What its supervisors say goes to the ranks and into the coordinator's mailbox.
    pub(super) fn conduct_mesh(&mut self, epoch: u64, message: ReplicaMsg) {
        let Some(coordinator) = &mut self.coordinator else { return };
        let life = coordinator.number;
        let Some(mesh) = coordinator.meshes.get_mut(&epoch) else { return };
        if let ReplicaMsg::Stalled { run, .. } = message {
            let disturbed = |(device, number): &(DeviceId, u64)| {
                let process = self.processes.get(&Member::Worker(device.clone()));
                !process.is_some_and(|process| process.is_well(*number))
            };
            let disturbed = mesh.members.iter().any(disturbed);
            self.watch.stalls(self.now, disturbed, run, epoch);
        }
        for command in mesh.conduct.handle(message) {
            match command {
                Conducted::Order(order) => self.order_ranks(epoch, &order),
                Conducted::Tell(report) => self.post(match report {
                    ReplicaReport::Formed { epoch, .. } => {
                        Step::Formation(FormationEvent::Formed(epoch))
                    }
                    report => Step::Mesh(report),
                }),
                Conducted::After(_, ReplicaMsg::AbortDeadline { .. })
                    if self.is(Sabotage::LeaveWaiting) => {}
                Conducted::After(wait, message) => {
                    self.at(wait, Wake::Conduct { life, epoch, message });
                }
                Conducted::Dissolve(cause) => {
                    let order = |_| FromCoordinator::Dissolve { epoch, cause: cause.clone() };
                    self.order_each(epoch, |rank| Some(Order::Message(order(rank))));
                }
            }
        }
    }

    fn order_ranks(&mut self, epoch: u64, order: &groups::Order) {
        let (apart, silent) = (self.is(Sabotage::EnterApart), self.is(Sabotage::LeaveWaiting));
        let tasks = self.coordinator.as_ref().map(|coordinator| &coordinator.tasks);
        let (mut points, mut plan) = (std::collections::BTreeMap::new(), None);
        match order {
            groups::Order::Start(start) => {
                plan = tasks.and_then(|tasks| Some(Arc::clone(&tasks.get(&start.run)?.plan)));
            }
            groups::Order::Enter { run, .. } if apart => {
                points =
                    self.points.range((*run, 0)..(*run + 1, 0)).map(|(k, v)| (*k, *v)).collect();
            }
            groups::Order::Abort { .. } if silent => return,
            _ => {}
        }
        self.order_each(epoch, |rank| {
            Some(match order.clone() {
                groups::Order::Start(start) => Order::Start(Start {
                    epoch,
                    run: start.run,
                    rank,
                    plan: plan.clone()?,
                    propose: start.propose,
                }),
                groups::Order::Enter { run, after } => {
                    let after = points.get(&(run, rank)).copied().unwrap_or(after);
                    Order::Message(FromCoordinator::Enter { run, after })
                }
                order => Order::Message(order.for_rank(rank)),
            })
        });
    }

    fn order_each(&mut self, epoch: u64, order: impl Fn(u32) -> Option<Order>) {
        let mesh = self.coordinator.as_ref().and_then(|c| c.meshes.get(&epoch));
        let Some(mesh) = mesh else { return };
        let (members, sessions) = (Arc::clone(&mesh.members), mesh.sessions.clone());
        for (rank, ((device, _), session)) in (0..).zip(members.iter().zip(sessions)) {
            if let (Some(session), Some(order)) = (session, order(rank)) {
                self.order(device, session, order);
            }
        }
    }
}

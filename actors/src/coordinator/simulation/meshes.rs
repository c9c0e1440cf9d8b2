//! Meshes as the coordinator orders, loses and gives them up.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Sabotage;
use super::desk::{Mesh, need};
use super::runs::Form;
use super::world::{Order, World};
use crate::coordinator::advance::Step;
use crate::coordinator::formation::{FormOrder, FormationEvent};
use crate::dispatcher::{DispatcherEvent, Need};
use crate::generation::GenerateError;
use crate::groups::Retry;
use crate::journal::Entry;
use crate::membership::Member;
use crate::protocol::DeviceId;

impl World {
    pub(super) fn form_mesh(&mut self, order: FormOrder) {
        let FormOrder { replica: epoch, degrees, devices, beside, .. } = order;
        self.note(|| format!("epoch {epoch}: {degrees} on {devices:?}, beside {beside}"));
        self.watch.ordered(epoch, format!("{degrees} on {devices:?} by {}", self.desks));
        if !self.is(Sabotage::ForgetEpochs) {
            self.journal.push(Entry::Epochs(epoch));
        }
        let Some(desk) = &mut self.desk else { return };
        let life = |device: &DeviceId| {
            let session = desk.sessions.get(&Member::Worker(device.clone()));
            session.map_or(0, |(.., number)| *number)
        };
        let members: Vec<_> = devices.iter().map(|d| (d.clone(), life(d))).collect();
        let members = Arc::new(members);
        let mesh = Mesh { degrees, members: Arc::clone(&members), formed: BTreeSet::new() };
        desk.meshes.insert(epoch, mesh);
        for (rank, (device, number)) in members.iter().enumerate() {
            let form = Form { epoch, rank, beside, members: Arc::clone(&members) };
            self.order(device, *number, Order::Form(form));
        }
    }

    pub(super) fn rank_formed(&mut self, device: &DeviceId, epoch: u64) {
        let Some(desk) = &mut self.desk else { return };
        let Some(mesh) = desk.meshes.get_mut(&epoch) else { return };
        let rank = mesh.members.iter().position(|(member, _)| member == device);
        mesh.formed.extend(rank);
        if mesh.formed.len() == mesh.members.len() {
            self.advance(Step::Formation(FormationEvent::Formed(epoch)));
        }
    }

    pub(super) fn lose_meshes_of(&mut self, device: &DeviceId, cause: &str) {
        let Some(desk) = &self.desk else { return };
        let of = |mesh: &Mesh| mesh.members.iter().any(|(member, _)| member == device);
        let hit: Vec<u64> =
            desk.meshes.iter().filter(|(_, mesh)| of(mesh)).map(|(&epoch, _)| epoch).collect();
        for epoch in hit {
            self.lose_mesh(epoch, &format!("device {device} was lost: {cause}"), Retry::WhenReady);
        }
    }

    /// A mesh has ended badly.
    pub(super) fn lose_mesh(&mut self, epoch: u64, cause: &str, retry: Retry) {
        if !self.desk.as_ref().is_some_and(|desk| desk.meshes.contains_key(&epoch)) {
            return;
        }
        self.note(|| format!("epoch {epoch} lost: {cause}"));
        let mut going_on = self.give_up(epoch);
        if self.is(Sabotage::DropInterrupted) {
            going_on.clear();
        }
        let error = GenerateError::Lost(cause.to_owned());
        let replica = epoch;
        self.advance(Step::Dispatcher(DispatcherEvent::ReplicaLost { replica, going_on, error }));
        let cause = cause.to_owned();
        let lost = FormationEvent::ReplicaLost { replica, cause, retry, unfit: None };
        self.advance(Step::Formation(lost));
    }

    /// Takes a mesh apart and says which of its requests go on.
    pub(super) fn give_up(&mut self, epoch: u64) -> Vec<(u64, Need)> {
        let Some(desk) = &mut self.desk else { return Vec::new() };
        let Some(mesh) = desk.meshes.remove(&epoch) else { return Vec::new() };
        let mut going_on = Vec::new();
        let mut delivered = Vec::new();
        for (number, run) in desk.runs.extract_if(.., |_, run| run.epoch == epoch) {
            for id in &run.requests {
                let Some(request) = desk.requests.get_mut(id) else { continue };
                if request.run == Some(number) {
                    request.run = None;
                    request.waits_since = self.now;
                    request.steps = request.steps.max(run.kept);
                    going_on.push((*id, need(request.steps)));
                    if run.controller_done {
                        delivered.push(*id);
                    }
                }
            }
        }
        for (device, number) in mesh.members.iter() {
            self.order(device, *number, Order::Dissolve(epoch));
        }
        if self.is(Sabotage::DeliverMoved) {
            let desk = self.desks;
            delivered.into_iter().for_each(|id| self.watch.ended(desk, id));
        }
        going_on
    }
}

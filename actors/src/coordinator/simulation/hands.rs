//! The hands of a simulated coordinator: carries out what its engines say when they take turns.
//!
//! Owns nothing. What the coordinator works out from sizes and speeds is drawn here: the mesh that
//! a manifest asks for, which one finds no room beside another, and which runs are worth moving.

use super::Sabotage;
use super::coordinator::Session;
use super::meshes::Mesh;
use super::runs::model;
use super::world::{Order, Wake, World};
use crate::coordinator::advance::{Hands, Step};
use crate::coordinator::desk::Desk;
use crate::coordinator::formation::{FormOrder, FormationEvent};
use crate::coordinator::mesh_plan::{MeshPlan, MeshPlans, NoMesh, Question, reduced};
use crate::coordinator::room::runs_max;
use crate::dispatcher::{
    DispatcherCommand, DispatcherEvent, ReplicaId, RequestId, Room, RunNumber,
};
use crate::groups::{MeshLoss, ReplicaMsg};
use crate::membership::{
    Incarnation, Loss, Member, MembershipCommand, MembershipEvent, Now, Refusal,
};
use crate::protocol::{DeviceId, FromCoordinator};

impl World {
    pub(super) fn planned(&mut self, life: u64, number: u64, plans: MeshPlans) {
        if self.coordinator.as_ref().is_some_and(|current| current.number == life) {
            let plans = Box::new(plans);
            self.advance(Step::Formation(FormationEvent::Planned { number, plans }));
        }
    }

    fn note_command(&mut self, command: &MembershipCommand) {
        let what = match command {
            MembershipCommand::DeviceLost(device, loss) => format!("{device} lost: {loss}"),
            MembershipCommand::CutsChanged => "links count as cut, or no more".to_owned(),
            MembershipCommand::Release(node) => format!("node {node} may go"),
            MembershipCommand::Quarantined(member, length) => {
                format!("{member} is not counted on for {length:?}")
            }
            _ => return,
        };
        self.note(|| what);
    }
}

impl Hands for World {
    fn now(&self) -> Now {
        self.now
    }

    fn desk(&mut self) -> &mut Desk {
        &mut self.coordinator.as_mut().expect("only a coordinator takes turns").desk
    }

    fn tell_membership(&mut self, event: MembershipEvent) -> Vec<MembershipCommand> {
        let of_links =
            matches!(event, MembershipEvent::LinkLost { .. } | MembershipEvent::Unlinked { .. });
        if of_links && self.is(Sabotage::IgnoreCuts) {
            return Vec::new();
        }
        let now = self.now;
        let commands = self.desk().membership.handle(now, event);
        commands.iter().for_each(|command| self.note_command(command));
        commands
    }

    fn tell_dispatcher(&mut self, mut event: DispatcherEvent) -> Vec<DispatcherCommand> {
        if let DispatcherEvent::ReplicaLost { replica, going_on, .. } = &mut event {
            self.count_losses(*replica, going_on);
            if self.is(Sabotage::DropInterrupted) {
                going_on.clear();
            }
        }
        let now = self.now;
        let commands = self.desk().dispatcher.handle(now, event.clone());
        self.follow_waits(&event, &commands);
        commands
    }

    fn refuse(&mut self, member: &Member, _: &Refusal) {
        let arrived = self.coordinator.as_mut().and_then(|c| c.arriving.take());
        if let Some(session) = arrived {
            self.hang_up(member, session);
        }
    }

    fn close_session(&mut self, member: &Member, incarnation: Incarnation, _: &Loss) {
        let Some(coordinator) = &mut self.coordinator else { return };
        if coordinator.has_session(member, incarnation)
            && let Some(session) = coordinator.sessions.remove(member)
        {
            self.hang_up(member, session);
        }
    }

    fn say(&mut self, member: &Member, message: FromCoordinator) {
        let Some(coordinator) = &self.coordinator else { return };
        let Some(&session) = coordinator.sessions.get(member) else { return };
        match member {
            Member::Worker(device) => self.order(device, session, Order::Message(message)),
            Member::Agent(node) => {
                let life = coordinator.number;
                let (after, node) = (self.dice.between(1, 5), node.clone());
                self.at(after, Wake::AgentOrdered(node, life, message));
            }
        }
    }

    fn shut_down(&mut self) {}

    fn node_gone(&mut self, _: &str, _: bool) {}

    fn newest_epoch(&mut self, device: &DeviceId) -> Option<u64> {
        if self.is(Sabotage::ForgetEpochs) {
            return Some(0);
        }
        let sessions = self.coordinator.as_ref().map(|coordinator| &coordinator.sessions);
        let session = sessions.and_then(|all| all.get(&Member::Worker(device.clone())));
        Some(session.map_or(0, |Session { epoch, .. }| *epoch))
    }

    fn unseat(&mut self, device: &DeviceId, loss: &Loss) {
        let Some(coordinator) = &mut self.coordinator else { return };
        let life = coordinator.number;
        let seats = coordinator.seated.extract_if(.., |(seated, _)| seated == device);
        let epochs: Vec<u64> = seats.map(|(_, epoch)| epoch).collect();
        for epoch in epochs {
            let Some(rank) = self.rank_of(device, epoch) else { continue };
            let (device, loss) = (device.clone(), loss.clone());
            let message = ReplicaMsg::Failed(MeshLoss::Device { rank, device, loss });
            // It goes up a tree of actors.
            let after = Now::from_micros(self.dice.roll(1_000));
            self.at(after, Wake::Conduct { life, epoch, message });
        }
    }

    fn plan(&mut self, question: Question) {
        let after = self.dice.between(2, 60);
        let fixed = self.fixed;
        let plan = |live: &[DeviceId], _| {
            let degrees = reduced(fixed, live.len());
            let devices = live.get(..degrees.world_size()).ok_or(NoMesh::NoDevice)?.to_vec();
            let num_pipeline_patch = Some(2 * degrees.pipefusion_degree);
            let (step, around_cuts) = (None, false);
            Ok(MeshPlan { degrees, num_pipeline_patch, step, devices, around_cuts })
        };
        let cuts = self.desk().membership.cuts();
        let plans = MeshPlans::around(&cuts, &question, &model(), &plan);
        self.at(after, Wake::Planned(self.lives, question.number, plans));
    }

    fn no_room_beside(&mut self, order: &FormOrder) -> Option<String> {
        if !order.beside || self.dice.roll(3) > 0 {
            return None;
        }
        self.note(|| format!("epoch {} does not fit beside the present mesh", order.replica));
        Some("no room for both".into())
    }

    fn is_worth_moving(&mut self, replica: ReplicaId) -> bool {
        let moves = self.dice.roll(2) == 0;
        if moves {
            self.note(|| format!("the runs of epoch {replica} are moved"));
        }
        moves
    }

    fn room(&mut self, replica: ReplicaId) -> Room {
        let mesh = self.coordinator.as_ref().and_then(|c| c.meshes.get(&replica));
        let stages = mesh.map_or(1, |Mesh { degrees, .. }| degrees.pipefusion_degree);
        Room { runs_max: runs_max(stages), images_max: 2, bytes: None }
    }

    fn absent(&mut self, _: &str) {}

    fn conduct(&mut self, replica: ReplicaId, message: ReplicaMsg) {
        self.conduct_mesh(replica, message);
    }

    fn forget_mesh(&mut self, replica: ReplicaId, cause: &str) -> Vec<DeviceId> {
        let Some(coordinator) = &mut self.coordinator else { return Vec::new() };
        coordinator.seated.retain(|(_, epoch)| *epoch != replica);
        let Some(mesh) = coordinator.meshes.remove(&replica) else { return Vec::new() };
        self.note(|| format!("epoch {replica} is over: {cause}"));
        mesh.members.iter().map(|(device, _)| device.clone()).collect()
    }

    fn start(&mut self, run: RunNumber, requests: Vec<RequestId>, replica: ReplicaId) -> bool {
        self.start_run(run, &requests, replica)
    }
}

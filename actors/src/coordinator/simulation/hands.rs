//! The desk's hands: carries out what formation and dispatcher say when they take turns, in the
//! order of the coordinator's own [`Turns`].
//!
//! Owns nothing. What the coordinator works out from sizes and speeds is drawn here: the mesh that
//! a manifest asks for, which one finds no room beside another, and which runs are worth moving.

use super::desk::{Mesh, model};
use super::world::{Wake, World};
use crate::coordinator::advance::{Hands, Step, Turns};
use crate::coordinator::formation::{FormOrder, FormationCommand, FormationEvent};
use crate::coordinator::mesh_plan::{MeshPlan, MeshPlans, NoMesh, Question, reduced};
use crate::coordinator::room::runs_max;
use crate::dispatcher::{
    DispatcherCommand, DispatcherEvent, Need, ReplicaId, RequestId, Room, RunNumber,
};
use crate::generation::GenerateError;
use crate::protocol::DeviceId;

impl World {
    /// News for one of the engines, and what follows from it.
    pub(super) fn advance(&mut self, step: Step) {
        let mut turns = Turns::of(step);
        while let Some(order) = turns.go_on(self) {
            self.form_mesh(order);
        }
    }

    pub(super) fn planned(&mut self, desk: u64, number: u64, plans: MeshPlans) {
        if self.desk.as_ref().is_some_and(|current| current.number == desk) {
            let plans = Box::new(plans);
            self.advance(Step::Formation(FormationEvent::Planned { number, plans }));
        }
    }
}

impl Hands for World {
    fn tell_formation(&mut self, event: FormationEvent) -> Vec<FormationCommand> {
        let desk = self.desk.as_mut();
        desk.map(|desk| desk.formation.handle(event)).unwrap_or_default()
    }

    fn tell_dispatcher(&mut self, event: DispatcherEvent) -> Vec<DispatcherCommand> {
        let now = self.now;
        let desk = self.desk.as_mut();
        desk.map(|desk| desk.dispatcher.handle(now, event)).unwrap_or_default()
    }

    fn plan(&mut self, question: Question) {
        let after = self.dice.between(2, 60);
        let Some(desk) = &self.desk else { return };
        let (fixed, number) = (self.fixed, desk.number);
        let plan = |live: &[DeviceId], _| {
            let degrees = reduced(fixed, live.len());
            let devices = live.get(..degrees.world_size()).ok_or(NoMesh::NoDevice)?.to_vec();
            let num_pipeline_patch = Some(2 * degrees.pipefusion_degree);
            let (step, around_cuts) = (None, false);
            Ok(MeshPlan { degrees, num_pipeline_patch, step, devices, around_cuts })
        };
        let plans = MeshPlans::around(&desk.membership.cuts(), &question, &model(), &plan);
        self.at(after, Wake::Planned(number, question.number, plans));
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

    fn give_way(&mut self, replica: ReplicaId, _: &str) -> Vec<(RequestId, Need)> {
        self.give_up(replica)
    }

    fn room(&mut self, replica: ReplicaId) -> Room {
        let mesh = self.desk.as_ref().and_then(|desk| desk.meshes.get(&replica));
        let stages = mesh.map_or(1, |Mesh { degrees, .. }| degrees.pipefusion_degree);
        Room { runs_max: runs_max(stages), images_max: 2, bytes: None }
    }

    fn absent(&mut self, _: &str) {}

    fn queued(&mut self, _: RequestId, _: u32) {}

    fn waits(&mut self, _: RequestId, _: String) {}

    fn start(&mut self, run: RunNumber, requests: Vec<RequestId>, replica: ReplicaId) -> bool {
        self.start_run(run, requests, replica);
        true
    }

    fn abort(&mut self, run: RunNumber, replica: ReplicaId) {
        self.stop_run(run, replica);
    }

    fn fail(&mut self, request: RequestId, error: GenerateError) {
        self.end_request(request, Err(error.to_string()));
    }
}

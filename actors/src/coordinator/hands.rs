//! The coordinator's own hands: carries out what formation and dispatcher say when they take turns.
//!
//! Owns nothing; the order of turns is that of [`super::advance`].

use ractor::ActorRef;

use super::advance::{Hands, Step, Turns};
use super::formation::{FormOrder, FormationCommand, FormationEvent};
use super::mesh_plan::Question;
use super::{CoordinatorMsg, State};
use crate::dispatcher::{
    DispatcherCommand, DispatcherEvent, Need, ReplicaId, RequestId, Room, RunNumber,
};
use crate::generation::GenerateError;
use crate::groups::MeshLoss;
use crate::request::Event;

struct AtWork<'a> {
    state: &'a mut State,
    myself: &'a ActorRef<CoordinatorMsg>,
}

impl State {
    /// Takes an event to formation and carries out what follows.
    pub(super) async fn form(&mut self, myself: &ActorRef<CoordinatorMsg>, event: FormationEvent) {
        self.advance(myself, Step::Formation(event)).await;
    }

    /// Takes an event to the dispatcher and carries out what follows.
    pub(super) async fn dispatch(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        event: DispatcherEvent,
    ) {
        self.advance(myself, Step::Dispatcher(event)).await;
    }

    async fn advance(&mut self, myself: &ActorRef<CoordinatorMsg>, step: Step) {
        let mut turns = Turns::of(step);
        while let Some(order) = turns.go_on(&mut AtWork { state: self, myself }) {
            self.form_replica(myself, order).await;
        }
    }
}

impl Hands for AtWork<'_> {
    fn tell_formation(&mut self, event: FormationEvent) -> Vec<FormationCommand> {
        let formation = self.state.formation.as_mut();
        formation.map(|formation| formation.handle(event)).unwrap_or_default()
    }

    fn tell_dispatcher(&mut self, event: DispatcherEvent) -> Vec<DispatcherCommand> {
        let now = self.state.now();
        self.state.dispatcher.handle(now, event)
    }

    fn plan(&mut self, question: Question) {
        self.state.plan_meshes(self.myself, question);
    }

    fn no_room_beside(&mut self, order: &FormOrder) -> Option<String> {
        let cause = self.state.no_room_beside(order)?;
        tracing::info!(cause, "the present mesh goes before the next one is built");
        Some(cause)
    }

    fn is_worth_moving(&mut self, replica: ReplicaId) -> bool {
        let moves = self.state.is_worth_moving(replica);
        if moves {
            tracing::info!(epoch = replica, "its runs go on on the better mesh");
        }
        moves
    }

    fn give_way(&mut self, replica: ReplicaId, cause: &str) -> Vec<(RequestId, Need)> {
        self.state.dissolve_replica(replica, cause);
        // It is idle, or its runs are moved, or it is broken and its loss about to be told.
        let going_on = self.state.set_aside(replica, &MeshLoss::GaveWay { cause: cause.into() });
        self.state.runs.retain(|_, run| run.replica != replica);
        going_on
    }

    fn room(&mut self, replica: ReplicaId) -> Room {
        self.state.room(replica)
    }

    fn absent(&mut self, cause: &str) {
        cause.clone_into(&mut self.state.absent);
    }

    fn queued(&mut self, request: RequestId, ahead: u32) {
        if let Some(request) = self.state.requests.get(&request) {
            request.sink.event(Event::Queued { ahead });
        }
    }

    fn waits(&mut self, request: RequestId, cause: String) {
        tracing::warn!(request, cause, "a request waits for a mesh");
        if let Some(request) = self.state.requests.get(&request) {
            request.sink.event(Event::Warning(cause));
        }
    }

    fn start(&mut self, run: RunNumber, requests: Vec<RequestId>, replica: ReplicaId) -> bool {
        self.state.start_run(self.myself, run, &requests, replica)
    }

    fn abort(&mut self, run: RunNumber, replica: ReplicaId) {
        self.state.abort_run(run, replica);
    }

    fn fail(&mut self, request: RequestId, error: GenerateError) {
        self.state.fail_request(request, error);
    }
}

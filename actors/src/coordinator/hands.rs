//! The coordinator's own hands: carries out what its engines say when they take turns.
//!
//! Owns nothing; the order of turns is that of [`super::advance`].

use ractor::ActorRef;

use super::advance::{Hands, Pending, Step, Turns};
use super::desk::Desk;
use super::formation::{FormOrder, FormationEvent};
use super::mesh_plan::Question;
use super::{CoordinatorMsg, State};
use crate::dispatcher::{DispatcherEvent, ReplicaId, RequestId, Room, RunNumber};
use crate::groups::ReplicaMsg;
use crate::membership::{Incarnation, Loss, Member, Now, Refusal};
use crate::protocol::{DeviceId, FromCoordinator};

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

    /// Takes news to the desk and carries out what follows.
    pub(super) async fn advance(&mut self, myself: &ActorRef<CoordinatorMsg>, step: Step) {
        let mut turns = Turns::of(step);
        while let Some(pending) = turns.go_on(&mut AtWork { state: self, myself }) {
            match pending {
                Pending::Welcome(member, incarnation) => {
                    self.welcome(myself, member, incarnation).await;
                }
                Pending::Form(order) => self.form_replica(myself, order).await,
            }
        }
    }
}

impl Hands for AtWork<'_> {
    fn now(&self) -> Now {
        self.state.now()
    }

    fn desk(&mut self) -> &mut Desk {
        &mut self.state.desk
    }

    fn refuse(&mut self, _: &Member, refusal: &Refusal) {
        self.state.refuse(refusal);
    }

    fn close_session(&mut self, member: &Member, incarnation: Incarnation, loss: &Loss) {
        self.state.sessions.close(member, incarnation, &loss.to_string());
    }

    fn say(&mut self, member: &Member, message: FromCoordinator) {
        if let Some(session) = self.state.sessions.get(member) {
            session.handle.send(message);
        }
    }

    fn shut_down(&mut self) {
        self.state.sessions.shut_down();
    }

    fn node_gone(&mut self, node: &str, left: bool) {
        if left {
            self.state.forget_joined(node);
        }
    }

    fn newest_epoch(&mut self, device: &DeviceId) -> Option<u64> {
        self.state.newest_epoch(device)
    }

    fn unseat(&mut self, device: &DeviceId, loss: &Loss) {
        self.state.unseat(device, loss);
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
        self.state.is_worth_moving(replica)
    }

    fn room(&mut self, replica: ReplicaId) -> Room {
        self.state.room(replica)
    }

    fn absent(&mut self, cause: &str) {
        cause.clone_into(&mut self.state.absent);
    }

    fn conduct(&mut self, replica: ReplicaId, message: ReplicaMsg) {
        self.state.conduct(replica, message);
    }

    fn forget_mesh(&mut self, replica: ReplicaId, cause: &str) -> Vec<DeviceId> {
        self.state.forget_replica(replica, cause)
    }

    fn start(&mut self, run: RunNumber, requests: Vec<RequestId>, replica: ReplicaId) -> bool {
        self.state.start_run(self.myself, run, &requests, replica)
    }
}

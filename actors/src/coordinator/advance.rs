//! Formation and dispatcher taking turns: what one of them commands is often news for the other.
//!
//! Owns the queue of such steps, so that nothing here calls itself.

use std::collections::VecDeque;

use ractor::ActorRef;

use super::formation::{FormationCommand, FormationEvent};
use super::{CoordinatorMsg, State};
use crate::dispatcher::{DispatcherCommand, DispatcherEvent};
use crate::generation::GenerateError;
use crate::groups::MeshLoss;
use crate::request::Event;

/// News for one of the two engines.
enum Step {
    Formation(FormationEvent),
    Dispatcher(DispatcherEvent),
}

type Steps = VecDeque<Step>;

impl State {
    /// Takes an event to formation and carries out what follows.
    pub(super) async fn form(&mut self, myself: &ActorRef<CoordinatorMsg>, event: FormationEvent) {
        self.advance(myself, Steps::from([Step::Formation(event)])).await;
    }

    /// Takes an event to the dispatcher and carries out what follows.
    pub(super) async fn dispatch(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        event: DispatcherEvent,
    ) {
        self.advance(myself, Steps::from([Step::Dispatcher(event)])).await;
    }

    async fn advance(&mut self, myself: &ActorRef<CoordinatorMsg>, mut steps: Steps) {
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Formation(event) => {
                    let Some(formation) = &mut self.formation else { continue };
                    for command in formation.handle(event) {
                        self.carry_out_formation(myself, command, &mut steps).await;
                    }
                }
                Step::Dispatcher(event) => {
                    for command in self.dispatcher.handle(self.now(), event) {
                        self.carry_out_dispatch(myself, command, &mut steps);
                    }
                }
            }
        }
    }

    async fn carry_out_formation(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        command: FormationCommand,
        steps: &mut Steps,
    ) {
        match command {
            FormationCommand::Plan { number, devices } => self.plan_meshes(myself, number, devices),
            FormationCommand::Form(order) => match self.no_room_beside(&order) {
                Some(cause) => {
                    tracing::info!(cause, "the present mesh goes before the next one is built");
                    let replica = order.replica;
                    let no_room = FormationEvent::NoRoomBeside { replica, cause };
                    steps.push_back(Step::Formation(no_room));
                }
                None => {
                    self.absent = "it is being formed".into();
                    self.form_replica(myself, order).await;
                }
            },
            FormationCommand::Retire { replica } => {
                steps.push_back(Step::Dispatcher(DispatcherEvent::Retired { replica }));
                if self.is_worth_moving(replica) {
                    tracing::info!(epoch = replica, "its runs go on on the better mesh");
                    steps.push_back(Step::Formation(FormationEvent::Idle(replica)));
                }
            }
            FormationCommand::Open(open) => {
                steps.push_back(Step::Dispatcher(DispatcherEvent::Open(open)));
            }
            FormationCommand::Dissolve { replica, cause } => {
                self.dissolve_replica(replica, &cause);
                // It is idle, or its runs are moved, or it is broken and its loss about to be told.
                let loss = MeshLoss::GaveWay { cause: cause.clone() };
                let going_on = self.set_aside(replica, &loss);
                self.runs.retain(|_, run| run.replica != replica);
                let error = GenerateError::Lost(cause);
                let lost = DispatcherEvent::ReplicaLost { replica, going_on, error };
                steps.push_back(Step::Dispatcher(lost));
            }
            FormationCommand::Ready { replica, degrees } => {
                let room = self.room(replica);
                let ready = DispatcherEvent::ReplicaReady { replica, degrees, room };
                steps.push_back(Step::Dispatcher(ready));
            }
            FormationCommand::Failed { mesh, cause } => {
                self.absent.clone_from(&cause);
                let error = GenerateError::Failed(cause);
                steps.push_back(Step::Dispatcher(DispatcherEvent::FormFailed { mesh, error }));
            }
            FormationCommand::Absent { cause } => {
                self.absent.clone_from(&cause);
                steps.push_back(Step::Dispatcher(DispatcherEvent::MeshAbsent { cause }));
            }
        }
    }

    fn carry_out_dispatch(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        command: DispatcherCommand,
        steps: &mut Steps,
    ) {
        match command {
            DispatcherCommand::Queued { request, ahead } => {
                if let Some(request) = self.requests.get(&request) {
                    request.sink.event(Event::Queued { ahead });
                }
            }
            DispatcherCommand::Waits { request, cause } => {
                tracing::warn!(request, cause, "a request waits for a mesh");
                if let Some(request) = self.requests.get(&request) {
                    request.sink.event(Event::Warning(cause));
                }
            }
            DispatcherCommand::Start { run, requests, replica } => {
                if !self.start_run(myself, run, &requests, replica) {
                    steps.push_back(Step::Dispatcher(DispatcherEvent::RunEnded { run }));
                }
            }
            DispatcherCommand::Abort { run, replica } => self.abort_run(run, replica),
            DispatcherCommand::Want { mesh } => {
                steps.push_back(Step::Formation(FormationEvent::Want(mesh)));
            }
            DispatcherCommand::Idle { replica } => {
                steps.push_back(Step::Formation(FormationEvent::Idle(replica)));
            }
            DispatcherCommand::Fail { request, error } => self.fail_request(request, error),
        }
    }
}

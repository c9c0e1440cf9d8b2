//! The engines taking turns: what one of them commands is often news for another.
//!
//! Owns the order in which they hear of each other, and the queue of it, so that nothing here calls
//! itself; and what the loss of a member, of a mesh and of a run leads to. Carries nothing out: that
//! is somebody's [`Hands`], the coordinator's or a simulation's. Pure.

mod copies;
mod members;
mod meshes;

use std::collections::VecDeque;

use super::copies::CopiesCommand;
use super::desk::Desk;
use super::formation::{FormOrder, FormationCommand, FormationEvent};
use super::mesh_plan::Question;
use super::run::ControllerFault;
use crate::dispatcher::{
    DispatcherCommand, DispatcherEvent, ReplicaId, RequestId, Room, RunNumber,
};
use crate::generation::GenerateError;
use crate::groups::{ReplicaMsg, ReplicaReport};
use crate::membership::{
    Incarnation, Loss, Member, MembershipCommand, MembershipEvent, Now, Refusal,
};
use crate::protocol::{DeviceId, FromCoordinator, ToCoordinator};
use crate::request::Event;

/// News.
pub(super) enum Step {
    Membership(MembershipEvent),
    Formation(FormationEvent),
    Dispatcher(DispatcherEvent),
    /// The supervisors of a mesh report.
    Mesh(ReplicaReport),
    /// The controller's part of a run is over.
    ControllerDone(RunNumber, Result<(), ControllerFault>),
    /// An agent says something about copies of checkpoints.
    CopiesSaid(String, ToCoordinator),
    /// A request that waits goes on from a copy, if somebody holds more than is here.
    Recall(RequestId),
    Copies(Vec<CopiesCommand>),
    /// It is looked which runs do not go on.
    Stalls,
    /// It is looked which nodes may go.
    Vacated,
    /// It is looked which copies do not come back.
    TendCopies,
}

/// Time passed.
pub(super) fn tick() -> [Step; 5] {
    [
        Step::Membership(MembershipEvent::Tick),
        Step::Stalls,
        Step::Vacated,
        Step::TendCopies,
        Step::Dispatcher(DispatcherEvent::Tick),
    ]
}

/// What takes time: whoever takes the turns does it, and goes on then.
pub(super) enum Pending {
    /// A member is welcome: it gets its session.
    Welcome(Member, Incarnation),
    /// A mesh is to be formed.
    Form(FormOrder),
}

/// Who has the desk and carries out what is said there.
pub(super) trait Hands {
    fn now(&self) -> Now;
    fn desk(&mut self) -> &mut Desk;

    fn tell_membership(&mut self, event: MembershipEvent) -> Vec<MembershipCommand> {
        let now = self.now();
        self.desk().membership.handle(now, event)
    }
    /// Nothing comes back where there is no formation.
    fn tell_formation(&mut self, event: FormationEvent) -> Vec<FormationCommand> {
        let formation = self.desk().formation.as_mut();
        formation.map(|formation| formation.handle(event)).unwrap_or_default()
    }
    fn tell_dispatcher(&mut self, event: DispatcherEvent) -> Vec<DispatcherCommand> {
        let now = self.now();
        self.desk().dispatcher.handle(now, event)
    }

    /// Turns away who has just come.
    fn refuse(&mut self, member: &Member, refusal: &Refusal);
    fn close_session(&mut self, member: &Member, incarnation: Incarnation, loss: &Loss);
    /// Says something to a member that has a session.
    fn say(&mut self, member: &Member, message: FromCoordinator);
    /// Tells every member to end.
    fn shut_down(&mut self);
    /// A node's agent is gone; `left` when it was on its way out.
    fn node_gone(&mut self, node: &str, left: bool);
    /// Newest epoch that a device has been in; `None` where it does not serve the model.
    fn newest_epoch(&mut self, device: &DeviceId) -> Option<u64>;
    /// Tells the supervisors of the meshes that a device sits in that it is gone.
    fn unseat(&mut self, device: &DeviceId, loss: &Loss);

    /// Finds out what devices make; the answer is `Planned`.
    fn plan(&mut self, question: Question);
    /// Why a mesh cannot be built beside those that its devices are in.
    fn no_room_beside(&mut self, order: &FormOrder) -> Option<String>;
    /// Whether what runs on a mesh is to go on on a better one at once.
    fn is_worth_moving(&mut self, replica: ReplicaId) -> bool;
    /// What a formed mesh takes.
    fn room(&mut self, replica: ReplicaId) -> Room;
    /// There is no mesh, for this reason.
    fn absent(&mut self, cause: &str);
    /// Says something to the supervisors of a mesh; nothing where they are gone.
    fn conduct(&mut self, replica: ReplicaId, message: ReplicaMsg);
    /// Forgets a mesh that is over; its devices by rank, none when it was not known.
    fn forget_mesh(&mut self, replica: ReplicaId, cause: &str) -> Vec<DeviceId>;
    /// Starts a run; false when there is nothing to run.
    fn start(&mut self, run: RunNumber, requests: Vec<RequestId>, replica: ReplicaId) -> bool;
}

/// What is still to be carried out and told.
pub(super) struct Turns {
    commands: VecDeque<Command>,
    /// What formation and dispatcher hear next.
    steps: VecDeque<Step>,
    /// What comes when these two have come to an end.
    later: VecDeque<Step>,
}

enum Command {
    Membership(MembershipCommand),
    Formation(FormationCommand),
    Dispatcher(DispatcherCommand),
}

impl Turns {
    /// One piece of news, and what follows from it.
    pub(super) fn of(step: Step) -> Self {
        Self { commands: VecDeque::new(), steps: VecDeque::from([step]), later: VecDeque::new() }
    }

    /// Goes on until there is something that takes time, or nothing is left.
    pub(super) fn go_on(&mut self, hands: &mut impl Hands) -> Option<Pending> {
        loop {
            while let Some(command) = self.commands.pop_front() {
                match command {
                    Command::Membership(MembershipCommand::Accept(member, incarnation)) => {
                        return Some(Pending::Welcome(member, incarnation));
                    }
                    Command::Membership(command) => self.carry_out_membership(hands, command),
                    Command::Formation(FormationCommand::Form(order)) => {
                        let Some(cause) = hands.no_room_beside(&order) else {
                            hands.absent("it is being formed");
                            return Some(Pending::Form(order));
                        };
                        let replica = order.replica;
                        self.then_formation(FormationEvent::NoRoomBeside { replica, cause });
                    }
                    Command::Formation(command) => self.carry_out_formation(hands, command),
                    Command::Dispatcher(command) => self.carry_out_dispatch(hands, command),
                }
            }
            let step = self.steps.pop_front().or_else(|| self.later.pop_front())?;
            self.take(hands, step);
        }
    }

    fn take(&mut self, hands: &mut impl Hands, step: Step) {
        match step {
            Step::Membership(event) => {
                let commands = hands.tell_membership(event).into_iter();
                self.commands.extend(commands.map(Command::Membership));
            }
            Step::Formation(event) => {
                let commands = hands.tell_formation(event).into_iter();
                self.commands.extend(commands.map(Command::Formation));
            }
            Step::Dispatcher(event) => {
                let commands = hands.tell_dispatcher(event).into_iter();
                self.commands.extend(commands.map(Command::Dispatcher));
            }
            Step::Mesh(report) => self.mesh_reports(hands, report),
            Step::ControllerDone(run, outcome) => self.controller_done(hands, run, outcome),
            Step::CopiesSaid(node, message) => self.copies_said(hands, &node, message),
            Step::Recall(request) => self.recall(hands, request),
            Step::Copies(commands) => self.carry_out_copies(hands, commands),
            Step::Stalls => self.stop_stalled(hands),
            Step::Vacated => {
                let vacated = hands.desk().vacated().into_iter();
                let vacated = vacated.map(|node| MembershipEvent::Vacated { node });
                self.later.extend(vacated.map(Step::Membership));
            }
            Step::TendCopies => {
                let now = hands.now();
                let commands = hands.desk().memory.copies.tick(now);
                self.carry_out_copies(hands, commands);
            }
        }
    }

    fn then_formation(&mut self, event: FormationEvent) {
        self.steps.push_back(Step::Formation(event));
    }

    fn then_dispatcher(&mut self, event: DispatcherEvent) {
        self.steps.push_back(Step::Dispatcher(event));
    }

    fn carry_out_formation(&mut self, hands: &mut impl Hands, command: FormationCommand) {
        match command {
            FormationCommand::Plan(question) => hands.plan(question),
            // Handed out by `go_on`.
            FormationCommand::Form(_) => {}
            FormationCommand::Retire { replica } => {
                self.then_dispatcher(DispatcherEvent::Retired { replica });
                if hands.is_worth_moving(replica) {
                    tracing::info!(epoch = replica, "its runs go on on the better mesh");
                    self.then_formation(FormationEvent::Idle(replica));
                }
            }
            FormationCommand::Open(open) => self.then_dispatcher(DispatcherEvent::Open(open)),
            FormationCommand::Dissolve { replica, cause } => {
                self.give_way(hands, replica, cause);
            }
            FormationCommand::Ready { replica, degrees } => {
                let room = hands.room(replica);
                self.then_dispatcher(DispatcherEvent::ReplicaReady { replica, degrees, room });
            }
            FormationCommand::Failed { mesh, cause } => {
                hands.absent(&cause);
                let error = GenerateError::Failed(cause);
                self.then_dispatcher(DispatcherEvent::FormFailed { mesh, error });
            }
            FormationCommand::Absent { cause } => {
                hands.absent(&cause);
                self.then_dispatcher(DispatcherEvent::MeshAbsent { cause });
            }
        }
    }

    fn carry_out_dispatch(&mut self, hands: &mut impl Hands, command: DispatcherCommand) {
        match command {
            DispatcherCommand::Queued { request, ahead } => {
                if let Some(request) = hands.desk().requests.get(&request) {
                    request.sink.event(Event::Queued { ahead });
                }
            }
            DispatcherCommand::Waits { request, cause } => {
                tracing::warn!(request, cause, "a request waits for a mesh");
                if let Some(request) = hands.desk().requests.get(&request) {
                    request.sink.event(Event::Warning(cause));
                }
            }
            DispatcherCommand::Start { run, requests, replica } => {
                if !hands.start(run, requests, replica) {
                    self.then_dispatcher(DispatcherEvent::RunEnded { run });
                }
            }
            DispatcherCommand::Abort { run, replica } => {
                let cause = "its caller cancelled it".into();
                hands.conduct(replica, ReplicaMsg::Abort { run, cause });
            }
            DispatcherCommand::Want { mesh } => self.then_formation(FormationEvent::Want(mesh)),
            DispatcherCommand::Idle { replica } => {
                self.then_formation(FormationEvent::Idle(replica))
            }
            DispatcherCommand::Fail { request, error } => hands.desk().fail(request, error),
        }
    }
}

//! Formation and dispatcher taking turns: what one of them commands is often news for the other.
//!
//! Owns the order in which they hear of each other, and the queue of it, so that nothing here calls
//! itself. Carries nothing out: that is somebody's [`Hands`], the coordinator's or a simulation's.
//! Pure.

use std::collections::VecDeque;

use super::formation::{FormOrder, FormationCommand, FormationEvent};
use super::mesh_plan::Question;
use crate::dispatcher::{
    DispatcherCommand, DispatcherEvent, Need, ReplicaId, RequestId, Room, RunNumber,
};
use crate::generation::GenerateError;

/// News for one of the two engines.
pub(super) enum Step {
    Formation(FormationEvent),
    Dispatcher(DispatcherEvent),
}

/// Who holds the engines and carries out what they say.
pub(super) trait Hands {
    /// Tells formation; nothing comes back where there is none.
    fn tell_formation(&mut self, event: FormationEvent) -> Vec<FormationCommand>;
    /// Tells the dispatcher.
    fn tell_dispatcher(&mut self, event: DispatcherEvent) -> Vec<DispatcherCommand>;
    /// Finds out what devices make; the answer is `Planned`.
    fn plan(&mut self, question: Question);
    /// Why a mesh cannot be built beside those that its devices are in.
    fn no_room_beside(&mut self, order: &FormOrder) -> Option<String>;
    /// Whether what runs on a mesh is to go on on a better one at once.
    fn is_worth_moving(&mut self, replica: ReplicaId) -> bool;
    /// Gives up a mesh for another one; the requests that go on, and what they need.
    fn give_way(&mut self, replica: ReplicaId, cause: &str) -> Vec<(RequestId, Need)>;
    /// What a formed mesh takes.
    fn room(&mut self, replica: ReplicaId) -> Room;
    /// There is no mesh, for this reason.
    fn absent(&mut self, cause: &str);
    /// A request waits for its turn.
    fn queued(&mut self, request: RequestId, ahead: u32);
    /// A request waits for a mesh.
    fn waits(&mut self, request: RequestId, cause: String);
    /// Starts a run; false when there is nothing to run.
    fn start(&mut self, run: RunNumber, requests: Vec<RequestId>, replica: ReplicaId) -> bool;
    /// Stops a run that nobody wants any more.
    fn abort(&mut self, run: RunNumber, replica: ReplicaId);
    /// Ends a request.
    fn fail(&mut self, request: RequestId, error: GenerateError);
}

/// What is still to be carried out and told.
pub(super) struct Turns {
    commands: VecDeque<Command>,
    steps: VecDeque<Step>,
}

enum Command {
    Formation(FormationCommand),
    Dispatcher(DispatcherCommand),
}

impl Turns {
    /// One piece of news, and what follows from it.
    pub(super) fn of(step: Step) -> Self {
        Self { commands: VecDeque::new(), steps: VecDeque::from([step]) }
    }

    /// Goes on until a mesh is to be formed, which takes time, or nothing is left.
    pub(super) fn go_on(&mut self, hands: &mut impl Hands) -> Option<FormOrder> {
        loop {
            while let Some(command) = self.commands.pop_front() {
                match command {
                    Command::Formation(FormationCommand::Form(order)) => {
                        let Some(cause) = hands.no_room_beside(&order) else {
                            hands.absent("it is being formed");
                            return Some(order);
                        };
                        let replica = order.replica;
                        self.then_formation(FormationEvent::NoRoomBeside { replica, cause });
                    }
                    Command::Formation(command) => self.carry_out_formation(hands, command),
                    Command::Dispatcher(command) => self.carry_out_dispatch(hands, command),
                }
            }
            match self.steps.pop_front()? {
                Step::Formation(event) => {
                    let commands = hands.tell_formation(event).into_iter();
                    self.commands.extend(commands.map(Command::Formation));
                }
                Step::Dispatcher(event) => {
                    let commands = hands.tell_dispatcher(event).into_iter();
                    self.commands.extend(commands.map(Command::Dispatcher));
                }
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
                    self.then_formation(FormationEvent::Idle(replica));
                }
            }
            FormationCommand::Open(open) => self.then_dispatcher(DispatcherEvent::Open(open)),
            FormationCommand::Dissolve { replica, cause } => {
                let going_on = hands.give_way(replica, &cause);
                let error = GenerateError::Lost(cause);
                self.then_dispatcher(DispatcherEvent::ReplicaLost { replica, going_on, error });
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
            DispatcherCommand::Queued { request, ahead } => hands.queued(request, ahead),
            DispatcherCommand::Waits { request, cause } => hands.waits(request, cause),
            DispatcherCommand::Start { run, requests, replica } => {
                if !hands.start(run, requests, replica) {
                    self.then_dispatcher(DispatcherEvent::RunEnded { run });
                }
            }
            DispatcherCommand::Abort { run, replica } => hands.abort(run, replica),
            DispatcherCommand::Want { mesh } => self.then_formation(FormationEvent::Want(mesh)),
            DispatcherCommand::Idle { replica } => {
                self.then_formation(FormationEvent::Idle(replica))
            }
            DispatcherCommand::Fail { request, error } => hands.fail(request, error),
        }
    }
}

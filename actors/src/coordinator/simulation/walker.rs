//! Somebody who walks through the program of a real plan: a rank unit by unit, as its agenda says,
//! or the controller from end to end.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::membership::Now;
use crate::plan::message::Message;
use crate::plan::program::{Op, Program};
use crate::plan::{Action, Plan};
use crate::request::Event;

/// Someone who walks through a program.
pub(super) struct Walker {
    plan: Arc<Plan>,
    member: usize,
    program: Program,
    /// What is left of the part under way.
    items: Box<dyn Iterator<Item = Item>>,
    units_left: usize,
    /// For what, and since when.
    pub(super) waits: Option<(Waited, Now)>,
}

/// What a walker waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// A frame of a member, by its tag.
    Frame(usize, u64),
    /// That a member takes what it was sent.
    Taken(usize),
    /// That everybody does.
    AllTaken,
}

/// A part of a part.
enum Item {
    Action(Action),
    Tell(Event),
    /// It goes on when this member has taken what it was sent.
    AwaitTaken(usize),
}

/// What a walker does next.
pub(super) enum Next {
    Send(usize, Message),
    /// It has taken a frame of this member with this tag.
    Took(usize, u64),
    Compute,
    /// It tells how far it is.
    Tell(Event),
    Wait,
    /// It does not get on without the link to this member.
    NoLink(usize),
    /// The part under way is done, or all that was sent is taken, when that is waited for.
    Done,
}

impl Walker {
    pub(super) fn of_rank(plan: Arc<Plan>, rank: usize) -> Self {
        let (items, program) = (Box::new(std::iter::empty()), plan.program(rank));
        let units_left = program.unit_ends.len();
        Self { plan, member: rank, program, items, units_left, waits: None }
    }

    pub(super) fn of_controller(plan: Arc<Plan>) -> Self {
        let member = plan.controller();
        let items = Box::new(plan.actions(member).map(Item::Action));
        Self { plan, member, program: Program::default(), items, units_left: 0, waits: None }
    }

    /// Turns to a unit.
    pub(super) fn begin(&mut self, unit: usize) {
        let (plan, at) = (Arc::clone(&self.plan), self.plan.mesh.coordinates(self.member));
        let ops = self.program.unit(unit).to_vec();
        let (tells, of) = (plan.is_output(at), plan.steps() as u32);
        let controller = plan.controller();
        self.items = Box::new(ops.into_iter().flat_map(move |op| {
            let await_taken = match op {
                Op::StepDone { .. } => Some(Item::AwaitTaken(controller)),
                _ => None,
            };
            let tell = match op {
                Op::Condition if tells => Some(Event::Encoded),
                Op::StepDone { step } if tells => Some(Event::Step { step: step as u32 + 1, of }),
                _ => None,
            };
            let actions = plan.expand(at, op).into_iter().map(Item::Action);
            actions.chain(await_taken).chain(tell.map(Item::Tell))
        }));
    }

    /// A unit is done.
    pub(super) fn end_unit(&mut self) {
        self.units_left -= 1;
    }

    /// Whether it has no more units.
    pub(super) fn is_done(&self) -> bool {
        self.units_left == 0
    }

    /// Goes on, with the frames that are here, those that nobody has taken yet of what it sent, and
    /// without the links that are `broken`. A receive is posted when it is waited for and not
    /// before, which is the smallest window there is: the frame stays with its sender until then.
    pub(super) fn next(
        &mut self,
        run: u64,
        inbox: &mut Inbox,
        untaken: &Untaken,
        broken: &BTreeSet<usize>,
        now: Now,
    ) -> Next {
        match self.waits {
            Some((Waited::Frame(from, tag), _)) => {
                if !inbox.remove(&(run, from, tag)) {
                    return if broken.contains(&from) { Next::NoLink(from) } else { Next::Wait };
                }
                self.waits = None;
                return Next::Took(from, tag);
            }
            Some((waited, _)) => {
                let own = untaken.range((run, 0, 0)..(run + 1, 0, 0)).map(|&(_, to, _)| to);
                let awaited = |to: &usize| match waited {
                    Waited::Taken(by) => *to == by,
                    _ => true,
                };
                let mut awaited = own.filter(awaited).peekable();
                if awaited.peek().is_some() {
                    let lost = awaited.find(|to| broken.contains(to));
                    return lost.map_or(Next::Wait, Next::NoLink);
                }
                self.waits = None;
                if waited == Waited::AllTaken {
                    return Next::Done;
                }
            }
            None => {}
        }
        let action = match self.items.next() {
            None => return Next::Done,
            Some(Item::Tell(event)) => return Next::Tell(event),
            Some(Item::AwaitTaken(by)) => {
                self.waits = Some((Waited::Taken(by), now));
                return self.next(run, inbox, untaken, broken, now);
            }
            Some(Item::Action(action)) => action,
        };
        match action {
            Action::Send(to, _) if broken.contains(&to) => Next::NoLink(to),
            Action::Send(to, message) => Next::Send(to, message),
            Action::Recv(from, message) => {
                self.waits = Some((Waited::Frame(from, message.tag().0), now));
                self.next(run, inbox, untaken, broken, now)
            }
            Action::Compute(_) | Action::Layer { .. } => Next::Compute,
        }
    }
}

/// Frames that are here: run, sender and tag.
pub(super) type Inbox = BTreeSet<(u64, usize, u64)>;

/// Frames that were sent and are not taken: run, receiver and tag.
pub(super) type Untaken = BTreeSet<(u64, usize, u64)>;

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
    /// For whose frame, and since when.
    pub(super) waits: Option<((usize, u64), Now)>,
}

/// A part of a part.
enum Item {
    Action(Action),
    Tell(Event),
}

/// What a walker does next.
pub(super) enum Next {
    Send(usize, Message),
    Compute,
    /// It tells how far it is.
    Tell(Event),
    Wait,
    /// It does not get on without the link to this member.
    NoLink(usize),
    /// The part under way is done.
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
        self.items = Box::new(ops.into_iter().flat_map(move |op| {
            let tell = match op {
                Op::Condition if tells => Some(Event::Encoded),
                Op::StepDone { step } if tells => Some(Event::Step { step: step as u32 + 1, of }),
                _ => None,
            };
            let actions = plan.expand(at, op).into_iter().map(Item::Action);
            actions.chain(tell.map(Item::Tell))
        }));
    }

    /// A unit is done; whether it was the last one.
    pub(super) fn end_unit(&mut self) -> bool {
        self.units_left -= 1;
        self.units_left == 0
    }

    /// Goes on, with the frames that are here and without the links that are `broken`.
    pub(super) fn next(
        &mut self,
        run: u64,
        inbox: &mut Inbox,
        broken: &BTreeSet<usize>,
        now: Now,
    ) -> Next {
        loop {
            if let Some(((from, tag), _)) = self.waits {
                if !inbox.remove(&(run, from, tag)) {
                    return if broken.contains(&from) { Next::NoLink(from) } else { Next::Wait };
                }
                self.waits = None;
            }
            let action = match self.items.next() {
                None => return Next::Done,
                Some(Item::Tell(event)) => return Next::Tell(event),
                Some(Item::Action(action)) => action,
            };
            match action {
                Action::Send(to, _) if broken.contains(&to) => return Next::NoLink(to),
                Action::Send(to, message) => return Next::Send(to, message),
                Action::Recv(from, message) => self.waits = Some(((from, message.tag().0), now)),
                Action::Compute(_) | Action::Layer { .. } => return Next::Compute,
            }
        }
    }
}

/// Frames that are here: run, sender and tag.
pub(super) type Inbox = BTreeSet<(u64, usize, u64)>;

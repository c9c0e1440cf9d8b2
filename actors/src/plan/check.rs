//! Proves a plan sound before it runs: every frame sent is received, nothing waits for ever.
//!
//! Executes all programs on an abstract machine with the smallest window there is: a receive is
//! posted only when the member waits for it, and a frame stays with its sender until then. What
//! finishes here cannot deadlock on a real transport, which only posts earlier. Pure.

use std::collections::{HashMap, HashSet};
use std::iter::Peekable;

use thiserror::Error;

use super::message::Message;
use super::program::Program;
use super::{Action, Plan};

/// What is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CheckError {
    /// Members wait for frames nobody will send.
    #[error("member {member} waits for ever for {message} from member {peer}")]
    Deadlock {
        /// Who waits.
        member: usize,
        /// For whom.
        peer: usize,
        /// For what.
        message: String,
    },
    /// A frame nobody receives.
    #[error("member {member} sends {message} to member {peer}, which never receives it")]
    Unreceived {
        /// The sender.
        member: usize,
        /// Who should have received it.
        peer: usize,
        /// What.
        message: String,
    },
    /// Two ends see one frame differently.
    #[error("member {member} expects {expected}, member {peer} sends {sent}")]
    Mismatch {
        /// The receiver.
        member: usize,
        /// The sender.
        peer: usize,
        /// What the receiver posts.
        expected: String,
        /// What the sender sends.
        sent: String,
    },
    /// Two frames of one name between the same members.
    #[error("member {member} sends {message} to member {peer} twice")]
    Duplicate {
        /// The sender.
        member: usize,
        /// The receiver.
        peer: usize,
        /// What.
        message: String,
    },
}

/// What a sound plan moves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Frames in all.
    pub frames: usize,
    /// Most bytes any member holds in frames that were sent but not yet received.
    pub unsent_bytes_max: usize,
}

/// Runs all programs of `plan` against each other.
///
/// # Errors
/// [`CheckError`] for the first fault found.
pub fn check(plan: &Plan) -> Result<CheckReport, CheckError> {
    let order: Vec<(usize, usize)> = (0..plan.units().len()).map(|unit| (0, unit)).collect();
    check_order(&[plan], &order)
}

/// Runs the programs of several plans of one mesh against each other, each rank its units in
/// `order`: which plan, which unit of it. Every plan has a controller of its own, numbered from the
/// number of ranks on.
///
/// # Errors
/// [`CheckError`] for the first fault found.
pub fn check_order(plans: &[&Plan], order: &[(usize, usize)]) -> Result<CheckReport, CheckError> {
    let ranks = plans.first().map_or(0, |plan| plan.mesh.world_size());
    let mut programs: Vec<Peekable<Steps<'_>>> =
        (0..ranks).map(|rank| rank_steps(plans, rank, order).peekable()).collect();
    for (index, plan) in plans.iter().enumerate() {
        let steps = plan.actions(plan.controller()).map(move |action| (index, action));
        programs.push((Box::new(steps) as Steps<'_>).peekable());
    }
    let mut machine = Machine { ranks, held: vec![0; programs.len()], ..Machine::default() };
    loop {
        let mut moved = false;
        for (member, program) in programs.iter_mut().enumerate() {
            while let Some(action) = program.peek() {
                if !machine.try_do(member, action)? {
                    break;
                }
                program.next();
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    for (member, program) in programs.iter_mut().enumerate() {
        if let Some((plan, Action::Recv(peer, message))) = program.peek() {
            let (peer, message) = (machine.member(*plan, *peer), message.to_string());
            return Err(CheckError::Deadlock { member, peer, message });
        }
    }
    if let Some(((member, peer, ..), message)) = machine.in_flight.iter().next() {
        let (member, peer, message) = (*member, *peer, message.to_string());
        return Err(CheckError::Unreceived { member, peer, message });
    }
    Ok(machine.report)
}

/// Sender, receiver, plan and tag.
type Frame = (usize, usize, usize, u64);

/// What a member does, and in which plan.
type Steps<'a> = Box<dyn Iterator<Item = (usize, Action)> + 'a>;

fn rank_steps<'a>(plans: &[&'a Plan], rank: usize, order: &'a [(usize, usize)]) -> Steps<'a> {
    let programs: Vec<(&Plan, Program)> =
        plans.iter().map(|plan| (*plan, plan.program(rank))).collect();
    Box::new(order.iter().flat_map(move |&(index, unit)| {
        let (plan, ops) = match programs.get(index) {
            Some((plan, program)) => (*plan, program.unit(unit).to_vec()),
            None => return Vec::new(),
        };
        let at = plan.mesh.coordinates(rank);
        let actions = ops.into_iter().flat_map(|op| plan.expand(at, op));
        actions.map(|action| (index, action)).collect()
    }))
}

#[derive(Default)]
struct Machine {
    ranks: usize,
    in_flight: HashMap<Frame, Message>,
    seen: HashSet<Frame>,
    held: Vec<usize>,
    report: CheckReport,
}

impl Machine {
    /// The number of a member that `plan` calls `peer`.
    fn member(&self, plan: usize, peer: usize) -> usize {
        if peer < self.ranks { peer } else { self.ranks + plan }
    }

    /// Does `action` if it can be done now.
    fn try_do(
        &mut self,
        member: usize,
        (plan, action): &(usize, Action),
    ) -> Result<bool, CheckError> {
        match action {
            Action::Compute(_) | Action::Layer { .. } => Ok(true),
            Action::Send(peer, message) => {
                let peer = self.member(*plan, *peer);
                let key = (member, peer, *plan, message.tag().0);
                if !self.seen.insert(key) {
                    let message = message.to_string();
                    return Err(CheckError::Duplicate { member, peer, message });
                }
                self.held[member] += message.bytes();
                self.report.frames += 1;
                self.report.unsent_bytes_max = self.report.unsent_bytes_max.max(self.held[member]);
                self.in_flight.insert(key, message.clone());
                Ok(true)
            }
            Action::Recv(peer, message) => {
                let peer = self.member(*plan, *peer);
                let key = (peer, member, *plan, message.tag().0);
                let Some(sent) = self.in_flight.remove(&key) else {
                    return Ok(false);
                };
                self.held[peer] -= sent.bytes();
                if &sent != message {
                    let (expected, sent) = (message.to_string(), sent.to_string());
                    return Err(CheckError::Mismatch { member, peer, expected, sent });
                }
                Ok(true)
            }
        }
    }
}

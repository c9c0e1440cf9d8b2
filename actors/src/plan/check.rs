//! Proves a plan sound before it runs: every frame sent is received, nothing waits for ever.
//!
//! Executes all programs on an abstract machine with the smallest window there is: a receive is
//! posted only when the member waits for it, and a frame stays with its sender until then. What
//! finishes here cannot deadlock on a real transport, which only posts earlier. Pure.

use std::collections::HashMap;

use thiserror::Error;

use super::message::Message;
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
    let members = plan.controller() + 1;
    let mut machine = Machine::default();
    let mut programs: Vec<_> = (0..members).map(|m| plan.actions(m).peekable()).collect();
    machine.held = vec![0; members];
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
        if let Some(Action::Recv(peer, message)) = program.peek() {
            let (peer, message) = (*peer, message.to_string());
            return Err(CheckError::Deadlock { member, peer, message });
        }
    }
    if let Some(((member, peer, _), message)) = machine.in_flight.iter().next() {
        let (member, peer, message) = (*member, *peer, message.to_string());
        return Err(CheckError::Unreceived { member, peer, message });
    }
    Ok(machine.report)
}

#[derive(Default)]
struct Machine {
    in_flight: HashMap<(usize, usize, u64), Message>,
    seen: std::collections::HashSet<(usize, usize, u64)>,
    held: Vec<usize>,
    report: CheckReport,
}

impl Machine {
    /// Does `action` if it can be done now.
    fn try_do(&mut self, member: usize, action: &Action) -> Result<bool, CheckError> {
        match action {
            Action::Compute(_) => Ok(true),
            Action::Send(peer, message) => {
                let key = (member, *peer, message.tag().0);
                if !self.seen.insert(key) {
                    let (peer, message) = (*peer, message.to_string());
                    return Err(CheckError::Duplicate { member, peer, message });
                }
                self.held[member] += message.bytes();
                self.report.frames += 1;
                self.report.unsent_bytes_max = self.report.unsent_bytes_max.max(self.held[member]);
                self.in_flight.insert(key, message.clone());
                Ok(true)
            }
            Action::Recv(peer, message) => {
                let Some(sent) = self.in_flight.remove(&(*peer, member, message.tag().0)) else {
                    return Ok(false);
                };
                self.held[*peer] -= sent.bytes();
                if &sent != message {
                    let (peer, expected, sent) = (*peer, message.to_string(), sent.to_string());
                    return Err(CheckError::Mismatch { member, peer, expected, sent });
                }
                Ok(true)
            }
        }
    }
}

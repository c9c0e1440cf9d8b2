//! Copies of checkpoints that come back: their requests are not started meanwhile.

use super::{Hands, Step, Turns};
use crate::coordinator::copies::CopiesCommand;
use crate::dispatcher::{DispatcherEvent, RequestId};
use crate::membership::Member;
use crate::protocol::ToCoordinator;

impl Turns {
    /// An agent says something about copies.
    pub(super) fn copies_said(
        &mut self,
        hands: &mut impl Hands,
        node: &str,
        message: ToCoordinator,
    ) {
        let now = hands.now();
        let memory = &mut hands.desk().memory;
        let commands = match message {
            ToCoordinator::CopiesHeld(held) => {
                memory.copies_returned(now, node, &held);
                return self.later.extend(memory.requests().into_iter().map(Step::Recall));
            }
            ToCoordinator::CopyTaken { key, step, bytes } => {
                memory.copies.taken(node, key, step, bytes)
            }
            ToCoordinator::CopyPart(part) => memory.copies.part(node, *part),
            message => return tracing::warn!(node, ?message, "unexpected message"),
        };
        self.carry_out_copies(hands, commands);
    }

    pub(super) fn recall(&mut self, hands: &mut impl Hands, request: RequestId) {
        let now = hands.now();
        let commands = hands.desk().recall(now, request);
        if !commands.is_empty() {
            self.then_dispatcher(DispatcherEvent::Withheld { request });
            self.carry_out_copies(hands, commands);
        }
    }

    pub(super) fn carry_out_copies(
        &mut self,
        hands: &mut impl Hands,
        commands: Vec<CopiesCommand>,
    ) {
        for command in commands {
            match command {
                CopiesCommand::Say { node, message } => {
                    // One that has gone is reported gone.
                    hands.say(&Member::Agent(node), message);
                }
                CopiesCommand::Recalled { key, copy } => {
                    for (request, need) in hands.desk().recalled(&key, copy.as_ref()) {
                        self.then_dispatcher(DispatcherEvent::Released { request, need });
                    }
                }
            }
        }
    }
}

//! Somebody who walks through the program of a real plan: a rank, or the controller.

use std::collections::BTreeSet;

use crate::membership::Now;
use crate::plan::message::Message;
use crate::plan::{Action, Plan};

/// Someone who walks through a program.
pub(super) struct Walker {
    actions: Box<dyn Iterator<Item = Action>>,
    pub(super) waits: Option<((usize, u64), Now)>,
    pub(super) computes: bool,
    /// What it computes does not end.
    pub(super) hangs: bool,
    /// Members it exchanges frames with.
    pub(super) peers: Vec<usize>,
}

/// What a walker does next.
pub(super) enum Next {
    Send(usize, Message),
    Compute,
    Wait,
    Done,
}

impl Walker {
    pub(super) fn new(plan: &Plan, member: usize) -> Self {
        let (actions, peers) = (Box::new(plan.actions(member)), plan.peers(member));
        Self { actions, waits: None, computes: false, hangs: false, peers }
    }

    pub(super) fn next(&mut self, run: u64, inbox: &mut Inbox, now: Now) -> Next {
        loop {
            if let Some(((from, tag), _)) = self.waits {
                if !inbox.remove(&(run, from, tag)) {
                    return Next::Wait;
                }
                self.waits = None;
            }
            match self.actions.next() {
                None => return Next::Done,
                Some(Action::Send(to, message)) => return Next::Send(to, message),
                Some(Action::Recv(from, message)) => {
                    self.waits = Some(((from, message.tag().0), now));
                }
                Some(Action::Compute(_) | Action::Layer { .. }) => return Next::Compute,
            }
        }
    }
}

/// Frames that are here: run, sender and tag.
pub(super) type Inbox = BTreeSet<(u64, usize, u64)>;

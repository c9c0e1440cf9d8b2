//! Agents that hold copies of checkpoints: the real engine and the real holders, and messages
//! between them that take their time.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Sabotage;
use super::desk::need;
use super::runs::Report;
use super::world::{FAULTS_END, Wake, World};
use crate::checkpoint::Checkpoint;
use crate::coordinator::advance::Step;
use crate::coordinator::copies::{CopiesCommand, holders};
use crate::dispatcher::DispatcherEvent;
use crate::journal::file;
use crate::membership::Member;
use crate::protocol::{FromCoordinator, RequestKey, ToCoordinator};
use crate::request::FloatTensor;

pub(super) fn key_of(client: u64) -> RequestKey {
    RequestKey { client, number: 0 }
}

impl World {
    /// So many steps of a request are kept: agents are given copies.
    pub(super) fn hand_on(&mut self, request: u64, steps: u32, producers: &BTreeSet<String>) {
        let Some(desk) = &mut self.desk else { return };
        let (Some(known), Some(step)) = (desk.requests.get(&request), steps.checked_sub(1)) else {
            return;
        };
        let key = key_of(known.client);
        let state = FloatTensor { shape: vec![1, 1], data: vec![step as f32] };
        let checkpoint = Arc::new(Checkpoint { step: step as usize, images: 1, state });
        let there = desk.membership.nodes_there();
        // The coordinator's node is neither of them.
        let holders = holders(&there, "", producers, &key, &desk.copies);
        let commands = desk.copies.hand_on(key, checkpoint, holders);
        self.carry_out_copies(commands);
    }

    pub(super) fn carry_out_copies(&mut self, commands: Vec<CopiesCommand>) {
        for command in commands {
            match command {
                CopiesCommand::Say { node, message } => {
                    let after = self.dice.between(1, 5);
                    let desk = self.desks;
                    self.at(after, Wake::AgentOrdered(node, desk, message));
                }
                CopiesCommand::Recalled { key, copy } => {
                    let steps = copy.and_then(|copy| {
                        let checkpoint = file::from_bytes(&copy.bytes)?;
                        Some(checkpoint.step as u32 + 1)
                    });
                    self.recalled(key, steps);
                }
            }
        }
    }

    fn recalled(&mut self, key: RequestKey, steps: Option<u32>) {
        let Some(desk) = &mut self.desk else { return };
        let known = desk.requests.iter_mut().find(|(_, known)| known.client == key.client);
        let Some((&request, known)) = known else { return };
        let need = steps.map(|steps| {
            known.steps = known.steps.max(steps);
            need(known.steps)
        });
        self.recalls += u64::from(steps.is_some());
        self.note(|| format!("request {request}: a copy came back: {steps:?} steps"));
        self.advance(Step::Dispatcher(DispatcherEvent::Released { request, need }));
    }

    /// An agent hears of copies, if its session is still with that life of the coordinator.
    pub(super) fn agent_ordered(&mut self, node: String, desk: u64, message: FromCoordinator) {
        if self.network.away.contains(&node) {
            let again = Wake::AgentOrdered(node.clone(), desk, message);
            return self.network.hold(&node, again);
        }
        let asked_back = matches!(message, FromCoordinator::SendCopy { .. });
        if asked_back && self.now < FAULTS_END && self.dice.roll(4) == 0 {
            return self.note(|| format!("{node} does not send its copy back"));
        }
        let member = Member::Agent(node.clone());
        let Some(agent) = self.processes.get_mut(&member) else { return };
        if !agent.is_with(desk) {
            return;
        }
        if agent.is_frozen {
            return agent.later(Wake::AgentOrdered(node, desk, message));
        }
        let answer = match message {
            FromCoordinator::HoldCopy(part) => {
                let (key, step) = (part.key, part.step);
                ToCoordinator::CopyTaken { key, step, bytes: agent.copies.take(*part) }
            }
            FromCoordinator::SendCopy { key, step, offset } => {
                ToCoordinator::CopyPart(Box::new(agent.copies.part(key, step, offset)))
            }
            FromCoordinator::DropCopy { key } => return agent.copies.drop_copy(&key),
            _ => return,
        };
        let incarnation = agent.incarnation;
        self.say(&member, incarnation, Report::Copies(answer));
    }

    /// The desk hears of copies.
    pub(super) fn about_copies(&mut self, node: &str, message: ToCoordinator) {
        let now = self.now;
        let Some(desk) = &mut self.desk else { return };
        let commands = match message {
            ToCoordinator::CopiesHeld(held) => {
                let open: BTreeSet<u64> =
                    desk.requests.values().map(|known| known.client).collect();
                desk.copies.returned(now, node, &held, |key| open.contains(&key.client));
                let waiting = desk.requests.iter().filter(|(_, known)| known.run.is_none());
                let waiting: Vec<u64> = waiting.map(|(&request, _)| request).collect();
                return waiting.into_iter().for_each(|request| {
                    let known = self.desk.as_ref().and_then(|desk| desk.requests.get(&request));
                    if let Some((client, steps)) = known.map(|known| (known.client, known.steps)) {
                        self.recall(request, client, steps);
                    }
                });
            }
            ToCoordinator::CopyTaken { key, step, bytes } => {
                desk.copies.taken(node, key, step, bytes)
            }
            ToCoordinator::CopyPart(part) => desk.copies.part(node, *part),
            _ => return,
        };
        self.carry_out_copies(commands);
    }

    /// Asks a copy back, and does not start the request meanwhile.
    pub(super) fn recall(&mut self, request: u64, client: u64, steps: u32) {
        let now = self.now;
        let Some(desk) = &mut self.desk else { return };
        let commands = desk.copies.recall(now, key_of(client), steps);
        if !commands.is_empty() {
            self.advance(Step::Dispatcher(DispatcherEvent::Withheld { request }));
            self.carry_out_copies(commands);
        }
    }

    /// Time passed, or a node is `gone`.
    pub(super) fn tend_copies(&mut self, gone: Option<&str>) {
        let now = self.now;
        if self.is(Sabotage::AwaitCopies) {
            return;
        }
        let Some(desk) = &mut self.desk else { return };
        let commands = match gone {
            Some(node) => desk.copies.node_gone(node),
            None => desk.copies.tick(now),
        };
        self.carry_out_copies(commands);
    }
}

//! Programs taken apart: every frame and every piece of computing, in order.
//!
//! Owns [`Action`]. Executors post their receives by it, the planner and the simulation walk
//! through it.

use std::ops::Range;

use ditmesh_model::phase::{Phase, Transfer, phases};
use ditmesh_model::vae::phase::DecodeLayer;

use super::Plan;
use super::mesh::Coordinates;
use super::message::Message;
use super::program::{Op, Patch};
use crate::parallel::vae;

/// The smallest thing a member does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A frame leaves; nobody waits.
    Send(usize, Message),
    /// Waits for a frame.
    Recv(usize, Message),
    /// Computes.
    Compute(Phase),
    /// Computes a layer of the VAE decoder.
    Layer {
        /// Which layer.
        layer: DecodeLayer,
        /// Floating-point operations of this member's rows.
        flops: u64,
    },
}

impl Plan {
    /// What a member sends, waits for and computes, in order, forward passes expanded. The
    /// controller is a member too.
    pub fn actions(&self, member: usize) -> impl Iterator<Item = Action> + use<> {
        let plan = self.clone();
        let (at, program) = if member == self.controller() {
            (self.mesh.coordinates(0), self.controller_program())
        } else {
            (self.mesh.coordinates(member), self.program(member))
        };
        program.ops.into_iter().flat_map(move |op| plan.expand(at, op))
    }

    /// Every frame a member receives, in program order: what its executor posts ahead.
    pub fn receives(&self, member: usize) -> impl Iterator<Item = (usize, Message)> + use<> {
        self.actions(member).filter_map(|action| match action {
            Action::Recv(peer, message) => Some((peer, message)),
            _ => None,
        })
    }

    /// What an operation sends, waits for and computes, in order.
    pub(crate) fn expand(&self, at: Coordinates, op: Op) -> Vec<Action> {
        match op {
            Op::Recv { peer, message } => vec![Action::Recv(peer, message)],
            Op::Send { peer, message } | Op::Checkpoint { peer, message } => {
                vec![Action::Send(peer, message)]
            }
            Op::Exchange { peer, message } => {
                vec![Action::Send(peer, message.clone()), Action::Recv(peer, message)]
            }
            Op::Forward { step, patch, blocks } => self.expand_forward(at, step, patch, blocks),
            Op::Decode => vae::expand(self, at),
            _ => Vec::new(),
        }
    }

    fn expand_forward(
        &self,
        at: Coordinates,
        step: usize,
        patch: Patch,
        blocks: Range<usize>,
    ) -> Vec<Action> {
        let group = self.mesh.sequence_group(at);
        let mut actions = Vec::new();
        for phase in phases(&self.forward_shape(at, patch, blocks), &self.model) {
            let messages = |transfer: Transfer| {
                let peers = transfer.pieces.into_iter().filter_map(|(member, shape)| {
                    let message = Message::of_exchange(transfer.id, step, patch.strip(), shape);
                    Some((*group.get(member)?, message.on_wire(&self.run.wire)))
                });
                peers.collect::<Vec<_>>()
            };
            match phase {
                Phase::Start(transfer) => {
                    let sends = messages(transfer).into_iter();
                    actions.extend(sends.map(|(peer, message)| Action::Send(peer, message)));
                }
                Phase::Wait(transfer) => {
                    let receives = messages(transfer).into_iter();
                    actions.extend(receives.map(|(peer, message)| Action::Recv(peer, message)));
                }
                phase => actions.push(Action::Compute(phase)),
            }
        }
        actions
    }

    /// The members a member exchanges frames with, ascending.
    pub fn peers(&self, member: usize) -> Vec<usize> {
        let mut peers: Vec<usize> = self
            .actions(member)
            .filter_map(|action| match action {
                Action::Send(peer, _) | Action::Recv(peer, _) => Some(peer),
                Action::Compute(_) | Action::Layer { .. } => None,
            })
            .collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }
}

//! The programs of ranks and of the controller: the skeleton that parallel methods hang on.
//!
//! Owns the order of text, latents, passes, checkpoints and the result. What a method adds is in
//! [`crate::parallel`].

use ditmesh_transport::collectives;
use ditmesh_transport::frame::Dtype;
use ditmesh_transport::ids::PeerId;

use super::Plan;
use super::mesh::Coordinates;
use super::message::{Message, MessageKind};
use super::program::{Op, Patch, Program};
use crate::parallel::{cfg, pipefusion, step_cache, vae};

/// A rank as the collectives name it.
fn peer_id(rank: usize) -> PeerId {
    PeerId(rank as u32)
}

/// The operation of one transfer of a collective.
fn op_of(transfer: &collectives::Transfer, message: Message) -> Op {
    let peer = transfer.peer.0 as usize;
    match transfer.direction {
        collectives::Direction::SendTo => Op::Send { peer, message },
        collectives::Direction::RecvFrom => Op::Recv { peer, message },
    }
}

impl Plan {
    /// The program of one rank.
    pub fn program(&self, rank: usize) -> Program {
        let at = self.mesh.coordinates(rank);
        let (mut ops, mut unit_ends) = (Vec::new(), Vec::new());
        self.prologue(rank, at, &mut ops);
        unit_ends.push(ops.len());
        for step in self.first_step()..self.steps() {
            for patch in self.patches(step) {
                self.pass(at, step, patch, &mut ops);
                unit_ends.push(ops.len());
            }
            if at.stage + 1 == self.mesh.stages() {
                ops.push(Op::StepDone { step });
            }
            unit_ends.last_mut().into_iter().for_each(|end| *end = ops.len());
        }
        self.epilogue(rank, at, &mut ops);
        unit_ends.push(ops.len());
        Program { ops, unit_ends }
    }

    /// Text to every rank, from rank to rank; initial latents, or those of a checkpoint, to the
    /// first and the last stage. A run that is denoised already needs no text.
    fn prologue(&self, rank: usize, at: Coordinates, ops: &mut Vec<Op>) {
        if self.first_step() < self.steps() {
            self.text(rank, ops);
        }
        if !self.takes_latents(at) {
            return;
        }
        if let Some(message) = self.resume_message() {
            ops.push(Op::Recv { peer: self.controller(), message });
            ops.push(Op::Restore);
        } else if self.run.latents_given {
            let message = self.initial_latents();
            ops.push(Op::Recv { peer: self.controller(), message });
            ops.push(Op::TakeLatents);
        } else {
            ops.push(Op::Noise);
        }
    }

    /// Whether the rank at `at` holds latents.
    fn takes_latents(&self, at: Coordinates) -> bool {
        at.stage == 0 || at.stage + 1 == self.mesh.stages()
    }

    fn text(&self, rank: usize, ops: &mut Vec<Op>) {
        let text = self.text_messages();
        if rank == 0 && self.run.embeds_tokens.is_none() {
            ops.push(Op::Encode);
        } else if rank == 0 {
            let peer = self.controller();
            ops.extend(text.iter().cloned().map(|message| Op::Recv { peer, message }));
        }
        let ranks: Vec<PeerId> = (0..self.mesh.world_size()).map(peer_id).collect();
        for transfer in collectives::broadcast(&ranks, peer_id(0), peer_id(rank)) {
            ops.extend(text.iter().cloned().map(|message| op_of(&transfer, message)));
        }
        ops.push(Op::Condition);
    }

    /// Embeddings and mask of all branches of all pictures.
    pub fn text_messages(&self) -> [Message; 2] {
        let (rows, tokens) = (self.branches() * self.images(), self.text_tokens());
        let embeds = vec![rows, tokens, self.model.caption_channels];
        [
            Message::once(MessageKind::TextEmbeds, embeds),
            Message::once(MessageKind::TextMask, vec![rows, tokens]),
        ]
    }

    /// The user's initial latents, whole.
    pub fn initial_latents(&self) -> Message {
        let shape = self.latent_shape(self.images(), self.grid.token_rows());
        Message::once(MessageKind::InitialLatents, shape)
    }

    /// One forward pass with what surrounds it.
    fn pass(&self, at: Coordinates, step: usize, patch: Patch, ops: &mut Vec<Op>) {
        pipefusion::receive(self, at, step, patch, ops);
        step_cache::forward(self, at, step, patch, ops);
        if at.stage + 1 < self.mesh.stages() {
            return pipefusion::hand_on(self, at, step, patch, ops);
        }
        if self.rows(at.sp, patch).is_empty() {
            return;
        }
        cfg::exchange(self, at, step, patch, ops);
        ops.push(Op::Denoise { step, patch });
        pipefusion::return_sample(self, at, step, patch, ops);
        ops.extend(self.checkpoint(at, step, patch));
    }

    /// The passes of a step.
    fn patches(&self, step: usize) -> Vec<Patch> {
        if self.is_async(step) {
            (0..self.strips.len()).map(Patch::Strip).collect()
        } else {
            vec![Patch::All]
        }
    }

    /// Final rows to the output rank, the result to the controller.
    fn epilogue(&self, rank: usize, at: Coordinates, ops: &mut Vec<Op>) {
        if at.stage + 1 < self.mesh.stages() || at.cfg > 0 {
            return vae::decode(self, at, ops);
        }
        let output = self.mesh.rank(Coordinates { sp: 0, ..at });
        let rows = |sp: usize| {
            let count = self.rows(sp, Patch::All).len();
            let shape = self.latent_shape(self.images(), count);
            (count > 0).then(|| Message::once(MessageKind::FinalRows, shape))
        };
        let group: Vec<PeerId> = self.mesh.sequence_group(at).into_iter().map(peer_id).collect();
        for transfer in collectives::gather(&group, peer_id(output), peer_id(rank)) {
            ops.extend(rows(transfer.piece).map(|message| op_of(&transfer, message)));
        }
        if rank != output {
            return vae::decode(self, at, ops);
        }
        ops.push(Op::Gather);
        vae::decode(self, at, ops);
        ops.push(Op::Send { peer: self.controller(), message: self.result() });
    }

    /// The controller's program: what it sends and what it waits for.
    pub fn controller_program(&self) -> Program {
        let mut ops = Vec::new();
        if self.run.embeds_tokens.is_some() && self.first_step() < self.steps() {
            let text = self.text_messages();
            ops.extend(text.into_iter().map(|message| Op::Send { peer: 0, message }));
        }
        let ranks = 0..self.mesh.world_size();
        let given = self.run.latents_given.then(|| self.initial_latents());
        if let Some(message) = self.resume_message().or(given) {
            let edge = |&rank: &usize| self.takes_latents(self.mesh.coordinates(rank));
            let send = |peer| Op::Send { peer, message: message.clone() };
            ops.extend(ranks.clone().filter(edge).map(send));
        }
        let last = |&rank: &usize| self.mesh.coordinates(rank).stage + 1 == self.mesh.stages();
        for step in self.first_step()..self.steps() {
            for patch in self.patches(step) {
                let kept = ranks.clone().filter(last).filter_map(|peer| {
                    match self.checkpoint(self.mesh.coordinates(peer), step, patch)? {
                        Op::Checkpoint { message, .. } => Some(Op::Recv { peer, message }),
                        _ => None,
                    }
                });
                ops.extend(kept);
            }
        }
        let output = ranks.into_iter().find(|&rank| self.is_output(self.mesh.coordinates(rank)));
        ops.extend(output.map(|peer| Op::Recv { peer, message: self.result() }));
        Program { ops, unit_ends: Vec::new() }
    }

    /// What the output rank sends to the controller: the pictures, one below the other.
    pub fn result(&self) -> Message {
        if self.run.latent_output {
            let shape = self.latent_shape(self.images(), self.grid.token_rows());
            return Message::once(MessageKind::Result, shape);
        }
        let rows = self.images() * self.run.height as usize;
        let shape = vec![rows, self.run.width as usize, 3];
        Message { dtype: Dtype::U8, ..Message::once(MessageKind::Result, shape) }
    }
}

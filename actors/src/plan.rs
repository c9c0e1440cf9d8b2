//! Turns a mesh, a model and a run into one program per rank.
//!
//! Pure: the same three values give the same plan on every machine, so only the run's description
//! travels and each rank plans for itself; [`Plan::digest`] proves that all agree. What each
//! parallel method adds is in [`crate::parallel`]; this module owns the skeleton they hang on.
//! Knows nothing of links, clocks or tensors.

pub mod batch;
pub mod bytes;
pub mod check;
pub mod footprint;
pub mod interleave;
pub mod layout;
pub mod memory;
pub mod mesh;
pub mod message;
pub mod program;
pub mod resolve;
pub mod resume;
pub mod sequence;
pub mod sync;

use std::ops::Range;

use ditmesh_model::conditioning::LatentGrid;
use ditmesh_model::phase::{ForwardShape, Phase, Transfer, phases};
use ditmesh_model::rows::{PatchRange, RowSet, share, strips};
use ditmesh_model::spec::ModelSpec;
use ditmesh_model::vae::phase::DecodeLayer;
use ditmesh_transport::collectives;
use ditmesh_transport::frame::Dtype;
use ditmesh_transport::ids::PeerId;

use crate::parallel::{cfg, pipefusion, step_cache, vae};
use crate::protocol::RunSpec;
use crate::request::{Degrees, GenerateRequest, StepCache};
use layout::Layout;
use mesh::{Coordinates, DeviceMesh};
use message::{Message, MessageKind};
use program::{Op, Patch, Program};
pub use resolve::PlanError;

/// A run laid out over a mesh.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The ranks.
    pub mesh: DeviceMesh,
    /// The model.
    pub model: ModelSpec,
    /// The run.
    pub run: RunSpec,
    /// Geometry of the latent.
    pub grid: LatentGrid,
    /// The patches; fewer than asked for when rows do not divide.
    pub strips: Vec<PatchRange>,
    /// Blocks of each stage.
    pub layout: Layout,
    /// What the user should know.
    pub warnings: Vec<String>,
}

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

/// FNV-1a: the same on every machine and in every build, unlike the standard hasher.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Plan {
    /// Plans `run` of `model` on a mesh of `degrees`, its blocks dealt evenly to the stages.
    ///
    /// # Errors
    /// When the degrees do not fit the model or the run.
    pub fn new(degrees: Degrees, model: &ModelSpec, run: &RunSpec) -> Result<Self, PlanError> {
        let layout = Layout::even(model.blocks, degrees.pipefusion_degree.max(1) as usize);
        Self::with_layout(degrees, layout, model, run)
    }

    /// Plans `run` of `model` on a mesh of `degrees` whose stages hold the blocks of `layout`.
    ///
    /// # Errors
    /// When the degrees do not fit the model or the run.
    pub fn with_layout(
        degrees: Degrees,
        layout: Layout,
        model: &ModelSpec,
        run: &RunSpec,
    ) -> Result<Self, PlanError> {
        resolve::check_run(run, model, degrees)?;
        let stages = degrees.pipefusion_degree as usize;
        let layout = Layout::from_ends(&layout.ends(), model.blocks, stages)?;
        let grid = resolve::latent_grid(model, run.height, run.width);
        let asked = run.num_pipeline_patch as usize;
        let strips = strips(grid.token_rows(), asked);
        let mut warnings = Vec::new();
        if strips.len() < asked {
            warnings.push(format!(
                "{} token rows make {} patches of {} rows, not {asked}",
                grid.token_rows(),
                strips.len(),
                strips.first().map_or(0, |strip| strip.len),
            ));
        }
        let mesh = DeviceMesh::new(degrees);
        Ok(Self { mesh, model: model.clone(), run: run.clone(), grid, strips, layout, warnings })
    }

    /// Equal on all ranks that planned the same run.
    pub fn digest(&self) -> u64 {
        let (mesh, model, run) = (&self.mesh, &self.model, &self.run);
        fnv(&format!("{mesh:?}{model:?}{run:?}{:?}{:?}", self.strips, self.layout))
    }

    /// The controller's member number, one past the last rank.
    pub fn controller(&self) -> usize {
        self.mesh.world_size()
    }

    /// Number of denoising steps.
    pub fn steps(&self) -> usize {
        self.run.num_inference_steps as usize
    }

    /// Whether patches of `step` run one by one against keys and values of the step before.
    pub fn is_async(&self, step: usize) -> bool {
        self.strips.len() > 1 && !sync::is_sync(&self.run, step)
    }

    /// Whether any step is asynchronous, so that keys and values must be kept.
    pub fn needs_cache(&self) -> bool {
        (self.first_step()..self.steps()).any(|step| self.is_async(step))
    }

    /// Guidance branches in all.
    pub fn branches(&self) -> usize {
        if self.run.is_guided() { 2 } else { 1 }
    }

    /// Pictures of the run.
    pub fn images(&self) -> usize {
        self.run.images.len()
    }

    /// Batch rows one rank computes: both branches, or its own under CFG parallelism, of every
    /// picture; the unconditional ones come first.
    pub fn batch(&self) -> usize {
        self.branches() / self.mesh.branches() * self.images()
    }

    /// Text tokens per prompt.
    pub fn text_tokens(&self) -> usize {
        self.run.embeds_tokens.map_or(self.model.text_tokens, |tokens| tokens as usize)
    }

    /// Blocks held by the ranks of a stage.
    pub fn blocks(&self, stage: usize) -> Range<usize> {
        self.layout.blocks(stage)
    }

    /// Token rows that sequence rank `sp` owns of `patch`.
    pub fn rows(&self, sp: usize, patch: Patch) -> RowSet {
        let strips = match patch {
            Patch::All => self.strips.as_slice(),
            Patch::Strip(index) => self.strips.get(index..=index).unwrap_or_default(),
        };
        RowSet::of_rank(strips, sp, self.mesh.sequence())
    }

    /// Heads that the rank at `at` attends with.
    pub fn heads(&self, at: Coordinates) -> usize {
        let ulysses = self.mesh.degrees().ulysses_degree as usize;
        share(self.model.heads, at.sp % ulysses, ulysses).len()
    }

    /// The shape of a forward pass of the rank at `at` through `blocks`.
    pub fn forward_shape(
        &self,
        at: Coordinates,
        patch: Patch,
        blocks: Range<usize>,
    ) -> ForwardShape {
        ForwardShape {
            batch: self.batch(),
            blocks,
            rows: (0..self.mesh.sequence()).map(|sp| self.rows(sp, patch)).collect(),
            ulysses: self.mesh.degrees().ulysses_degree as usize,
            member: at.sp,
            tokens_per_row: self.grid.tokens_per_row(),
            cached_tokens: self.needs_cache().then(|| self.grid.tokens()),
        }
    }

    /// Shape of the latent rows of a rank, `[batch, C, F, rows*patch_size, W]`.
    pub fn latent_shape(&self, batch: usize, rows: usize) -> Vec<usize> {
        let grid = &self.grid;
        vec![batch, grid.channels, grid.frames, rows * grid.patch_size, grid.width]
    }

    /// Whether the rank at `at` decodes and talks to the controller.
    pub fn is_output(&self, at: Coordinates) -> bool {
        at.sp == 0 && at.cfg == 0 && at.stage + 1 == self.mesh.stages()
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

    /// A run that uses every edge a run on a mesh of `degrees` can use.
    ///
    /// # Errors
    /// When the degrees do not fit the model.
    pub fn widest(degrees: Degrees, model: &ModelSpec) -> Result<Self, PlanError> {
        // Enough rows: every rank owns some of every patch, so every edge is used. A ring that
        // keeps keys and values talks to all its ranks, one that does not only to its neighbours.
        let multiple = (model.vae_scale_factor * model.patch_size) as u32;
        let edge = (model.sample_size * model.vae_scale_factor) as u32;
        let patches = if degrees.ring_degree > 1 { 2 } else { 1 };
        let rows = patches * degrees.sequence_degree() as u32;
        let decoders = degrees.world_size().min(vae::DECODE_RANKS_MAX);
        let decoders = (decoders * model.vae_scale_factor) as u32;
        let request = GenerateRequest {
            guidance_scale: 2.0,
            num_inference_steps: 3,
            height: Some(
                edge.max(rows.saturating_mul(multiple)).max(decoders.next_multiple_of(multiple)),
            ),
            num_pipeline_patch: Some(patches),
            step_cache: (model.blocks > 1).then(StepCache::default),
            vae_parallel: Some(true),
            ..GenerateRequest::default()
        };
        let run = resolve::resolve(&request, model, degrees)?;
        Self::new(degrees, model, &RunSpec { latents_given: true, ..run })
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

//! Seconds that a mesh cannot beat, from formulas alone.
//!
//! Counts the work of a step on the fastest device there is, dealt out without loss, the messages
//! and bytes that each rank must send at the best rate there is, and the stages that a synchronous
//! step passes one after the other. Nothing waits and nothing is in the way of anything else, so a
//! simulation is never faster. Source of the byte counts: the methods' papers (see
//! [`crate::plan::bytes`]).

use ditmesh_model::spec::TextStream;
use ditmesh_model::spec::description::Description;

use super::{Candidate, Wish};
use crate::cost::cluster::Cluster;
use crate::request::wire::Axis;

/// Work of one step over one guidance branch, in FLOP.
pub(super) struct Work {
    tokens: f64,
    text: f64,
    hidden: f64,
    blocks: Vec<f64>,
    embed: f64,
    project: f64,
}

impl Work {
    /// The work of `wish` on `model`.
    pub(super) fn of(model: &Description, wish: &Wish) -> Self {
        let spec = &model.spec;
        let edge = (spec.vae_scale_factor * spec.patch_size) as f64;
        let frames = model.work.frames as f64;
        let tokens = f64::from(wish.height) / edge * (f64::from(wish.width) / edge) * frames;
        let joint = spec.text_stream == TextStream::Joint;
        let text = if joint { spec.text_tokens as f64 } else { 0.0 };
        let hidden = spec.hidden() as f64;
        let of_block = |block: &ditmesh_model::spec::work::BlockWork| {
            let linear = tokens * (block.qkv + block.out) as f64
                + text * (block.text_qkv + block.text_out) as f64;
            let cross = if block.cross_attention { spec.text_tokens as f64 } else { 0.0 };
            let attention = (tokens + text) * (tokens + text) + tokens * cross;
            2.0 * linear + 4.0 * attention * hidden
        };
        Self {
            tokens,
            text,
            hidden,
            blocks: model.work.blocks.iter().map(of_block).collect(),
            embed: 2.0 * tokens * model.work.embed as f64,
            project: 2.0 * tokens * model.work.project as f64,
        }
    }

    /// FLOP of a block.
    pub(super) fn block(&self, block: usize) -> f64 {
        self.blocks.get(block).copied().unwrap_or(0.0)
    }

    /// FLOP of the first stage beside its blocks.
    pub(super) fn first(&self) -> f64 {
        self.embed
    }

    /// FLOP of the last stage beside its blocks.
    pub(super) fn last(&self) -> f64 {
        self.project
    }

    fn total(&self) -> f64 {
        self.blocks.iter().sum::<f64>() + self.embed + self.project
    }
}

/// Bounds of all meshes of one wish.
pub(super) struct Bound {
    work: Work,
    branches: f64,
    steps: f64,
    sync_steps: f64,
    blocks: f64,
    ulysses_bytes: f64,
    ring_bytes: f64,
    hop_bytes: f64,
    flops_per_s: f64,
    phase_s: f64,
    per_node: f64,
    near: (f64, f64),
    far: (f64, f64),
}

impl Bound {
    pub(super) fn new(model: &Description, cluster: &Cluster, wish: &Wish) -> Self {
        let profiles = || cluster.devices.iter().map(|device| &device.profile);
        let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        let least = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::INFINITY, f64::min);
        let gemm = most(&mut profiles().map(|p| p.gemm_flops_per_s.of(wish.dtype)));
        let attention = most(&mut profiles().map(|p| p.attention_flops_per_s.of(wish.dtype)));
        let pairs = || cluster.links.pairs.iter().map(|pair| pair.link);
        let best = |class: crate::cost::link::LinkProfile| {
            let all = || pairs().chain([class]);
            let rate = most(&mut all().map(|link| link.bytes_per_s));
            (rate, least(&mut all().map(|link| link.message_s)))
        };
        let per_element =
            |axis, row: usize| wish.wire.dtype(axis).payload().row_bytes(row) as f64 / row as f64;
        Self {
            work: Work::of(model, wish),
            branches: if wish.guided { 2.0 } else { 1.0 },
            steps: f64::from(wish.num_inference_steps),
            sync_steps: f64::from(wish.sync_steps.min(wish.num_inference_steps)),
            blocks: model.spec.blocks as f64,
            ulysses_bytes: per_element(Axis::Ulysses, model.spec.head_dim),
            ring_bytes: per_element(Axis::Ring, model.spec.head_dim),
            hop_bytes: per_element(Axis::Pipefusion, model.spec.hidden()),
            flops_per_s: gemm.max(attention),
            phase_s: least(&mut profiles().map(|p| p.phase_s)),
            per_node: cluster.devices_per_node() as f64,
            near: best(cluster.links.same_node),
            far: best(cluster.links.other_node),
        }
    }

    /// Seconds of all steps that `candidate` cannot beat.
    pub(super) fn seconds(&self, candidate: &Candidate) -> f64 {
        let degrees = candidate.degrees;
        let (stages, patches) =
            (f64::from(degrees.pipefusion_degree), f64::from(candidate.num_pipeline_patch));
        let batch = self.branches / f64::from(degrees.cfg_degree);
        let sequence = degrees.sequence_degree() as f64;
        let compute = batch * self.work.total() / sequence / self.flops_per_s;
        let layer = self.layer(candidate, batch);
        let sync = compute + self.blocks * (3.0 * self.phase_s + layer.messages);
        let sync = sync.max(self.blocks * layer.bytes);
        if patches <= 1.0 {
            return self.steps * sync;
        }
        // In the steady state a stage does its share of every patch of a step.
        let per_patch = self.blocks / stages * (3.0 * self.phase_s + layer.messages);
        let own = compute / stages + patches * per_patch;
        let wire = self.blocks / stages * layer.bytes;
        let hop = batch * self.map() * self.hop_bytes / sequence / self.near.0.max(self.far.0);
        let step = own.max(wire).max(if stages > 1.0 { hop } else { 0.0 });
        self.sync_steps * sync + (self.steps - self.sync_steps) * step
    }

    /// Elements of one activation map, text included.
    fn map(&self) -> f64 {
        (self.work.tokens + self.work.text) * self.work.hidden
    }

    /// What the exchanges of one block cost a rank: the sender's time, and that of the busiest
    /// port.
    fn layer(&self, candidate: &Candidate, batch: f64) -> Layer {
        let ulysses = f64::from(candidate.degrees.ulysses_degree);
        let ring = f64::from(candidate.degrees.ring_degree);
        let sequence = ulysses * ring;
        let map = batch * self.map();
        let all_to_all = 4.0 * map * self.ulysses_bytes / (sequence * ulysses);
        let around = 2.0 * map * self.ring_bytes / sequence;
        let message = self.near.1.min(self.far.1);
        let messages = message * (2.0 * (ulysses - 1.0) + (ring - 1.0));
        let sent = all_to_all * (ulysses - 1.0) + around * (ring - 1.0);
        let inside = sent / self.near.0.max(self.far.0);
        // A group larger than a node sends across, whatever the order.
        let across = (ulysses - self.per_node).max(0.0) * all_to_all * self.per_node.min(ulysses);
        let passed = if sequence > self.per_node { around * (ring - 1.0) } else { 0.0 };
        let outside = (across + passed) / self.near.0.max(self.far.0).min(self.far.0);
        Layer { messages, bytes: inside.max(outside) }
    }
}

struct Layer {
    messages: f64,
    bytes: f64,
}

//! One request for pictures, and what comes back: plain values shared by engine, client and wire.
//!
//! Owns the names a user of diffusers or xDiT knows. Does not own how a request is planned or run.
#![expect(missing_docs, reason = "rkyv's derive makes undocumented resolvers of enums")]

mod degrees;
mod images;
mod op_time;
mod resumption;
mod step_cache;
mod timeline;
pub mod wire;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use degrees::Degrees;
pub use images::IMAGES_PER_PROMPT_MAX;
pub use op_time::{OpTime, RunTime};
pub use resumption::Resumption;
pub use step_cache::{STEP_CACHE_REUSES_MAX, STEP_CACHE_THRESHOLD, StepCache, StepDecision};
pub use timeline::{CHUNK_SPANS_MAX, NOWHERE, SpanKind, TimelineChunk, TimelineSpan};
pub use wire::{Axis, AxisTraffic, WIRE_REFRESH_EVERY, Wire, WireDtype, WireDtypeError};

/// Precision in which weights are held and activations travel.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit float.
    #[default]
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

/// When the weights of the text encoder are in the memory of the rank that encodes.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum TextEncoderPolicy {
    /// Only while a prompt is encoded: a T5-XXL is several times the transformer it feeds, and idle
    /// while that denoises.
    #[default]
    Release,
    /// Always: the next prompt does not wait for the weights.
    Resident,
}

/// What the caller wants back.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub enum OutputKind {
    /// Decoded 8-bit RGB.
    #[default]
    Image,
    /// The final latents, not decoded (`output_type="latent"`).
    Latent,
}

/// A small f32 tensor that travels with a request or a result.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct FloatTensor {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub data: Vec<f32>,
}

/// Prompt embeddings in place of a prompt, as diffusers takes them.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct PromptEmbeds {
    /// `[1, L, caption_channels]`.
    pub prompt_embeds: FloatTensor,
    /// `[1, L]`, 1 for a token and 0 for padding.
    pub prompt_attention_mask: FloatTensor,
    /// `[1, L, caption_channels]`; required when guidance is on.
    pub negative_prompt_embeds: Option<FloatTensor>,
    /// `[1, L]`.
    pub negative_prompt_attention_mask: Option<FloatTensor>,
}

/// A request for pictures. One that asks for several is dealt into one per picture before it is
/// queued: [`GenerateRequest::images`].
#[derive(
    Clone,
    Debug,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct GenerateRequest {
    /// What to draw.
    pub prompt: String,
    /// What to stay away from.
    pub negative_prompt: String,
    /// Pixels; `None` is the model's own size.
    pub height: Option<u32>,
    /// Pixels; `None` is the model's own size.
    pub width: Option<u32>,
    /// Denoising steps.
    pub num_inference_steps: u32,
    /// Guidance is on above 1.
    pub guidance_scale: f32,
    /// Seed of the initial noise; picture `i` of several has `seed + i`, wherever it runs.
    pub seed: u64,
    /// Pictures.
    pub num_images_per_prompt: u32,
    /// Degrees asked for; `None` takes those of the mesh.
    pub degrees: Option<Degrees>,
    /// PipeFusion patches; `None` is `pipefusion_degree`.
    pub num_pipeline_patch: Option<u32>,
    /// Synchronous steps before PipeFusion's asynchronous ones (xDiT: `warmup_steps`).
    pub sync_steps: u32,
    /// Every how many steps after those one is synchronous again; 0 is never.
    pub sync_every: u32,
    /// Skips blocks where little changes from step to step; `None` computes all.
    pub step_cache: Option<StepCache>,
    /// What travels in fewer bytes; `None` takes the group's setting, which is nothing unless the
    /// manifest says otherwise.
    pub wire: Option<Wire>,
    /// Steps between checkpoints, from which the request goes on when a device is lost; 0 keeps
    /// none, so that it begins again. `None` takes the group's setting.
    pub checkpoint_every: Option<u32>,
    /// Seconds that it may wait in the queue, before it runs or after a loss; then it ends with
    /// what it waited for. It waits that long for a mesh too, also for one that the devices of the
    /// moment cannot hold. `None` waits for its turn as long as that takes, and for a mesh as long
    /// as the cluster's deadlines for forming say.
    pub deadline_s: Option<u32>,
    /// What to return.
    pub output: OutputKind,
    /// Whether all ranks decode, each a band of rows (xDiT: `use_parallel_vae`); `None` does so
    /// where it is faster.
    pub vae_parallel: Option<bool>,
    /// Initial latents `[1, C, H, W]` (or `[1, C, F, H, W]`) in place of seeded noise. With `n`
    /// pictures the first dimension may be `n`: one for each.
    pub latents: Option<FloatTensor>,
    /// Embeddings in place of the prompt.
    pub prompt_embeds: Option<PromptEmbeds>,
    /// W3C trace context of the span this request belongs to; the caller's current span when none
    /// is given and something records it.
    pub traceparent: Option<String>,
    /// Whether every rank's timeline is returned, as [`Event::Timeline`]s before the result.
    pub timeline: bool,
}

impl Default for GenerateRequest {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative_prompt: String::new(),
            height: None,
            width: None,
            num_inference_steps: 20,
            guidance_scale: 4.5,
            seed: 0,
            num_images_per_prompt: 1,
            degrees: None,
            num_pipeline_patch: None,
            sync_steps: 1,
            sync_every: 0,
            step_cache: None,
            wire: None,
            checkpoint_every: None,
            deadline_s: None,
            output: OutputKind::Image,
            vae_parallel: None,
            latents: None,
            prompt_embeds: None,
            traceparent: None,
            timeline: false,
        }
    }
}

impl GenerateRequest {
    /// A request for `prompt` with the defaults of the command line.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), ..Self::default() }
    }

    /// Whether classifier-free guidance is on (diffusers: `guidance_scale > 1`).
    pub fn is_guided(&self) -> bool {
        self.guidance_scale > 1.0
    }
}

/// What happened to a request so far. Events of one request come in this order.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub enum Event {
    /// Waiting behind `ahead` requests.
    Queued {
        /// Requests that run first.
        ahead: u32,
    },
    /// Something the user should know; the request goes on.
    Warning(String),
    /// A device it ran on was lost; it goes on from its last checkpoint. Steps done again are told
    /// again.
    Resumed(Resumption),
    /// The prompt is encoded, denoising starts.
    Encoded,
    /// Denoising step `step` (1-based) of `of` is done.
    Step {
        /// Steps done.
        step: u32,
        /// Steps in all.
        of: u32,
    },
    /// The picture is decoded.
    Decoded,
    /// A part of one rank's timeline, when it was asked for.
    Timeline(TimelineChunk),
}

/// A finished request.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The picture or the latents.
    pub output: Output,
    /// What each rank did.
    pub report: Report,
}

/// The product of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// 8-bit RGB, rows top to bottom.
    Image(RgbImage),
    /// f32 latents `[1, C, H, W]` (5 dimensions for video).
    Latents(FloatTensor),
}

/// An 8-bit RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// `height * width * 3` bytes, row-major.
    pub data: Vec<u8>,
}

/// What a run did, for `--report` and for whoever tunes.
#[derive(
    Clone,
    Debug,
    Default,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct Report {
    /// Epoch of the mesh that ran it.
    pub epoch: u64,
    /// Degrees of the whole mesh.
    pub degrees: Degrees,
    /// Which of its data replicas ran it.
    pub data: u32,
    /// Pictures that were computed as one batch, this one included.
    pub batch: u32,
    /// PipeFusion patches actually used (can be fewer than asked for).
    pub num_pipeline_patch: u32,
    /// Synchronous steps.
    pub sync_steps: u32,
    /// Every how many steps after those one was synchronous; 0 for none.
    pub sync_every: u32,
    /// What travelled in fewer bytes.
    pub wire: Wire,
    /// Payload bytes between ranks, axis by axis, and how many more f32 would have been.
    pub traffic: Vec<AxisTraffic>,
    /// Whether the picture was decoded in bands of rows, one on each rank.
    pub vae_parallel: bool,
    /// Seconds from the start of the (first) run to its result.
    pub seconds: f64,
    /// What was lost on the way; everything else here is of the last mesh.
    pub resumptions: Vec<Resumption>,
    /// Warnings, in order.
    pub warnings: Vec<String>,
    /// How stale keys and values were: `||kv_t - kv_(t-1)|| / ||kv_(t-1)||` of step `t` at index
    /// `t`, mean over all blocks. Without a value where nothing was overwritten (step 0), empty
    /// without patches.
    pub kv_change: Vec<Option<f64>>,
    /// One entry per rank, in rank order.
    pub ranks: Vec<RankReport>,
}

/// What one rank did in a run.
#[derive(
    Clone,
    Debug,
    Default,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct RankReport {
    /// Rank in its data replica.
    pub rank: u32,
    /// Node and device it ran on, as `node/device`.
    pub device: String,
    /// First block held and one past the last.
    pub blocks: (u32, u32),
    /// Bytes of weights this rank read from the checkpoint (when the mesh was formed).
    pub weight_bytes_read: u64,
    /// Bytes of the patch KV cache at the end of the run.
    pub kv_cache_bytes: u64,
    /// Units (forward passes) of other runs that this rank carried out while this run was under
    /// way.
    pub foreign_units: u64,
    /// Payload bytes sent to other ranks.
    pub bytes_sent: u64,
    /// Frames sent to other ranks.
    pub frames_sent: u64,
    /// `bytes_sent` axis by axis, and how many more f32 would have been.
    pub traffic: Vec<AxisTraffic>,
    /// Relative change of keys and values per step, mean over this rank's blocks, for the heads it
    /// attends with; see [`Report::kv_change`].
    pub kv_change: Vec<Option<f64>>,
    /// What the step cache decided, on the rank that decides.
    pub decisions: Vec<StepDecision>,
    /// Most bytes that the process of this rank has had resident so far, loading included (of all
    /// ranks when they share a process); 0 where the system does not tell.
    pub peak_memory_bytes: u64,
    /// Seconds computing: the sum over the operations of `time`.
    pub compute_seconds: f64,
    /// Seconds waiting for frames: likewise.
    pub wait_seconds: f64,
    /// Where the time went.
    pub time: RunTime,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ModelSource {
    /// The model that ships with the project.
    Builtin,
    /// A diffusers folder.
    Folder(PathBuf),
}

//! The typed control protocol between coordinator, agents, workers and clients: every message that
//! crosses a control channel, and nothing else.
//!
//! Owns the wire types (rkyv) and the handshake's version rule. Does not own channels, timers or
//! any reaction to a message. Tensors never travel here; they go rank to rank over the data plane.
//!
//! Invariant: adding or changing a message changes [`SCHEMA`], so two builds that disagree refuse
//! each other in the handshake instead of misreading one another.
#![expect(missing_docs, reason = "rkyv's derive makes undocumented resolvers of enums")]

mod client;
pub mod copies;
pub mod examine;
pub(crate) mod join;
mod links;
mod speed;

pub use client::{ClientCall, ClientReply, FailureKind, RequestKey, RequestTensors};
use copies::{CopyPart, HeldCopy};
use examine::{Examination, Examine};
pub use links::{LinkCarrier, LinkMeasured};
use rkyv::rancor;
pub use speed::DeviceSpeed;

use crate::request::{Degrees, Dtype, Event, RankReport, StepCache, TextEncoderPolicy, Wire};

/// Oldest protocol version this build speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// Newest protocol version this build speaks.
pub const PROTOCOL_MAX: u32 = 1;
/// Digest of the message definitions.
pub const SCHEMA: u64 = ditmesh_transport::frame::schema_hash(&[
    include_str!("protocol.rs"),
    include_str!("protocol/client.rs"),
    include_str!("protocol/copies.rs"),
    include_str!("protocol/examine.rs"),
    include_str!("protocol/join.rs"),
    include_str!("protocol/links.rs"),
    include_str!("protocol/speed.rs"),
    include_str!("cost/device.rs"),
    include_str!("request.rs"),
    include_str!("request/op_time.rs"),
    include_str!("request/resumption.rs"),
    include_str!("request/step_cache.rs"),
    include_str!("request/timeline.rs"),
    include_str!("request/wire.rs"),
    include_str!("status.rs"),
]);

/// Who is on the other end of a control channel.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Party {
    /// The agent of a host.
    Agent {
        /// Name in the manifest.
        node: String,
    },
    /// The worker of one device.
    Worker {
        /// Which device.
        device: DeviceId,
    },
    /// A command line or a program.
    Client,
}

/// One device of the cluster.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct DeviceId {
    /// Node name in the manifest.
    pub node: String,
    /// Position among the node's devices.
    pub index: u32,
}

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.node, self.index)
    }
}

/// First message on every channel, sent by the side that dialled.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Hello {
    /// Oldest version spoken.
    pub protocol_min: u32,
    /// Newest version spoken.
    pub protocol_max: u32,
    /// [`SCHEMA`] of the sender.
    pub schema: u64,
    /// Crate version, for messages to people.
    pub build: String,
    /// Cluster name; must be the coordinator's.
    pub cluster: String,
    /// Who dials.
    pub party: Party,
    /// Incarnation of the dialling process; a restarted one has a higher one.
    pub incarnation: u64,
    /// Process id, for people and for tests that kill.
    pub process: u32,
    /// Where this worker's data plane listens (`FabricAddress` as text); empty for others.
    pub fabric_address: String,
    /// Newest epoch this worker has been ordered into, 0 for none; the next one is above it.
    pub epoch: u64,
}

/// To the coordinator.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ToCoordinator {
    /// Introduces the dialling side.
    Hello(Box<Hello>),
    /// Still here. Travels as the channel's own heartbeat, ahead of every other message.
    Heartbeat {
        /// Counts up per channel.
        sequence: u64,
    },
    /// An agent saw its worker process end.
    WorkerExited {
        /// Which device.
        device: DeviceId,
        /// Incarnation of the process that ended.
        incarnation: u64,
        /// `exit status: 1`, `signal: 9 (SIGKILL)`.
        status: String,
    },
    /// What an agent knows of its devices' speeds, at the beginning of a session and when it has
    /// measured.
    Speeds(Vec<DeviceSpeed>),
    /// An agent's node is to leave the cluster.
    Leave {
        /// Milliseconds in which what runs there may end.
        drain_ms: u32,
    },
    /// A worker loaded its partition and its links are up.
    Formed {
        /// Epoch of the mesh.
        epoch: u64,
        /// First block held and one past the last.
        blocks: (u32, u32),
        /// Bytes of weights read from the checkpoint.
        weight_bytes_read: u64,
        /// What carries the frames of its links.
        carriers: Vec<LinkCarrier>,
    },
    /// A worker could not form.
    FormFailed {
        /// Epoch of the mesh.
        epoch: u64,
        /// At what.
        fault: FormFault,
        /// Why, for people.
        cause: String,
    },
    /// A rank can take a proposed run in, and stops before its `after`-th unit until it is told
    /// where the run comes in.
    Proposed {
        /// The run.
        run: u64,
        /// Units of the mesh's runs before it, counted from the forming of the mesh.
        after: u64,
    },
    /// How fast large frames came lately, at the end of a run, by the member that sent them.
    LinksObserved {
        /// Epoch of the mesh.
        epoch: u64,
        /// Member and bytes per second.
        links: Vec<(u32, u64)>,
    },
    /// What came of [`FromCoordinator::Measure`], from the rank named first.
    LinkMeasuredAgain {
        /// Of the order.
        number: u64,
        /// None where it could not be measured.
        figures: Option<LinkMeasured>,
    },
    /// Callers that a worker has turned away in all of its life, when there are more than before.
    CallersRefused(u64),
    /// Progress of a run, from the rank that knows.
    Progress {
        /// The run.
        run: u64,
        /// What happened.
        event: Event,
    },
    /// A rank is done with a run: its program ended or was given up.
    RunEnded {
        /// The run.
        run: u64,
        /// The rank.
        rank: u32,
        /// What it did, or why it failed.
        outcome: RankOutcome,
    },
    /// What an agent still holds of checkpoints, at the beginning of a session.
    CopiesHeld(Vec<HeldCopy>),
    /// Of the copy of `key`'s checkpoint after `step` an agent has so many bytes.
    CopyTaken {
        /// Whose.
        key: RequestKey,
        /// After which step.
        step: u32,
        /// Bytes from its beginning.
        bytes: u64,
    },
    /// The part that [`FromCoordinator::SendCopy`] asked for; empty when the copy is not there.
    CopyPart(Box<CopyPart>),
    /// What [`FromCoordinator::Examine`] asked an agent for.
    Examined(Box<Examination>),
    /// A client's request.
    Client {
        /// Chosen by the client; replies carry it.
        id: u64,
        /// What it asks.
        call: Box<ClientCall>,
    },
}

/// What a worker failed at when a mesh was formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum FormFault {
    /// Its partition or the order itself: the same again would fail again.
    Loading,
    /// Its links: a peer may have gone, which others find out later.
    Links {
        /// The member that did not answer, where it was that.
        unanswered: Option<u32>,
    },
}

/// How a rank ended a run.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum RankOutcome {
    /// The whole program ran.
    Done(Box<RankReport>),
    /// It was aborted from outside (cancelled, or another rank failed).
    Aborted,
    /// This rank failed.
    Failed {
        /// Why, for people.
        cause: String,
        /// Peer rank that was lost or waited for, when that is the cause.
        peer: Option<u32>,
    },
}

/// From the coordinator to agents and workers.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum FromCoordinator {
    /// The handshake is accepted.
    Welcome {
        /// Version to speak.
        protocol: u32,
        /// Milliseconds between heartbeats.
        heartbeat_ms: u32,
        /// Milliseconds of silence after which the dialling side takes the coordinator for dead.
        dead_ms: u32,
    },
    /// To an agent: end this life of a worker by force and start another; nobody hears it any more.
    Recycle {
        /// Whose worker.
        device: DeviceId,
        /// Which life.
        incarnation: u64,
    },
    /// To an agent: hold this part of a copy; once whole, it replaces the one of an earlier step.
    HoldCopy(Box<CopyPart>),
    /// To an agent: send the part of a copy that begins here.
    SendCopy {
        /// Whose.
        key: RequestKey,
        /// After which step.
        step: u32,
        /// Bytes before the part.
        offset: u64,
    },
    /// To an agent: the request has ended, and nobody needs its copy.
    DropCopy {
        /// Which.
        key: RequestKey,
    },
    /// To an agent: look at the host and at ports of others, beside its work.
    Examine(Box<Examine>),
    /// The handshake is refused; the channel closes.
    Refused {
        /// Why and what to do.
        cause: String,
    },
    /// Still here. Travels as the channel's own heartbeat, ahead of every other message.
    Heartbeat {
        /// Counts up per channel.
        sequence: u64,
    },
    /// Join a mesh: load the partition and bring up the links.
    Form(Box<Form>),
    /// Run a request on the formed mesh.
    Start(Box<Start>),
    /// Take a proposed run in.
    Enter {
        /// The run.
        run: u64,
        /// After how many units; no rank has begun more.
        after: u64,
    },
    /// Stop a run.
    Abort {
        /// The run.
        run: u64,
        /// Why, for people.
        cause: String,
    },
    /// Measure the link between two ranks of a mesh that is formed.
    Measure {
        /// Epoch of the mesh.
        epoch: u64,
        /// Of the order; comes back with the figures.
        number: u64,
        /// The rank that leads and the other; each gets this order.
        pair: (u32, u32),
    },
    /// Forget a mesh: close its links. Weights stay loaded.
    Dissolve {
        /// Epoch of the mesh.
        epoch: u64,
        /// Why, for people.
        cause: String,
    },
    /// End the process.
    Shutdown,
    /// Answer to a client.
    Reply {
        /// The client's id.
        id: u64,
        /// The answer; `Event`s come any number of times before the final one.
        reply: ClientReply,
    },
}

/// One member of a mesh.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Member {
    /// Rank; the controller has the rank one past the last.
    pub rank: u32,
    /// Node it runs on; its certificate must carry this name.
    pub node: String,
    /// Where its data plane listens (`FabricAddress` as text).
    pub fabric_address: String,
}

/// Orders a worker into a mesh.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Form {
    /// Epoch of the new mesh.
    pub epoch: u64,
    /// Rank of the receiver.
    pub rank: u32,
    /// Degrees; their product is the number of ranks.
    pub degrees: Degrees,
    /// One past the last block of each pipeline stage.
    pub stage_ends: Vec<u32>,
    /// Folder of the checkpoint, as this node sees it.
    pub model: String,
    /// Digest of the checkpoint the coordinator planned with.
    pub model_id: u64,
    /// Precision.
    pub dtype: Dtype,
    /// When the text encoder's weights are in memory.
    pub text_encoder: TextEncoderPolicy,
    /// All ranks in order, then the controller.
    pub members: Vec<Member>,
    /// Milliseconds in which to be formed.
    pub deadline_ms: u32,
    /// Whether the mesh that the receiver is in goes on meanwhile, until it is dissolved.
    pub beside: bool,
    /// Pairs of ranks that measure the link between them, one after the other.
    pub measure: Vec<(u32, u32)>,
}

/// Orders a rank to run a request.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Start {
    /// Epoch of the mesh it is planned for.
    pub epoch: u64,
    /// The run.
    pub run: u64,
    /// What to run, with every default filled in.
    pub spec: RunSpec,
    /// Whether other runs are under way: the rank then answers [`ToCoordinator::Proposed`] and
    /// waits for [`FromCoordinator::Enter`].
    pub propose: bool,
    /// Digest of the plan; the receiver plans again and compares.
    pub plan_digest: u64,
    /// Milliseconds any single wait of the run may take.
    pub op_deadline_ms: u32,
    /// W3C trace context of the coordinator's span of the run.
    pub traceparent: Option<String>,
}

/// What is particular to one picture of a run.
#[derive(Clone, Debug, Default, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ImageSpec {
    /// What to draw; not used when the run is given embeddings.
    pub prompt: String,
    /// What to stay away from.
    pub negative_prompt: String,
    /// Seed of the initial noise.
    pub seed: u64,
}

/// A request with every default filled in; all ranks plan from this alone.
#[derive(Clone, Debug, Default, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct RunSpec {
    /// The pictures, at least one; their latents are the rows of one batch.
    pub images: Vec<ImageSpec>,
    /// Pixels.
    pub height: u32,
    /// Pixels.
    pub width: u32,
    /// Denoising steps.
    pub num_inference_steps: u32,
    /// Guidance scale; guidance is on above 1.
    pub guidance_scale: f32,
    /// PipeFusion patches asked for.
    pub num_pipeline_patch: u32,
    /// Synchronous steps.
    pub sync_steps: u32,
    /// Every how many steps after those one is synchronous again; 0 is never.
    pub sync_every: u32,
    /// Whether and when blocks are skipped.
    pub step_cache: Option<StepCache>,
    /// What travels in fewer bytes.
    pub wire: Wire,
    /// Steps between checkpoints; 0 keeps none.
    pub checkpoint_every: u32,
    /// The first step to do; those before it are in the checkpoint that the controller sends, when
    /// there are any. All steps may be.
    pub first_step: u32,
    /// Whether latents are returned instead of a picture.
    pub latent_output: bool,
    /// Whether the ranks of a replica decode bands of the picture, each its own.
    pub vae_parallel: bool,
    /// Whether the controller sends initial latents.
    pub latents_given: bool,
    /// Text tokens per prompt of the embeddings the controller sends, when it does.
    pub embeds_tokens: Option<u32>,
    /// Whether every rank returns its timeline.
    pub timeline: bool,
}

impl RunSpec {
    /// Whether classifier-free guidance is on.
    pub fn is_guided(&self) -> bool {
        self.guidance_scale > 1.0
    }
}

/// Why a control message could not be read.
#[derive(Debug, thiserror::Error)]
#[error("malformed control message of {bytes} bytes: {cause}")]
pub struct MalformedMessage {
    /// Length of the message.
    pub bytes: usize,
    /// What was wrong.
    pub cause: String,
}

macro_rules! wire_message {
    ($type:ty) => {
        impl $type {
            /// The message as bytes for a control channel.
            ///
            /// # Errors
            /// Never for messages within the channel's size bound.
            pub fn to_bytes(&self) -> Result<Vec<u8>, MalformedMessage> {
                rkyv::to_bytes::<rancor::Error>(self)
                    .map(|bytes| bytes.to_vec())
                    .map_err(|error| MalformedMessage { bytes: 0, cause: error.to_string() })
            }

            /// Reads a message, checking every offset and tag.
            ///
            /// # Errors
            /// On bytes that are not such a message.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, MalformedMessage> {
                let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(bytes.len());
                aligned.extend_from_slice(bytes);
                rkyv::from_bytes::<Self, rancor::Error>(&aligned).map_err(|error| {
                    MalformedMessage { bytes: bytes.len(), cause: error.to_string() }
                })
            }
        }
    };
}

/// The body of the fuzz target `session` and of its test: no bytes may panic a reader, and what is
/// read can be written and read again.
pub fn decode_anything(bytes: &[u8]) {
    fn again<M>(
        bytes: &[u8],
        read: fn(&[u8]) -> Result<M, MalformedMessage>,
        write: fn(&M) -> Result<Vec<u8>, MalformedMessage>,
    ) {
        if let Ok(message) = read(bytes) {
            let written = write(&message);
            assert!(written.is_ok_and(|bytes| read(&bytes).is_ok()), "it cannot be read again");
        }
    }
    again(bytes, RequestTensors::from_bytes, RequestTensors::to_bytes);
    again(bytes, ToCoordinator::from_bytes, ToCoordinator::to_bytes);
    again(bytes, FromCoordinator::from_bytes, FromCoordinator::to_bytes);
}

wire_message!(RequestTensors);
wire_message!(ToCoordinator);
wire_message!(FromCoordinator);

#[cfg(test)]
mod tests;

//! What a client asks of the coordinator, and what it is told.

use super::examine::Examined;
use crate::request::{Event, FloatTensor, GenerateRequest, PromptEmbeds, Report};
use crate::status::ClusterStatus;

/// Names a request of a client, whatever session and coordinator it goes through.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct RequestKey {
    /// Drawn by each client.
    pub client: u64,
    /// Counted by it.
    pub number: u64,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ClientCall {
    /// Draw a picture. Latents and embeddings of the request follow as a blob when
    /// `inputs_follow`; they are then absent from `request`.
    Generate {
        /// Names it for good: asked again with the same key, also of a coordinator that was
        /// restarted, it is the same request.
        key: RequestKey,
        /// The request.
        request: Box<GenerateRequest>,
        /// Whether a blob with the tensors follows.
        inputs_follow: bool,
    },
    /// Give up the request with this id.
    Cancel {
        /// Id of the `Generate` call.
        request: u64,
    },
    /// Describe the cluster.
    Status,
    /// Have every node look at itself and at its ways to the others.
    Examine,
    /// Stop the cluster.
    Down,
    /// Take a node out.
    Leave {
        /// Its name.
        node: String,
        /// Milliseconds in which what runs there may end.
        drain_ms: u32,
    },
    /// Declare a node gone for good.
    ForceLeave {
        /// Its name.
        node: String,
    },
    /// Make a token with which a node can join.
    Token {
        /// The only name it is good for, if it is good for one only.
        node: Option<String>,
        /// Seconds for which it is good.
        ttl_s: u32,
    },
}

/// The tensors of a request: the blob behind a `Generate` call.
#[derive(Clone, Debug, Default, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct RequestTensors {
    /// Initial latents.
    pub latents: Option<FloatTensor>,
    /// Embeddings in place of the prompt.
    pub prompt_embeds: Option<PromptEmbeds>,
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ClientReply {
    /// Progress of a request.
    Event(Event),
    /// The request is done; the pixels or latents follow as a blob.
    Done {
        /// What the ranks did.
        report: Box<Report>,
        /// Shape of the blob: `[height, width, 3]` bytes, or latents as f32.
        shape: Vec<u32>,
        /// Whether the blob holds latents.
        latents: bool,
    },
    /// The request ended without a picture.
    Failed {
        /// In which way.
        kind: FailureKind,
        /// Why and what to do.
        cause: String,
    },
    /// The cluster as it is.
    Status(Box<ClusterStatus>),
    /// What the nodes found out.
    Examined(Box<Examined>),
    /// The cluster is going down.
    Down,
    /// An order is carried out.
    Accepted {
        /// What came of it: the token of a `Token`, in words otherwise.
        answer: String,
    },
}

/// How a request ended without a picture; see `GenerateError`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum FailureKind {
    /// The request itself was wrong.
    Refused,
    /// Its run failed.
    Failed,
    /// Somebody was lost.
    Lost,
    /// It waited too long.
    Expired,
    /// It could not be written down.
    NotAccepted,
    /// It was cancelled.
    Cancelled,
}

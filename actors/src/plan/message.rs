//! What one frame of a run carries: its name on the wire, its shape and its bytes.
//!
//! Owns the tags. Both ends of a link derive the same [`Message`] from the same plan, so a frame
//! that is not exactly this is an error on either side.

use ditmesh_model::exchange::{ExchangeId, ExchangeKind};
use ditmesh_model::vae::phase::{BandExchangeId, BandExchangeKind};
use ditmesh_transport::frame::{Dtype, Priority};
use ditmesh_transport::ids::Tag;

use super::program::Patch;
use crate::request::Wire;
use crate::request::wire::Axis;

/// Patch number of a message that covers all strips.
pub const PATCH_ALL: u16 = u16::MAX;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MessageKind {
    /// Text embeddings `[G, L, D]`.
    TextEmbeds,
    /// Text mask `[G, L]`.
    TextMask,
    /// Initial latents of the user, whole.
    InitialLatents,
    /// Hidden states from stage to stage.
    Activation,
    /// Predicted noise between the guidance branches.
    Prediction,
    /// Latent rows from the last stage to the first.
    Sample,
    /// Final latent rows to the rank that decodes.
    FinalRows,
    /// The picture or the final latents, to the controller.
    Result,
    /// Latent rows after a step and the solver's history of them, to the controller.
    Checkpoint,
    /// Latents and history of a checkpoint, whole, to go on from.
    Resume,
    /// Step cache: how much a rank's part of the first block's residual changed.
    ResidualChange,
    /// Step cache: what was decided, in the metadata.
    Decision,
    /// Ulysses: q, k and v.
    UlyssesQkv,
    /// Ulysses: attention output.
    UlyssesOut,
    /// Ring: keys and values on their way around.
    RingKv,
    /// Ring under PipeFusion: keys and values of the rows of one pass.
    RingFresh,
    /// Latent rows to a rank that decodes them.
    BandLatents,
    /// Parallel VAE: sums of a group norm, f64.
    BandMoments,
    /// Parallel VAE: edge rows of a layer.
    BandHalo,
    /// Parallel VAE: the rows before the attention layer.
    BandMap,
    /// Decoded rows, u8, to the output rank.
    PixelRows,
}

const KINDS: [MessageKind; 21] = [
    MessageKind::TextEmbeds,
    MessageKind::TextMask,
    MessageKind::InitialLatents,
    MessageKind::Activation,
    MessageKind::Prediction,
    MessageKind::Sample,
    MessageKind::FinalRows,
    MessageKind::Result,
    MessageKind::Checkpoint,
    MessageKind::ResidualChange,
    MessageKind::Decision,
    MessageKind::UlyssesQkv,
    MessageKind::UlyssesOut,
    MessageKind::RingKv,
    MessageKind::RingFresh,
    MessageKind::BandLatents,
    MessageKind::BandMoments,
    MessageKind::BandHalo,
    MessageKind::BandMap,
    MessageKind::PixelRows,
    MessageKind::Resume,
];

impl MessageKind {
    /// Its name in accounts of time and in traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::TextEmbeds => "text_embeds",
            Self::TextMask => "text_mask",
            Self::InitialLatents => "initial_latents",
            Self::Activation => "activation",
            Self::Prediction => "prediction",
            Self::Sample => "sample",
            Self::FinalRows => "final_rows",
            Self::Result => "result",
            Self::Checkpoint => "checkpoint",
            Self::Resume => "resume",
            Self::ResidualChange => "residual_change",
            Self::Decision => "decision",
            Self::UlyssesQkv => "ulysses_qkv",
            Self::UlyssesOut => "ulysses_out",
            Self::RingKv => "ring_kv",
            Self::RingFresh => "ring_fresh",
            Self::BandLatents => "band_latents",
            Self::BandMoments => "band_moments",
            Self::BandHalo => "band_halo",
            Self::BandMap => "band_map",
            Self::PixelRows => "pixel_rows",
        }
    }
}

impl MessageKind {
    /// What it overtakes on a link: what a peer's compute waits for next goes before what it needs
    /// inside a block, and that before what nobody computes with.
    pub fn priority(self) -> Priority {
        match self {
            Self::UlyssesQkv | Self::UlyssesOut | Self::RingKv | Self::RingFresh => {
                Priority::Exchange
            }
            Self::Result | Self::Checkpoint | Self::PixelRows => Priority::Bulk,
            _ => Priority::Next,
        }
    }

    /// Whether it starts a piece of work that has a span of its own, so that its frame carries the
    /// trace context. Exchanges inside a forward pass do not: there are hundreds in a second.
    pub fn starts_work(self) -> bool {
        matches!(
            self,
            Self::TextEmbeds
                | Self::InitialLatents
                | Self::Resume
                | Self::Activation
                | Self::Prediction
                | Self::Sample
                | Self::FinalRows
                | Self::Result
        )
    }
}

impl MessageKind {
    /// Which axis of the mesh it serves.
    pub fn axis(self) -> Axis {
        match self {
            Self::Prediction => Axis::Cfg,
            Self::UlyssesQkv | Self::UlyssesOut => Axis::Ulysses,
            Self::RingKv | Self::RingFresh => Axis::Ring,
            Self::Activation => Axis::Pipefusion,
            _ => Axis::Other,
        }
    }
}

impl From<ExchangeKind> for MessageKind {
    fn from(kind: ExchangeKind) -> Self {
        match kind {
            ExchangeKind::UlyssesQkv => Self::UlyssesQkv,
            ExchangeKind::UlyssesOut => Self::UlyssesOut,
            ExchangeKind::RingKv => Self::RingKv,
            ExchangeKind::RingFresh => Self::RingFresh,
        }
    }
}

impl From<BandExchangeKind> for MessageKind {
    fn from(kind: BandExchangeKind) -> Self {
        match kind {
            BandExchangeKind::Moments => Self::BandMoments,
            BandExchangeKind::Halo => Self::BandHalo,
            BandExchangeKind::Map => Self::BandMap,
        }
    }
}

/// One frame between two members.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// What it is.
    pub kind: MessageKind,
    /// Denoising step.
    pub step: u16,
    /// Strip, or [`PATCH_ALL`].
    pub patch: u16,
    /// Block, for messages inside a forward pass.
    pub block: u16,
    /// Round of the ring, for messages that go around.
    pub round: u8,
    /// Shape of the payload.
    pub shape: Vec<usize>,
    /// Element type of the payload.
    pub dtype: Dtype,
    /// Whether the payload is the change to what the receiver holds of these rows.
    pub residual: bool,
}

impl Message {
    /// A message outside the denoising loop.
    pub fn once(kind: MessageKind, shape: Vec<usize>) -> Self {
        Self::of_patch(kind, 0, None, shape)
    }

    /// A message of one step and patch.
    pub fn of_patch(
        kind: MessageKind,
        step: usize,
        patch: Option<usize>,
        shape: Vec<usize>,
    ) -> Self {
        let patch = patch.map_or(PATCH_ALL, |index| index as u16);
        let (step, dtype) = (step as u16, Dtype::F32);
        Self { kind, step, patch, block: 0, round: 0, shape, dtype, residual: false }
    }

    /// A message of an exchange inside a forward pass.
    pub fn of_exchange(
        id: ExchangeId,
        step: usize,
        patch: Option<usize>,
        shape: Vec<usize>,
    ) -> Self {
        let message = Self::of_patch(id.kind.into(), step, patch, shape);
        Self { block: id.block as u16, round: id.round as u8, ..message }
    }

    /// A message inside a decoding in bands; `block` holds the layer.
    pub fn of_band(id: BandExchangeId, shape: Vec<usize>) -> Self {
        let dtype = match id.kind {
            BandExchangeKind::Moments => Dtype::F64,
            BandExchangeKind::Halo | BandExchangeKind::Map => Dtype::F32,
        };
        Self { block: id.layer as u16, dtype, ..Self::once(id.kind.into(), shape) }
    }

    /// The same in the bytes that `wire` asks for.
    pub fn on_wire(self, wire: &Wire) -> Self {
        let dtype = wire.dtype(self.kind.axis()).payload();
        if self.kind != MessageKind::Activation || !wire.residual {
            return Self { dtype, ..self };
        }
        match wire.is_refresh(usize::from(self.step)) {
            true => self,
            false => Self { dtype, residual: true, ..self },
        }
    }

    /// The rows it covers.
    pub fn patch(&self) -> Patch {
        if self.patch == PATCH_ALL { Patch::All } else { Patch::Strip(usize::from(self.patch)) }
    }

    /// Whether it belongs to a denoising step, and not to what comes before or after them all.
    pub fn is_of_a_step(&self) -> bool {
        matches!(self.kind, MessageKind::Activation | MessageKind::Prediction | MessageKind::Sample)
    }

    /// Payload bytes.
    pub fn bytes(&self) -> usize {
        let bytes = self.dtype.payload_bytes(self.shape.iter().map(|&dim| dim as u64));
        bytes.map_or(usize::MAX, |bytes| bytes as usize)
    }

    /// Payload bytes that a choice of element type has saved.
    pub fn bytes_saved(&self) -> usize {
        if self.kind.axis() == Axis::Other {
            return 0;
        }
        let whole = self.shape.iter().product::<usize>() * size_of::<f32>();
        whole.saturating_sub(self.bytes())
    }

    /// Its name on the wire, unique per run, sender and receiver.
    pub fn tag(&self) -> Tag {
        let kind = KINDS.iter().position(|&kind| kind == self.kind).unwrap_or(KINDS.len()) as u64;
        Tag(kind << 56
            | u64::from(self.round) << 48
            | u64::from(self.step) << 32
            | u64::from(self.patch) << 16
            | u64::from(self.block))
    }
}

impl std::fmt::Display for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} of step {}", self.kind, self.step)?;
        if self.patch != PATCH_ALL {
            write!(f, ", patch {}", self.patch)?;
        }
        use MessageKind::{RingFresh, RingKv, UlyssesOut, UlyssesQkv};
        if matches!(self.kind, UlyssesQkv | UlyssesOut | RingKv | RingFresh) {
            write!(f, ", block {}", self.block)?;
        }
        if self.kind == RingKv {
            write!(f, ", round {}", self.round)?;
        }
        write!(f, ", shape {:?}", self.shape)?;
        if self.dtype != Dtype::F32 {
            write!(f, ", {:?}", self.dtype)?;
        }
        if self.residual { write!(f, ", a change") } else { Ok(()) }
    }
}

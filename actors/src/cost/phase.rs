//! Seconds of computing: of one phase of a forward pass, and of the operations around it.
//!
//! Pure functions of shapes. Work is counted in multiply-adds (two operations each) at the
//! device's sustained rate, plus a fixed cost for each phase; a rank with nothing to do in a phase
//! pays nothing. Does not own what overlaps with what.

use ditmesh_model::phase::{ForwardShape, Keys, Phase};
use ditmesh_model::rows::share;
use ditmesh_model::spec::TextStream;
use ditmesh_model::spec::description::Description;

use super::device::DeviceProfile;
use crate::request::Dtype;

/// What a phase is part of.
#[derive(Clone, Copy, Debug)]
pub struct PhaseContext<'a> {
    /// The model.
    pub model: &'a Description,
    /// Shape of the forward pass.
    pub shape: &'a ForwardShape,
    /// Text tokens that run through this pass beside the image (0 without a joint stream, and for
    /// patches after the first).
    pub text_tokens: usize,
    /// Precision of the weights.
    pub dtype: Dtype,
}

impl PhaseContext<'_> {
    /// Text tokens that this rank runs.
    fn own_text(&self) -> f64 {
        share(self.text_tokens, self.shape.member, self.shape.members()).len() as f64
    }

    fn own_tokens(&self) -> f64 {
        self.shape.own_tokens() as f64
    }

    /// Text keys that self-attention meets in every pass.
    fn text_keys(&self) -> usize {
        match self.model.spec.text_stream {
            TextStream::Joint => self.model.spec.text_tokens,
            TextStream::Cross => 0,
        }
    }
}

/// Seconds of `phase` on `device`.
pub fn seconds(phase: &Phase, context: &PhaseContext<'_>, device: &DeviceProfile) -> f64 {
    let (work, spec) = (&context.model.work, &context.model.spec);
    let batch = context.shape.batch as f64;
    let (tokens, text) = (context.own_tokens() * batch, context.own_text() * batch);
    let block = |index: usize| work.blocks.get(index).copied().unwrap_or_default();
    let hidden = spec.hidden() as f64;
    let gemm = |macs: f64| 2.0 * macs / device.gemm_flops_per_s.of(context.dtype);
    // Activations are f32; each pass over the hidden states of a token reads and writes them.
    let passes =
        |tokens: f64, passes: f64| 8.0 * passes * tokens * hidden / device.memory_bytes_per_s;
    let busy = match phase {
        Phase::Embed => gemm(tokens * work.embed as f64) + passes(tokens, 1.0),
        Phase::ProjectQkv(part) => {
            // One part for each member of the Ulysses group, by the heads it attends with.
            let (weights, share) = (block(part.block), part.heads.len() as f64 / spec.heads as f64);
            share
                * (gemm(tokens * weights.qkv as f64 + text * weights.text_qkv as f64)
                    + passes(tokens + text, 2.0))
        }
        Phase::Attend(part) => {
            // Text queries and keys come with the part of this rank's own tokens.
            let own = part.member == context.shape.member;
            let queries = part.query_tokens + if own { context.text_tokens } else { 0 };
            let whole = match part.keys {
                Keys::All | Keys::Fresh => true,
                Keys::Group(group) => group == context.shape.group(),
                Keys::Kept => false,
            };
            let keys = part.key_tokens + if whole { context.text_keys() } else { 0 };
            attention(batch, queries, keys, part.heads * spec.head_dim, context.dtype, device)
        }
        Phase::ProjectOut(index) => {
            let weights = block(*index);
            let cross = match weights.cross_attention {
                true => {
                    let queries = context.shape.own_tokens();
                    let keys = spec.text_tokens;
                    attention(batch, queries, keys, spec.hidden(), context.dtype, device)
                }
                false => 0.0,
            };
            gemm(tokens * weights.out as f64 + text * weights.text_out as f64)
                + passes(tokens + text, 6.0)
                + cross
        }
        Phase::ProjectNoise => gemm(tokens * work.project as f64) + passes(tokens, 1.0),
        Phase::Start(_) | Phase::Wait(_) => return 0.0,
    };
    if busy > 0.0 { busy + device.phase_s } else { 0.0 }
}

/// Seconds of attention of `queries` over `keys` with heads of `width` in all.
pub fn attention(
    batch: f64,
    queries: usize,
    keys: usize,
    width: usize,
    dtype: Dtype,
    device: &DeviceProfile,
) -> f64 {
    4.0 * batch * queries as f64 * keys as f64 * width as f64
        / device.attention_flops_per_s.of(dtype)
}

/// Seconds of guidance and the noise scheduler over `elements` latent elements.
pub fn denoise(elements: usize, device: &DeviceProfile) -> f64 {
    // Two predictions, the sample, a history of two and the result, f32.
    24.0 * elements as f64 / device.memory_bytes_per_s + device.phase_s
}

/// Seconds to project the text and the cross-attention keys and values of `blocks` blocks.
pub fn condition(
    model: &Description,
    blocks: usize,
    rows: usize,
    dtype: Dtype,
    device: &DeviceProfile,
) -> f64 {
    let hidden = model.spec.hidden() as f64;
    let tokens = (rows * model.spec.text_tokens) as f64;
    let mut weights = model.spec.caption_channels as f64 * hidden;
    if model.spec.text_stream == TextStream::Cross {
        weights += 2.0 * hidden * hidden * blocks as f64;
    }
    2.0 * tokens * weights / device.gemm_flops_per_s.of(dtype) + device.phase_s
}

/// Seconds of the text encoder over `rows` prompts.
pub fn encode(model: &Description, rows: usize, dtype: Dtype, device: &DeviceProfile) -> f64 {
    let tokens = (rows * model.spec.text_tokens) as f64;
    2.0 * tokens * model.text_encoder.weights as f64 / device.gemm_flops_per_s.of(dtype)
}

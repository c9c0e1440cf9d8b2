//! The Diffusion Transformer, as the parallel methods see it: a partition of blocks in phases.
//!
//! Owns the two traits every family implements. A [`Transformer`] is a loaded partition (the
//! weights of a contiguous range of blocks, shared and immutable); a [`ForwardPass`] is what one
//! run keeps on top of it (projected text, cross-attention keys and values, timestep embedding).
//! Self-attention itself is *not* here: between [`ForwardPass::project_heads`] and
//! [`ForwardPass::project_out`] the caller exchanges, caches and attends as its method demands.

pub mod pixart;

use std::ops::Range;

use candle_core::Tensor;

use crate::attention::Precision;
use crate::conditioning::{Conditioning, LatentGrid};
use crate::error::ModelError;
use crate::rows::RowSet;
use crate::spec::ModelSpec;

/// Hidden states between two blocks.
#[derive(Clone, Debug)]
pub struct Activation {
    /// Image (or video) tokens `[B, n, hidden]`, rows in raster order.
    pub image: Tensor,
    /// Text tokens `[B, L, hidden]` of the families with a joint text stream.
    pub text: Option<Tensor>,
}

/// Queries, keys and values of one block's self-attention, each `[B, n, heads, head_dim]`.
#[derive(Clone, Debug)]
pub struct Qkv {
    /// Queries.
    pub q: Tensor,
    /// Keys.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
    /// The same three of the text stream (joint attention), `[B, L, heads, head_dim]`.
    pub text: Option<Box<Qkv>>,
}

/// A loaded partition of a DiT: the weights of some contiguous blocks, plus patch embedding when
/// it holds block 0 and the final projection when it holds the last.
pub trait Transformer: Send + Sync {
    /// The whole model this is a part of.
    fn spec(&self) -> &ModelSpec;

    /// The blocks whose weights are here.
    fn blocks(&self) -> Range<usize>;

    /// Bytes of weights read from the checkpoint for this partition.
    fn bytes_read(&self) -> u64;

    /// Prepares one run: projects the text and computes every block's cross-attention K,V once.
    ///
    /// # Errors
    /// When the conditioning's shapes do not fit the model.
    fn begin(
        &self,
        conditioning: &Conditioning,
        grid: LatentGrid,
    ) -> Result<Box<dyn ForwardPass>, ModelError>;
}

/// The state of one run on one partition. Batch `B` is that of the [`Conditioning`].
pub trait ForwardPass: Send {
    /// Arithmetic of the attention between its phases: f32 unless the weights are halves.
    fn precision(&self) -> Precision {
        Precision::Full
    }

    /// Sets the timestep of the following calls; cheap when it did not change.
    ///
    /// # Errors
    /// When the tensor backend fails.
    fn set_timestep(&mut self, timestep: f64) -> Result<(), ModelError>;

    /// Patch embedding of the latent rows in `rows`: f32 `[B, C, F, rows*patch_size, W]` to
    /// `[B, n, hidden]`, position embedding included. First partition only.
    ///
    /// # Errors
    /// When this partition does not hold block 0, or on a wrong shape.
    fn embed(&self, latents: &Tensor, rows: &RowSet) -> Result<Activation, ModelError>;

    /// Norm and modulation before self-attention of `block` (index in the whole model).
    ///
    /// # Errors
    /// When the block is not held here, or on a wrong shape.
    fn modulate(&self, block: usize, x: &Activation) -> Result<Activation, ModelError>;

    /// q,k,v projection of modulated hidden states for some heads of `block`: f32
    /// `[B, n, heads, 3, head_dim]`, contiguous, so that heads can leave for the rank that attends
    /// with them while the next are projected.
    ///
    /// # Errors
    /// When the block is not held here, it has not these heads, or on a wrong shape.
    fn project_heads(
        &self,
        block: usize,
        modulated: &Activation,
        heads: Range<usize>,
    ) -> Result<Tensor, ModelError>;

    /// Norm, modulation and q,k,v projection of `block` for all heads, as views.
    ///
    /// # Errors
    /// When the block is not held here, or on a wrong shape.
    fn project_qkv(&self, block: usize, x: &Activation) -> Result<Qkv, ModelError>;

    /// The rest of `block` after self-attention: output projection, gate, residual,
    /// cross-attention, feed-forward. `attended` is `[B, n, heads, head_dim]`; both are given up,
    /// so that nothing is held longer than it is needed.
    ///
    /// # Errors
    /// When the block is not held here, or on a wrong shape.
    fn project_out(
        &self,
        block: usize,
        x: Activation,
        attended: Tensor,
    ) -> Result<Activation, ModelError>;

    /// Final norm, projection and unpatchify: the model output for `rows`, f32
    /// `[B, C, F, rows*patch_size, W]` with the learned-sigma channels dropped (they are dropped
    /// after guidance in diffusers; guidance is linear, so the result is the same).
    /// Last partition only.
    ///
    /// # Errors
    /// When this partition does not hold the last block, or on a wrong shape.
    fn project_noise(&self, x: &Activation, rows: &RowSet) -> Result<Tensor, ModelError>;
}

//! Walks one forward pass through its phases: compute here, exchange with peers, attend, go on.
//!
//! Owns one run's state on a partition; what is on its way between two phases is in `walk`. The
//! order of phases is [`crate::phase`]'s, the arithmetic of a block [`crate::transformer`]'s, the
//! network the [`Exchanger`]'s.
//!
//! Invariant (PipeFusion): queries are those of the given rows only; keys and values are read from
//! the cache after the given rows were overwritten in it.

mod caches;
mod residual;
mod skip;
mod walk;

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};

pub use caches::CacheShape;

use crate::error::ModelError;
use crate::exchange::Exchanger;
use crate::phase::{ForwardShape, Phase, phases};
use crate::rows::RowSet;
use crate::spec::ModelSpec;
use crate::transformer::{Activation, ForwardPass};
use caches::Caches;
use residual::Residual;
use walk::Walk;

/// What a forward pass starts from.
#[derive(Clone, Debug)]
pub enum ForwardInput {
    /// Latent rows, for the partition that holds block 0: f32 `[B, C, F, rows*patch_size, W]`.
    Latents(Tensor),
    /// Hidden states of the partition before: `[B, n, hidden]`.
    Activation(Activation),
    /// This rank owns no row of the patch; it only attends with its heads for the others.
    Nothing,
}

/// What a forward pass ends with.
#[derive(Clone, Debug)]
pub enum ForwardOutput {
    /// Predicted noise of the rows, f32 `[B, C, F, rows*patch_size, W]`.
    Noise(Tensor),
    /// Hidden states for the next partition.
    Activation(Activation),
    /// This rank owns no row of the patch.
    Nothing,
}

/// One run on one partition: the family's forward pass and, under PipeFusion, the patch KV cache.
pub struct PartitionRun {
    pass: Box<dyn ForwardPass>,
    spec: ModelSpec,
    caches: Option<Caches>,
    wait_limit: Duration,
    residual: Residual,
}

impl PartitionRun {
    /// Prepares a run. `cache` is given when patches of a step are computed one by one
    /// (PipeFusion); without it every pass must cover all rows. `wait_limit` bounds every wait for
    /// a peer.
    ///
    /// # Errors
    /// When the cache cannot be allocated.
    pub fn new(
        pass: Box<dyn ForwardPass>,
        spec: ModelSpec,
        cache: Option<CacheShape>,
        device: &Device,
        wait_limit: Duration,
    ) -> Result<Self, ModelError> {
        let caches = match cache {
            Some(shape) => Some(Caches::new(&shape, spec.head_dim, device)?),
            None => None,
        };
        Ok(Self { pass, spec, caches, wait_limit, residual: Residual::default() })
    }

    /// Bytes held by the patch KV cache.
    pub fn cache_bytes(&self) -> u64 {
        self.caches.as_ref().map_or(0, Caches::bytes)
    }

    /// How much keys and values changed where they were overwritten since this was last asked:
    /// `||new - old|| / ||old||` of this rank's heads, mean over blocks; `None` when nothing was
    /// overwritten or measured.
    pub fn take_kv_change(&mut self) -> Option<f64> {
        self.caches.as_mut().and_then(Caches::take_change)
    }

    /// Runs the phases of `shape` at `timestep`.
    ///
    /// # Errors
    /// When an exchange fails, the run is aborted, or a shape is not what the plan said.
    pub fn forward(
        &mut self,
        shape: &ForwardShape,
        timestep: f64,
        input: ForwardInput,
        exchanger: &mut dyn Exchanger,
    ) -> Result<ForwardOutput, ModelError> {
        self.pass.set_timestep(timestep)?;
        let own = shape.rows.get(shape.member).cloned().unwrap_or_default();
        let mut walk = Walk::new(self.pass.as_ref(), shape, self.caches.as_mut());
        let (mut latents, mut noise) = (None, None);
        match input {
            ForwardInput::Activation(x) => walk.x = Some(x),
            ForwardInput::Latents(rows) => latents = Some(rows),
            ForwardInput::Nothing => {}
        }
        for phase in phases(shape, &self.spec) {
            exchanger.proceed(&phase)?;
            match phase {
                Phase::Embed => {
                    let embed = |x| walk.pass.embed(&x, &own);
                    walk.x = latents.take().map(embed).transpose()?;
                }
                Phase::ProjectQkv(work) => {
                    self.residual.enter(shape, work.block, walk.x.as_ref());
                    walk.project_qkv(&work)?;
                }
                Phase::Start(transfer) => {
                    exchanger.start(&transfer, walk.outgoing(&transfer)?)?;
                }
                Phase::Wait(transfer) => {
                    let deadline = Instant::now() + self.wait_limit;
                    walk.incoming(&transfer, exchanger.wait(&transfer, deadline)?)?;
                }
                Phase::Attend(work) => walk.attend(&work, self.spec.head_dim)?,
                Phase::ProjectOut(block) => {
                    walk.project_out(block)?;
                    self.residual.leave(shape, block, walk.x.as_ref())?;
                }
                Phase::ProjectNoise => {
                    let project = |x| walk.pass.project_noise(&x, &own);
                    noise = walk.x.take().map(project).transpose()?;
                }
            }
        }
        Ok(match (noise, walk.x) {
            (Some(noise), _) => ForwardOutput::Noise(noise),
            (None, Some(x)) => ForwardOutput::Activation(x),
            (None, None) => ForwardOutput::Nothing,
        })
    }
}

/// The latent rows `rows` of a whole latent `[B, C, F, H, W]`, as `[B, C, F, rows*patch_size, W]`.
///
/// # Errors
/// When a row lies outside the latent.
pub fn latent_rows(
    latent: &Tensor,
    rows: &RowSet,
    patch_size: usize,
) -> Result<Tensor, ModelError> {
    let parts = rows
        .ranges()
        .iter()
        .map(|range| latent.narrow(3, range.start * patch_size, range.len() * patch_size))
        .collect::<Result<Vec<_>, _>>()?;
    if parts.is_empty() {
        let (b, c, f, _, w) = latent.dims5()?;
        return Ok(Tensor::zeros((b, c, f, 0, w), DType::F32, latent.device())?);
    }
    Ok(Tensor::cat(&parts, 3)?.contiguous()?)
}

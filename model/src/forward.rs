//! Walks one forward pass through its phases: compute here, exchange with peers, attend, go on.
//!
//! Owns the joints between a block's phases: which heads go where, where keys and values are
//! cached, over which keys a query attends. The order of phases is [`crate::phase`]'s, the
//! arithmetic of a block [`crate::transformer`]'s, the network the [`Exchanger`]'s.
//!
//! Invariant (PipeFusion): queries are those of the given rows only; keys and values are read from
//! the cache after the given rows were overwritten in it.

mod residual;
mod skip;

use std::ops::Range;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};

use crate::attention::attention;
use crate::error::ModelError;
use crate::exchange::{ExchangeKind, Exchanger};
use crate::kv_cache::PatchKvCache;
use crate::phase::{Exchange, ForwardShape, Phase, phases};
use crate::rows::RowSet;
use crate::spec::ModelSpec;
use crate::transformer::{Activation, ForwardPass, Qkv};
use residual::Residual;

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

struct Caches {
    first_block: usize,
    of_block: Vec<PatchKvCache>,
}

/// Size of the patch KV cache of a partition: see [`PartitionRun::new`].
#[derive(Clone, Debug)]
pub struct CacheShape {
    /// Blocks of the partition.
    pub blocks: Range<usize>,
    /// Batch rows.
    pub batch: usize,
    /// Tokens of the whole image.
    pub tokens: usize,
    /// Heads this rank attends with.
    pub heads: usize,
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
        let caches = self.caches.iter().flat_map(|caches| &caches.of_block);
        caches.map(|cache| cache.bytes() as u64).sum()
    }

    /// How much keys and values changed where they were overwritten since this was last asked:
    /// `||new - old|| / ||old||` of this rank's heads, mean over blocks; `None` when nothing was
    /// overwritten or measured.
    pub fn take_kv_change(&mut self) -> Option<f64> {
        let caches = self.caches.iter_mut().flat_map(|caches| &mut caches.of_block);
        let ratios: Vec<f64> =
            caches.filter_map(PatchKvCache::take_change).map(|sums| sums.ratio().sqrt()).collect();
        (!ratios.is_empty()).then(|| ratios.iter().sum::<f64>() / ratios.len() as f64)
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
        let mut walk = Walk { x: None, qkv: None, pieces: Vec::new(), attended: None, noise: None };
        let mut latents = None;
        match input {
            ForwardInput::Activation(x) => walk.x = Some(x),
            ForwardInput::Latents(rows) => latents = Some(rows),
            ForwardInput::Nothing => {}
        }
        for phase in phases(shape, &self.spec.clone()) {
            exchanger.proceed(&phase)?;
            match phase {
                Phase::Embed => {
                    walk.x = latents.take().map(|x| self.pass.embed(&x, &own)).transpose()?;
                }
                Phase::ProjectQkv(block) => {
                    self.residual.enter(shape, block, walk.x.as_ref());
                    let project = |x| self.pass.project_qkv(block, x);
                    walk.qkv = walk.x.as_ref().map(project).transpose()?;
                }
                Phase::Exchange(exchange) => {
                    self.exchange(&mut walk, &exchange, shape, exchanger)?
                }
                Phase::Attend(block) => self.attend(&mut walk, block, shape)?,
                Phase::ProjectOut(block) => {
                    if let (Some(x), Some(attended)) = (walk.x.take(), walk.attended.take()) {
                        walk.x = Some(self.pass.project_out(block, x, &attended)?);
                    }
                    self.residual.leave(shape, block, walk.x.as_ref())?;
                }
                Phase::ProjectNoise => {
                    let x = walk.x.take();
                    let project = |x| self.pass.project_noise(&x, &own);
                    walk.noise = x.map(project).transpose()?;
                }
            }
        }
        Ok(match (walk.noise, walk.x) {
            (Some(noise), _) => ForwardOutput::Noise(noise),
            (None, Some(x)) => ForwardOutput::Activation(x),
            (None, None) => ForwardOutput::Nothing,
        })
    }

    fn exchange(
        &self,
        walk: &mut Walk,
        exchange: &Exchange,
        shape: &ForwardShape,
        exchanger: &mut dyn Exchanger,
    ) -> Result<(), ModelError> {
        let outgoing = match exchange.id.kind {
            ExchangeKind::UlyssesQkv => self.split_heads(walk, exchange, shape)?,
            ExchangeKind::UlyssesOut => split_tokens(walk, exchange, shape)?,
        };
        exchanger.start(exchange.id, outgoing)?;
        let mut incoming = exchanger.wait(exchange.id, Instant::now() + self.wait_limit)?;
        let own = walk.pieces.pop().flatten();
        if let Some(slot) = incoming.get_mut(shape.member) {
            *slot = own;
        }
        for (index, (piece, expected)) in incoming.iter().zip(&exchange.receive).enumerate() {
            if let (Some(piece), Some(expected)) = (piece, expected)
                && piece.dims() != expected
            {
                return Err(ModelError::Invalid(format!(
                    "member {index} sent {:?} in {:?}, expected {expected:?}",
                    piece.dims(),
                    exchange.id
                )));
            }
        }
        if exchange.id.kind == ExchangeKind::UlyssesOut {
            let parts: Vec<_> = incoming.drain(..).flatten().collect();
            walk.attended = if walk.x.is_some() { Some(Tensor::cat(&parts, 2)?) } else { None };
        } else {
            walk.pieces = incoming;
        }
        Ok(())
    }

    /// One `[3, B, n, H_j, d]` piece of q, k, v per member; this rank's own is kept in the walk.
    fn split_heads(
        &self,
        walk: &mut Walk,
        exchange: &Exchange,
        shape: &ForwardShape,
    ) -> Result<Vec<Option<Tensor>>, ModelError> {
        let qkv = walk.qkv.take();
        let piece = |member: usize| -> Result<Option<Tensor>, ModelError> {
            let heads = shape.heads_of(member, self.spec.heads);
            match &qkv {
                Some(qkv) if !heads.is_empty() => Ok(Some(stack_heads(qkv, heads)?)),
                _ => Ok(None),
            }
        };
        walk.pieces = vec![piece(shape.member)?];
        let wanted = exchange.send.iter().enumerate();
        wanted.map(|(member, send)| if send.is_some() { piece(member) } else { Ok(None) }).collect()
    }

    /// Attention of this rank's heads: queries of all members' rows in this pass.
    fn attend(
        &mut self,
        walk: &mut Walk,
        block: usize,
        shape: &ForwardShape,
    ) -> Result<(), ModelError> {
        let pieces = self.member_pieces(walk, shape)?;
        if pieces.is_empty() {
            walk.attended = None;
            return Ok(());
        }
        let cat = |select: fn(&Qkv) -> &Tensor| {
            let parts: Vec<_> = pieces.iter().map(|(_, qkv)| select(qkv)).collect();
            if let [one] = parts.as_slice() { Ok((*one).clone()) } else { Tensor::cat(&parts, 1) }
        };
        let q = cat(|qkv| &qkv.q)?;
        let scale = 1.0 / (self.spec.head_dim as f64).sqrt();
        let out = match &mut self.caches {
            Some(caches) => {
                let cache = caches.get(block)?;
                for (member, qkv) in &pieces {
                    let rows = shape.rows.get(*member).cloned().unwrap_or_default();
                    cache.write(&token_ranges(&rows, shape.tokens_per_row), &qkv.k, &qkv.v)?;
                }
                attention(&q, cache.keys()?, cache.values()?, scale, None)?
            }
            None => attention(&q, &cat(|qkv| &qkv.k)?, &cat(|qkv| &qkv.v)?, scale, None)?,
        };
        walk.attended = Some(out.out);
        Ok(())
    }

    /// Queries, keys and values per member, on this rank's heads.
    fn member_pieces(
        &self,
        walk: &mut Walk,
        shape: &ForwardShape,
    ) -> Result<Vec<(usize, Qkv)>, ModelError> {
        if shape.members() == 1 {
            return Ok(walk.qkv.take().map(|qkv| (0, qkv)).into_iter().collect());
        }
        let mut pieces = Vec::with_capacity(shape.members());
        for (member, piece) in walk.pieces.drain(..).enumerate() {
            let Some(piece) = piece else { continue };
            let part = |index| piece.get(index);
            pieces.push((member, Qkv { q: part(0)?, k: part(1)?, v: part(2)?, text: None }));
        }
        Ok(pieces)
    }
}

/// What is on its way between two phases.
struct Walk {
    x: Option<Activation>,
    qkv: Option<Qkv>,
    /// Pieces by member: of q,k,v before attention, of the attention output while it is sent back.
    pieces: Vec<Option<Tensor>>,
    attended: Option<Tensor>,
    noise: Option<Tensor>,
}

impl Caches {
    fn new(shape: &CacheShape, head_dim: usize, device: &Device) -> Result<Self, ModelError> {
        let one = || PatchKvCache::new(shape.batch, shape.tokens, shape.heads, head_dim, device);
        let of_block = shape.blocks.clone().map(|_| one()).collect::<Result<_, _>>()?;
        Ok(Self { first_block: shape.blocks.start, of_block })
    }

    fn get(&mut self, block: usize) -> Result<&mut PatchKvCache, ModelError> {
        let held = self.of_block.len();
        block
            .checked_sub(self.first_block)
            .and_then(|index| self.of_block.get_mut(index))
            .ok_or_else(|| {
                ModelError::Invalid(format!(
                    "block {block} has no cache here: blocks {}..{} have",
                    self.first_block,
                    self.first_block + held
                ))
            })
    }
}

fn stack_heads(qkv: &Qkv, heads: Range<usize>) -> Result<Tensor, ModelError> {
    let part = |x: &Tensor| x.narrow(2, heads.start, heads.len());
    Ok(Tensor::stack(&[part(&qkv.q)?, part(&qkv.k)?, part(&qkv.v)?], 0)?)
}

/// Cuts the attention output `[B, sum n_i, H, d]` back into the tokens of each member.
fn split_tokens(
    walk: &mut Walk,
    exchange: &Exchange,
    shape: &ForwardShape,
) -> Result<Vec<Option<Tensor>>, ModelError> {
    let attended = walk.attended.take();
    let mut start = 0;
    let mut outgoing = Vec::with_capacity(shape.members());
    let mut own = None;
    for (member, send) in exchange.send.iter().enumerate() {
        let tokens = shape.tokens_of(member);
        let piece = match &attended {
            Some(all) if tokens > 0 => Some(all.narrow(1, start, tokens)?.contiguous()?),
            _ => None,
        };
        start += tokens;
        if member == shape.member {
            own = piece.clone();
        }
        outgoing.push(if send.is_some() { piece } else { None });
    }
    walk.pieces = vec![own];
    Ok(outgoing)
}

/// The token ranges that `rows` cover in raster order.
pub fn token_ranges(rows: &RowSet, tokens_per_row: usize) -> Vec<Range<usize>> {
    let scale = |range: &Range<usize>| range.start * tokens_per_row..range.end * tokens_per_row;
    rows.ranges().iter().map(scale).collect()
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

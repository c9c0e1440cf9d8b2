//! What is on its way between the phases of one forward pass.
//!
//! Owns the tensors from a block's input to its output: projected pieces by member, the keys and
//! values that are present, partial results of attention. Each phase has one function here.
//!
//! Invariants: a member's piece is here from its projection (or arrival) until it leaves; fresh
//! rows are in the cache before a query of this pass meets them.

use candle_core::Tensor;

use super::caches::Caches;
use crate::attention::{AttentionOutput, attention_in, merge};
use crate::error::ModelError;
use crate::exchange::ExchangeKind;
use crate::phase::{Attend, ForwardShape, Keys, ProjectQkv, Transfer};
use crate::strided::join;
use crate::transformer::{Activation, ForwardPass};

/// Where keys and values lie in a projected piece `[B, n, heads, 3, head_dim]`.
const KEYS_AND_VALUES: usize = 1;

pub(super) struct Walk<'a> {
    pub(super) pass: &'a dyn ForwardPass,
    shape: &'a ForwardShape,
    caches: Option<&'a mut Caches>,
    /// Hidden states of this rank's rows.
    pub(super) x: Option<Activation>,
    /// They after the norm before self-attention, with the block they are for.
    modulated: Option<(usize, Activation)>,
    /// q, k and v by member, f32 `[B, n, heads, 3, head_dim]`: to leave, or of our heads.
    pieces: Vec<Option<Tensor>>,
    /// The block whose pieces of our heads are in `kv` or the cache.
    settled: Option<usize>,
    /// Keys and values that are present, `[B, n, heads, 2, head_dim]`.
    kv: Option<Tensor>,
    /// Attention so far, by member.
    partials: Vec<Option<AttentionOutput>>,
    /// Attention output of our tokens by member, `[B, n, heads, head_dim]`.
    attended: Vec<Option<Tensor>>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        pass: &'a dyn ForwardPass,
        shape: &'a ForwardShape,
        caches: Option<&'a mut Caches>,
    ) -> Self {
        let members = shape.members();
        Self {
            pass,
            shape,
            caches,
            x: None,
            modulated: None,
            pieces: vec![None; members],
            settled: None,
            kv: None,
            partials: vec![None; members],
            attended: vec![None; members],
        }
    }

    pub(super) fn project_qkv(&mut self, work: &ProjectQkv) -> Result<(), ModelError> {
        let modulated = match self.modulated.take() {
            Some((block, modulated)) if block == work.block => modulated,
            _ => self.pass.modulate(work.block, self.x.as_ref().ok_or_else(no_rows)?)?,
        };
        let piece = self.pass.project_heads(work.block, &modulated, work.heads.clone())?;
        self.modulated = Some((work.block, modulated));
        put(&mut self.pieces, work.member, piece)
    }

    /// The pieces that leave in `transfer`.
    pub(super) fn outgoing(&mut self, transfer: &Transfer) -> Result<Vec<Tensor>, ModelError> {
        if transfer.id.kind == ExchangeKind::RingKv || transfer.id.kind == ExchangeKind::RingFresh {
            self.settle(transfer.id.block)?;
        }
        let piece = |member: usize| match transfer.id.kind {
            ExchangeKind::UlyssesQkv => take(&mut self.pieces, member),
            ExchangeKind::UlyssesOut => take(&mut self.partials, member).map(|part| part.out),
            ExchangeKind::RingKv | ExchangeKind::RingFresh => self.kv.clone(),
        };
        let pieces: Option<Vec<_>> =
            transfer.pieces.iter().map(|(member, _)| *member).map(piece).collect();
        pieces.ok_or_else(|| ModelError::Invalid(format!("{:?} has nothing to send", transfer.id)))
    }

    /// Puts what arrived in `transfer` where it belongs.
    pub(super) fn incoming(
        &mut self,
        transfer: &Transfer,
        pieces: Vec<Tensor>,
    ) -> Result<(), ModelError> {
        for ((member, expected), piece) in transfer.pieces.iter().zip(pieces) {
            if piece.dims() != expected.as_slice() {
                return Err(ModelError::Invalid(format!(
                    "member {member} sent {:?} in {:?}, expected {expected:?}",
                    piece.dims(),
                    transfer.id
                )));
            }
            match transfer.id.kind {
                ExchangeKind::UlyssesQkv => put(&mut self.pieces, *member, piece)?,
                ExchangeKind::UlyssesOut => put(&mut self.attended, *member, piece)?,
                ExchangeKind::RingKv => {
                    // A group without rows settles nothing before it takes over.
                    self.settle(transfer.id.block)?;
                    self.kv = Some(piece);
                }
                ExchangeKind::RingFresh => self.keep_group(transfer.id.block, *member, &piece)?,
            }
        }
        Ok(())
    }

    /// Makes the keys and values of our Ulysses group ready to meet queries: into the cache, where
    /// there is one, and together into one tensor, where they must stay or travel as one.
    fn settle(&mut self, block: usize) -> Result<(), ModelError> {
        if self.settled == Some(block) {
            return Ok(());
        }
        let mut parts = Vec::with_capacity(self.shape.ulysses);
        for member in self.shape.members_of(self.shape.group()) {
            let Some(piece) = self.pieces.get(member).and_then(Option::as_ref) else { continue };
            let kv = piece.narrow(3, KEYS_AND_VALUES, 2)?;
            self.keep(block, member, &kv)?;
            parts.push(kv);
        }
        self.kv = match (&self.caches, self.shape.ring(), parts.is_empty()) {
            (Some(_), 1, _) | (_, _, true) => None,
            _ => Some(join(&parts, 1)?),
        };
        self.settled = Some(block);
        Ok(())
    }

    /// Overwrites a member's rows in the cache, if there is one.
    fn keep(&mut self, block: usize, member: usize, kv: &Tensor) -> Result<(), ModelError> {
        let Some(caches) = &mut self.caches else { return Ok(()) };
        let Some(rows) = self.shape.rows.get(member) else { return Ok(()) };
        let ranges = rows.token_ranges(self.shape.tokens_per_row);
        caches.get(block)?.write(&ranges, &part(kv, 0)?, &part(kv, 1)?)
    }

    /// Overwrites the rows of `member`'s whole Ulysses group in the cache.
    fn keep_group(&mut self, block: usize, member: usize, kv: &Tensor) -> Result<(), ModelError> {
        let mut start = 0;
        for member in self.shape.members_of(member / self.shape.ulysses.max(1)) {
            let tokens = self.shape.tokens_of(member);
            self.keep(block, member, &kv.narrow(1, start, tokens)?)?;
            start += tokens;
        }
        Ok(())
    }

    pub(super) fn attend(&mut self, work: &Attend, head_dim: usize) -> Result<(), ModelError> {
        self.settle(work.block)?;
        let query = self.pieces.get(work.member).and_then(Option::as_ref);
        let query = part(query.ok_or_else(|| missing(work, "queries"))?, 0)?;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let mut result = take(&mut self.partials, work.member);
        for (keys, values) in self.keys(work)? {
            let precision = self.pass.precision();
            let more = attention_in(precision, &query, &keys, &values, scale, None)?;
            result = Some(match result {
                Some(before) => merge(&before, &more)?,
                None => more,
            });
        }
        let result = result.ok_or_else(|| missing(work, "keys"))?;
        put(&mut self.partials, work.member, result)
    }

    /// Keys and values, each `[B, m, heads, head_dim]`, in one or two runs of tokens.
    fn keys(&mut self, work: &Attend) -> Result<Vec<(Tensor, Tensor)>, ModelError> {
        let Some(caches) = &mut self.caches else {
            let kv = self.kv.as_ref().ok_or_else(|| missing(work, "keys"))?;
            return Ok(vec![(part(kv, 0)?, part(kv, 1)?)]);
        };
        let cache = caches.get(work.block)?;
        let (keys, values) = (cache.keys()?, cache.values()?);
        let fresh = self.shape.fresh_tokens().ok_or_else(|| missing(work, "rows"));
        let runs = match work.keys {
            Keys::All | Keys::Group(_) => [0..keys.dim(1)?, 0..0],
            Keys::Fresh => [fresh?, 0..0],
            Keys::Kept => {
                let fresh = fresh?;
                [0..fresh.start, fresh.end..keys.dim(1)?]
            }
        };
        let runs = runs.into_iter().filter(|run| !run.is_empty());
        let pair = |run: std::ops::Range<usize>| {
            let cut = |x: &Tensor| x.narrow(1, run.start, run.len());
            Ok((cut(keys)?, cut(values)?))
        };
        runs.map(pair).collect()
    }

    pub(super) fn project_out(&mut self, block: usize) -> Result<(), ModelError> {
        let own = take(&mut self.partials, self.shape.member).map(|partial| partial.out);
        if let Some(own) = own {
            put(&mut self.attended, self.shape.member, own)?;
        }
        let members = self.shape.members_of(self.shape.group());
        let parts: Vec<_> = members.filter_map(|m| take(&mut self.attended, m)).collect();
        let attended = join(&parts, 2)?;
        drop(parts);
        // The feed-forward needs the room: nobody asks for these again.
        self.pieces.fill(None);
        (self.kv, self.modulated) = (None, None);
        let x = self.x.take().ok_or_else(no_rows)?;
        self.x = Some(self.pass.project_out(block, x, attended)?);
        Ok(())
    }
}

/// Entry `index` along the axis of q, k, v (or k, v) as a view `[B, n, heads, head_dim]`.
fn part(piece: &Tensor, index: usize) -> Result<Tensor, ModelError> {
    Ok(piece.narrow(3, index, 1)?.squeeze(3)?)
}

fn take<T>(slots: &mut [Option<T>], index: usize) -> Option<T> {
    slots.get_mut(index).and_then(Option::take)
}

fn put<T>(slots: &mut [Option<T>], index: usize, value: T) -> Result<(), ModelError> {
    let members = slots.len();
    let slot = slots.get_mut(index);
    let slot = slot.ok_or_else(|| {
        ModelError::Invalid(format!("member {index} is not in a sequence group of {members}"))
    })?;
    *slot = Some(value);
    Ok(())
}

fn no_rows() -> ModelError {
    ModelError::Invalid("this rank has rows in the plan but was given no hidden states".into())
}

fn missing(work: &Attend, what: &str) -> ModelError {
    ModelError::Invalid(format!("{work:?} has no {what}"))
}

//! Walks the decoding of one band through its phases: send edges, wait for those of others,
//! compute.
//!
//! Owns what is on its way between two phases. The order of phases is [`super::phase`]'s, the
//! arithmetic of a layer [`super::blocks`]', the network the [`BandExchanger`]'s. A whole picture
//! is the one band of one member.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};

use super::blocks::{EdgeRows, upsample};
use super::conv::Halo;
use super::exchange::BandExchanger;
use super::group_norm::{GroupNorm, Moments};
use super::phase::{
    BandExchange, BandExchangeKind, DecodeLayer, DecodePhase, DecodeShape, HALO_ROWS, decode_phases,
};
use super::{DecodeTask, VaeDecoder};
use crate::error::ModelError;

/// What is on its way between two phases.
pub(super) struct Walk<'a> {
    decoder: &'a VaeDecoder,
    shape: &'a DecodeShape,
    wait_limit: Duration,
    phases: Vec<DecodePhase>,
    /// The layers among the phases.
    layers: Vec<DecodeLayer>,
    x: Tensor,
    /// Input of the resnet under way, for its shortcut.
    residual: Option<Tensor>,
    /// Own moments from the moment they are sent, of the whole picture once all are received.
    moments: Option<Moments>,
    edges: EdgeRows,
    /// Rows of every member, in member order.
    map: Vec<Tensor>,
}

impl<'a> Walk<'a> {
    /// `rows` are unscaled latents, f32 `[B, C, rows, W]`, of [`DecodeShape::latent_rows`].
    pub(super) fn new(decoder: &'a VaeDecoder, task: &DecodeTask<'a>, rows: Tensor) -> Self {
        let phases = decode_phases(task.shape, decoder.spec());
        let layer = |phase: &DecodePhase| match phase {
            DecodePhase::Compute { layer, .. } => Some(*layer),
            _ => None,
        };
        Self {
            decoder,
            shape: task.shape,
            layers: phases.iter().filter_map(layer).collect(),
            phases,
            wait_limit: task.wait_limit,
            x: rows,
            residual: None,
            moments: None,
            edges: EdgeRows::default(),
            map: Vec::new(),
        }
    }

    /// All phases; f32 `[B, 3, band * f, W * f]`.
    pub(super) fn run(mut self, exchanger: &mut dyn BandExchanger) -> Result<Tensor, ModelError> {
        for phase in std::mem::take(&mut self.phases) {
            match phase {
                DecodePhase::Send(exchange) => {
                    let pieces = self.pieces(&exchange)?;
                    exchanger.start(&exchange, pieces)?;
                }
                DecodePhase::Receive(exchange) => {
                    let deadline = Instant::now() + self.wait_limit;
                    let pieces = exchanger.wait(&exchange, deadline)?;
                    check(&exchange, &pieces)?;
                    self.take(&exchange, pieces)?;
                }
                DecodePhase::Compute { layer, .. } => {
                    exchanger.proceed()?;
                    self.x = self.compute(layer)?;
                }
            }
        }
        Ok(self.x)
    }

    /// What each member gets of the current rows.
    fn pieces(&mut self, exchange: &BandExchange) -> Result<Vec<Option<Tensor>>, ModelError> {
        let piece = |walk: &Self, member: usize| match exchange.id.kind {
            BandExchangeKind::Moments => walk.moments.as_ref().map(to_tensor).transpose(),
            BandExchangeKind::Map => Ok(Some(walk.x.clone())),
            BandExchangeKind::Halo => {
                let (above, _) = walk.shape.neighbours();
                let height = walk.x.dim(2)?;
                let first = if above == Some(member) { 0 } else { height - HALO_ROWS };
                Ok(Some(walk.x.narrow(2, first, HALO_ROWS)?.contiguous()?))
            }
        };
        if exchange.id.kind == BandExchangeKind::Moments {
            self.moments = Some(self.norm_of(exchange.id.layer)?.moments(&self.x)?);
        }
        let wanted = exchange.send.iter().enumerate();
        wanted.map(|(i, send)| send.as_ref().map_or(Ok(None), |_| piece(self, i))).collect()
    }

    /// Keeps what the other members sent.
    fn take(
        &mut self,
        exchange: &BandExchange,
        mut pieces: Vec<Option<Tensor>>,
    ) -> Result<(), ModelError> {
        match exchange.id.kind {
            BandExchangeKind::Moments => {
                // Summed in member order on every member, so that all have the same bits.
                let own = self.moments.take();
                let mut all: Option<Moments> = None;
                for (member, piece) in pieces.iter().enumerate() {
                    let rows = self.shape.bands.get(member).map_or(0, ExactSizeIterator::len);
                    let next = match (piece, &own) {
                        (Some(piece), Some(own)) => from_tensor(piece, own, rows, self.shape)?,
                        (None, Some(own)) if member == self.shape.member => own.clone(),
                        _ => continue,
                    };
                    match &mut all {
                        Some(all) => all.add(&next),
                        None => all = Some(next),
                    }
                }
                self.moments = all;
            }
            BandExchangeKind::Halo => {
                let (above, below) = self.shape.neighbours();
                let mut from = |side: Option<usize>| pieces.get_mut(side?)?.take();
                self.edges = EdgeRows { above: from(above), below: from(below) };
            }
            BandExchangeKind::Map => {
                if let Some(slot) = pieces.get_mut(self.shape.member) {
                    *slot = Some(self.x.clone());
                }
                self.map = pieces.into_iter().flatten().collect();
            }
        }
        Ok(())
    }

    /// One layer on the own rows.
    fn compute(&mut self, layer: DecodeLayer) -> Result<Tensor, ModelError> {
        let edges = std::mem::take(&mut self.edges);
        let decoder = self.decoder;
        match layer {
            DecodeLayer::ConvIn => self.conv_in(),
            DecodeLayer::Resnet { index, second: false } => {
                let [half, _] = &decoder.resnet(index)?.halves;
                self.residual = Some(self.x.clone());
                let moments = self.whole_moments(&half.norm)?;
                half.forward(&self.x, &moments, edges)
            }
            DecodeLayer::Resnet { index, second: true } => {
                let resnet = decoder.resnet(index)?;
                let [_, half] = &resnet.halves;
                let moments = self.whole_moments(&half.norm)?;
                let y = half.forward(&self.x, &moments, edges)?;
                let x = self.residual.take().ok_or_else(|| disorder("a resnet's second half"))?;
                Ok(match &resnet.shortcut {
                    Some(conv) => (conv.forward(&x, &Halo::default())? + y)?,
                    None => (x + y)?,
                })
            }
            DecodeLayer::Attend => {
                let attention = decoder.attention.as_ref();
                let attention = attention.ok_or_else(|| disorder("attention"))?;
                let map = std::mem::take(&mut self.map);
                let map = if map.is_empty() { self.x.clone() } else { Tensor::cat(&map, 2)? };
                attention.forward(&map.contiguous()?, self.shape.band())
            }
            DecodeLayer::Upsample { level } => {
                let conv = decoder.upsamples.get(level).ok_or_else(|| disorder("upsampling"))?;
                upsample(conv, &self.x, edges)
            }
            DecodeLayer::ConvOut => {
                let moments = self.whole_moments(&decoder.out.norm)?;
                decoder.out.forward(&self.x, &moments, edges)
            }
        }
    }

    /// The neighbours' rows came with the latents.
    fn conv_in(&mut self) -> Result<Tensor, ModelError> {
        let (rows, band) = (self.shape.latent_rows(self.shape.member), self.shape.band());
        let mut x = self.x.clone();
        if let Some(conv) = &self.decoder.post_quant_conv {
            x = conv.forward(&x, &Halo::default())?;
        }
        let (above, below) = (band.start - rows.start, rows.end - band.end);
        let side = |start: usize, len: usize| -> Result<Option<Tensor>, ModelError> {
            if len == 0 { Ok(None) } else { Ok(Some(x.narrow(2, start, len)?)) }
        };
        let halo = Halo { above: side(0, above)?, below: side(above + band.len(), below)? };
        self.decoder.conv_in.forward(&x.narrow(2, above, band.len())?, &halo)
    }

    /// The moments that were exchanged, or those of the one band there is.
    fn whole_moments(&mut self, norm: &GroupNorm) -> Result<Moments, ModelError> {
        match self.moments.take() {
            Some(moments) => Ok(moments),
            None if self.shape.active() == 1 => norm.moments(&self.x),
            None => Err(disorder("a group norm")),
        }
    }

    /// The norm that a layer opens with.
    fn norm_of(&self, layer: usize) -> Result<&'a GroupNorm, ModelError> {
        match self.layers.get(layer) {
            Some(&DecodeLayer::Resnet { index, second }) => {
                let [first, last] = &self.decoder.resnet(index)?.halves;
                Ok(if second { &last.norm } else { &first.norm })
            }
            Some(DecodeLayer::ConvOut) => Ok(&self.decoder.out.norm),
            _ => Err(disorder("a norm")),
        }
    }
}

fn disorder(what: &str) -> ModelError {
    ModelError::Invalid(format!("{what} is not a layer of this decoder, or its input is missing"))
}

/// Both ends check the shapes of the plan.
fn check(exchange: &BandExchange, pieces: &[Option<Tensor>]) -> Result<(), ModelError> {
    for (member, expected) in exchange.receive.iter().enumerate() {
        let found = pieces.get(member).and_then(Option::as_ref).map(Tensor::dims);
        if found != expected.as_deref() {
            return Err(ModelError::Invalid(format!(
                "member {member} sent {found:?} in {:?}, expected {expected:?}",
                exchange.id
            )));
        }
    }
    Ok(())
}

/// f64 `[2 * B * groups]`: sums, then sums of squares.
fn to_tensor(moments: &Moments) -> Result<Tensor, ModelError> {
    let numbers = [moments.sums.as_slice(), moments.squares.as_slice()].concat();
    let len = numbers.len();
    Ok(Tensor::from_vec(numbers, len, &Device::Cpu)?)
}

/// The moments of a member that has `rows` latent rows; `own` are this member's.
fn from_tensor(
    tensor: &Tensor,
    own: &Moments,
    rows: usize,
    shape: &DecodeShape,
) -> Result<Moments, ModelError> {
    let mut sums = tensor.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    if sums.len() != 2 * own.sums.len() {
        return Err(ModelError::Invalid(format!(
            "{} moments were sent, this member has {}",
            sums.len(),
            2 * own.sums.len()
        )));
    }
    let squares = sums.split_off(own.sums.len());
    // Every band has the same columns and channels, so elements go with rows.
    let count = own.count / shape.band().len().max(1) as u64 * rows as u64;
    Ok(Moments { sums, squares, count })
}

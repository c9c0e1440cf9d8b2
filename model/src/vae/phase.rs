//! The order of work inside the decoding of one band of rows, as data.
//!
//! Owns which layers there are, what crosses between the members before each of them, and how much
//! a layer computes. [`decode_phases`] is the only place that knows; the walker
//! (`super::decode`), the plan checker, the byte counts and the cost rules read its list. Pure:
//! no tensors.
//!
//! Invariants: a member with no rows has no phases and nobody sends to it; per exchange, what one
//! member sends another receives in the same shape.

use std::ops::Range;

use super::spec::{IMAGE_CHANNELS, VaeSpec};
use crate::rows::share;

/// Rows of a neighbour that a 3x3 convolution reaches into.
pub const HALO_ROWS: usize = 1;

/// One picture (or batch of equal size) dealt out in bands of latent rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeShape {
    /// Pictures.
    pub batch: usize,
    /// Latent pixels across.
    pub width: usize,
    /// Latent rows of each member, in member order; together all rows, possibly none for some.
    pub bands: Vec<Range<usize>>,
    /// Which member this rank is.
    pub member: usize,
}

impl DecodeShape {
    /// Deals `height` latent rows to `members` members: `floor(i*h/n)..floor((i+1)*h/n)`.
    pub fn new(batch: usize, height: usize, width: usize, members: usize, member: usize) -> Self {
        let bands = (0..members).map(|index| share(height, index, members)).collect();
        Self { batch, width, bands, member }
    }

    /// Latent rows of this member.
    pub fn band(&self) -> Range<usize> {
        self.bands.get(self.member).cloned().unwrap_or_default()
    }

    /// Latent rows of the whole picture.
    pub fn height(&self) -> usize {
        self.bands.iter().map(ExactSizeIterator::len).sum()
    }

    /// Latent rows that member `index` starts from: its band and one row of each neighbour, where
    /// there is one.
    pub fn latent_rows(&self, index: usize) -> Range<usize> {
        match self.bands.get(index) {
            Some(band) if !band.is_empty() => {
                band.start.saturating_sub(HALO_ROWS)..(band.end + HALO_ROWS).min(self.height())
            }
            _ => 0..0,
        }
    }

    /// The member above and the one below, those without rows skipped.
    pub fn neighbours(&self) -> (Option<usize>, Option<usize>) {
        let owns = |index: &usize| self.bands.get(*index).is_some_and(|band| !band.is_empty());
        let above = (0..self.member).rev().find(owns);
        (above, (self.member + 1..self.bands.len()).find(owns))
    }

    /// Members that have rows.
    pub fn active(&self) -> usize {
        self.bands.iter().filter(|band| !band.is_empty()).count()
    }
}

/// What crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BandExchangeKind {
    /// Sums, then sums of squares, of a group norm, f64 `[2 * B * groups]`, to every member.
    Moments,
    /// Edge rows before the norm, f32 `[B, C, 1, W]`, to the neighbours.
    Halo,
    /// All rows before the attention layer, f32 `[B, C, rows, W]`, to every member.
    Map,
}

/// Names one exchange of a decoding; equal on all members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BandExchangeId {
    /// The layer that needs it, counted in order of execution.
    pub layer: usize,
    /// What crosses.
    pub kind: BandExchangeKind,
}

/// Shapes that cross between this member and each other; `None` where nothing does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BandExchange {
    /// Which exchange.
    pub id: BandExchangeId,
    /// Shape sent to each member.
    pub send: Vec<Option<Vec<usize>>>,
    /// Shape received from each member.
    pub receive: Vec<Option<Vec<usize>>>,
}

/// A layer of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecodeLayer {
    /// The first convolution (and the 1x1 one before it, where a model has that).
    ConvIn,
    /// Norm, silu and convolution of a resnet.
    Resnet {
        /// Counted in order of execution, the middle block's first.
        index: usize,
        /// The second half, which also adds the shortcut.
        second: bool,
    },
    /// The middle block's attention.
    Attend,
    /// Doubling of the resolution and the convolution after it.
    Upsample {
        /// Level, the coarsest first.
        level: usize,
    },
    /// The last norm and convolution.
    ConvOut,
}

/// One piece of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodePhase {
    /// Pieces leave for the other members; nobody waits.
    Send(BandExchange),
    /// Waits for the pieces of the other members.
    Receive(BandExchange),
    /// Computes this member's rows of a layer.
    Compute {
        /// Which layer.
        layer: DecodeLayer,
        /// Floating-point operations, a multiply and an add counting as two.
        flops: u64,
    },
}

/// The phases of decoding one member's band, in order.
pub fn decode_phases(shape: &DecodeShape, spec: &VaeSpec) -> Vec<DecodePhase> {
    let mut list = List { shape, spec, scale: 1, layer: 0, phases: Vec::new() };
    if shape.band().is_empty() {
        return list.phases;
    }
    let (first, resnets) = (spec.widths.first().copied().unwrap_or(0), spec.resnets());
    let (mid, levels) = resnets.split_at_checked(super::spec::MID_RESNETS).unwrap_or_default();
    let flops = list.conv(spec.latent_channels, first, 9);
    list.compute(DecodeLayer::ConvIn, flops);
    for (index, &(input, output)) in mid.iter().enumerate() {
        if index > 0 && spec.mid_attention {
            list.attend(first);
        }
        list.resnet(index, input, output);
    }
    for (level, resnets) in levels.chunks(spec.resnets_per_level.max(1)).enumerate() {
        for (index, &(input, output)) in resnets.iter().enumerate() {
            list.resnet(mid.len() + level * spec.resnets_per_level + index, input, output);
        }
        if level + 1 < spec.widths.len() {
            list.upsample(level, spec.widths.get(level).copied().unwrap_or(0));
        }
    }
    let last = spec.widths.last().copied().unwrap_or(0);
    list.exchange(&[list.moments(), list.halo(last)]);
    let flops = list.conv(last, IMAGE_CHANNELS, 9);
    list.compute(DecodeLayer::ConvOut, flops);
    list.phases
}

/// The list under construction.
struct List<'a> {
    shape: &'a DecodeShape,
    spec: &'a VaeSpec,
    /// Rows of the layer per latent row.
    scale: usize,
    layer: usize,
    phases: Vec<DecodePhase>,
}

impl List<'_> {
    fn compute(&mut self, layer: DecodeLayer, flops: u64) {
        self.phases.push(DecodePhase::Compute { layer, flops });
        self.layer += 1;
    }

    /// Everything is sent before anything is waited for; exchanges of nothing are left out.
    fn exchange(&mut self, exchanges: &[BandExchange]) {
        let some = |shapes: &[Option<Vec<usize>>]| shapes.iter().any(Option::is_some);
        let sends = exchanges.iter().filter(|exchange| some(&exchange.send)).cloned();
        self.phases.extend(sends.map(DecodePhase::Send));
        let receives = exchanges.iter().filter(|exchange| some(&exchange.receive)).cloned();
        self.phases.extend(receives.map(DecodePhase::Receive));
    }

    fn resnet(&mut self, index: usize, input: usize, output: usize) {
        self.exchange(&[self.moments(), self.halo(input)]);
        let flops = self.conv(input, output, 9);
        self.compute(DecodeLayer::Resnet { index, second: false }, flops);
        self.exchange(&[self.moments(), self.halo(output)]);
        let shortcut = if input == output { 0 } else { self.conv(input, output, 1) };
        let flops = self.conv(output, output, 9) + shortcut;
        self.compute(DecodeLayer::Resnet { index, second: true }, flops);
    }

    fn attend(&mut self, channels: usize) {
        let rows = |member: usize| self.shape.bands.get(member).map_or(0, ExactSizeIterator::len);
        let shape = |from: usize| vec![self.shape.batch, channels, rows(from), self.shape.width];
        let map = self.between_all(BandExchangeKind::Map, shape);
        self.exchange(&[map]);
        let (own, all) = (self.shape.band().len(), self.shape.height());
        let width = self.shape.width;
        let (own, all, c) = ((own * width) as u64, (all * width) as u64, channels as u64);
        // Queries and output of the own rows, keys and values of all, scores and their product.
        let projections = 4 * c * c * (own + all);
        let flops = self.shape.batch as u64 * (projections + 4 * own * all * c);
        self.compute(DecodeLayer::Attend, flops);
    }

    fn upsample(&mut self, level: usize, width: usize) {
        self.exchange(&[self.halo(width)]);
        self.scale *= 2;
        let flops = self.conv(width, width, 9);
        self.compute(DecodeLayer::Upsample { level }, flops);
    }

    /// Operations of a convolution of `taps` taps over the own rows of this layer.
    fn conv(&self, input: usize, output: usize, taps: usize) -> u64 {
        let pixels = self.shape.band().len() * self.shape.width * self.scale * self.scale;
        2 * (self.shape.batch * pixels * input * output * taps) as u64
    }

    fn moments(&self) -> BandExchange {
        let shape = vec![2 * self.shape.batch * self.spec.groups];
        self.between_all(BandExchangeKind::Moments, |_| shape.clone())
    }

    fn between_all(
        &self,
        kind: BandExchangeKind,
        shape: impl Fn(usize) -> Vec<usize>,
    ) -> BandExchange {
        let (me, bands) = (self.shape.member, &self.shape.bands);
        let other = |index: usize, band: &Range<usize>| index != me && !band.is_empty();
        let each = |from: &dyn Fn(usize) -> usize| {
            let pairs = bands.iter().enumerate();
            pairs.map(|(i, band)| other(i, band).then(|| shape(from(i)))).collect()
        };
        let id = BandExchangeId { layer: self.layer, kind };
        BandExchange { id, send: each(&|_| me), receive: each(&|index| index) }
    }

    fn halo(&self, channels: usize) -> BandExchange {
        let (above, below) = self.shape.neighbours();
        let shape = vec![self.shape.batch, channels, HALO_ROWS, self.shape.width * self.scale];
        let each = |index| (above == Some(index) || below == Some(index)).then(|| shape.clone());
        let sides: Vec<_> = (0..self.shape.bands.len()).map(each).collect();
        let id = BandExchangeId { layer: self.layer, kind: BandExchangeKind::Halo };
        BandExchange { id, send: sides.clone(), receive: sides }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchanges(phases: &[DecodePhase], sent: bool) -> Vec<&BandExchange> {
        let pick = |phase| match (phase, sent) {
            (&DecodePhase::Send(ref exchange), true)
            | (&DecodePhase::Receive(ref exchange), false) => Some(exchange),
            _ => None,
        };
        phases.iter().filter_map(pick).collect()
    }

    #[test]
    fn what_one_member_sends_another_receives() {
        let spec = VaeSpec::default();
        for (height, members) in [(8, 2), (7, 3), (3, 4), (1, 3), (16, 16), (5, 8)] {
            let of =
                |member| decode_phases(&DecodeShape::new(2, height, 6, members, member), &spec);
            let all: Vec<_> = (0..members).map(of).collect();
            for a in 0..members {
                for b in 0..members {
                    let sent = exchanges(&all[a], true);
                    let sent = sent.iter().filter_map(|e| Some((e.id, e.send[b].as_ref()?)));
                    let received = exchanges(&all[b], false);
                    let received =
                        received.iter().filter_map(|e| Some((e.id, e.receive[a].as_ref()?)));
                    assert!(sent.eq(received), "{height} rows, {members} members, {a} to {b}");
                }
            }
        }
    }

    #[test]
    fn one_member_exchanges_nothing_and_computes_every_layer() {
        let phases = decode_phases(&DecodeShape::new(1, 4, 4, 1, 0), &VaeSpec::default());
        // First and last convolution, attention, 14 resnets in halves, 3 doublings.
        assert_eq!(phases.len(), 2 + 1 + 28 + 3);
        assert!(phases.iter().all(|phase| matches!(phase, DecodePhase::Compute { .. })));
    }

    #[test]
    fn bands_share_the_work_but_for_the_keys_and_values() {
        let spec = VaeSpec::default();
        let flops = |members| -> Vec<u64> {
            let of = |member| {
                let shape = DecodeShape::new(1, 16, 16, members, member);
                let phases = decode_phases(&shape, &spec);
                let each = phases.iter().map(|phase| match phase {
                    DecodePhase::Compute { flops, .. } => *flops,
                    _ => 0,
                });
                each.sum()
            };
            (0..members).map(of).collect()
        };
        let (alone, four) = (flops(1)[0], flops(4));
        let replicated = 3 * 4 * 512 * 512 * 16 * 16;
        assert_eq!(four.iter().sum::<u64>(), alone + replicated);
        assert!(four.iter().all(|&one| one == four[0]));
    }
}

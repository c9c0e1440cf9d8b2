//! The decoder's layers over a band of rows: resnet halves and upsampling, and how they are loaded.
//!
//! Invariant: a layer sees rows beyond its band only as [`EdgeRows`], raw as the neighbour holds
//! them, and puts its own norm on them.

use candle_core::{Device, Tensor};

use super::conv::{Conv2d, Halo};
use super::group_norm::{GroupNorm, Moments};
use crate::checkpoint::{CheckpointError, Weights};
use crate::error::ModelError;
use crate::kernels::silu;

/// What loading a layer needs.
pub(super) struct Loader<'a> {
    pub(super) weights: &'a Weights,
    pub(super) groups: usize,
    pub(super) device: &'a Device,
}

impl Loader<'_> {
    pub(super) fn conv(
        &self,
        prefix: &str,
        input: usize,
        output: usize,
        kernel: usize,
    ) -> Result<Conv2d, CheckpointError> {
        Conv2d::load(self.weights, prefix, input, output, kernel, self.device)
    }

    pub(super) fn group_norm(
        &self,
        prefix: &str,
        channels: usize,
    ) -> Result<GroupNorm, CheckpointError> {
        GroupNorm::load(self.weights, prefix, channels, self.groups)
    }
}

/// Rows of the neighbours next to a band, f32 `[B, C, 1, W]`, as they are before the layer's norm;
/// `None` at the edge of the picture.
#[derive(Clone, Debug, Default)]
pub(super) struct EdgeRows {
    pub(super) above: Option<Tensor>,
    pub(super) below: Option<Tensor>,
}

impl EdgeRows {
    fn halo(self, map: impl Fn(&Tensor) -> Result<Tensor, ModelError>) -> Result<Halo, ModelError> {
        let side = |rows: Option<Tensor>| rows.as_ref().map(&map).transpose();
        Ok(Halo { above: side(self.above)?, below: side(self.below)? })
    }
}

/// Group norm over the whole picture, silu, convolution of a band.
#[derive(Debug)]
pub(super) struct NormConv {
    pub(super) norm: GroupNorm,
    pub(super) conv: Conv2d,
}

impl NormConv {
    pub(super) fn load(
        loader: &Loader<'_>,
        [norm, conv]: [&str; 2],
        input: usize,
        output: usize,
    ) -> Result<Self, CheckpointError> {
        Ok(Self {
            norm: loader.group_norm(norm, input)?,
            conv: loader.conv(conv, input, output, 3)?,
        })
    }

    /// `moments` are those of the whole picture; f32 `[B, C, rows, W]` to `[B, C', rows, W]`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        moments: &Moments,
        edges: EdgeRows,
    ) -> Result<Tensor, ModelError> {
        let activate =
            |x: &Tensor| -> Result<Tensor, ModelError> { Ok(silu(&self.norm.apply(x, moments)?)?) };
        self.conv.forward(&activate(x)?, &edges.halo(activate)?)
    }
}

/// Norm, silu, convolution, twice, and a shortcut.
#[derive(Debug)]
pub(super) struct Resnet {
    pub(super) halves: [NormConv; 2],
    pub(super) shortcut: Option<Conv2d>,
}

impl Resnet {
    pub(super) fn load(
        loader: &Loader<'_>,
        prefix: &str,
        input: usize,
        output: usize,
    ) -> Result<Self, CheckpointError> {
        let half = |index: usize, input: usize| {
            let names = [format!("{prefix}.norm{index}"), format!("{prefix}.conv{index}")];
            NormConv::load(loader, [&names[0], &names[1]], input, output)
        };
        let shortcut = match input == output {
            true => None,
            false => Some(loader.conv(&format!("{prefix}.conv_shortcut"), input, output, 1)?),
        };
        Ok(Self { halves: [half(1, input)?, half(2, output)?], shortcut })
    }
}

/// Doubles a band by repeating pixels, then convolves it.
pub(super) fn upsample(conv: &Conv2d, x: &Tensor, edges: EdgeRows) -> Result<Tensor, ModelError> {
    let doubled = |x: &Tensor| -> Result<Tensor, ModelError> {
        let (_, _, height, width) = x.dims4()?;
        Ok(x.upsample_nearest2d(2 * height, 2 * width)?)
    };
    // Both copies of a neighbour's row are the same; the convolution reaches into one.
    let halo = edges.halo(|row| Ok(doubled(row)?.narrow(2, 0, conv.reach())?))?;
    conv.forward(&doubled(x)?, &halo)
}

//! The decoder's blocks: resnets, the middle block and the upsampling levels.

use candle_core::{Device, Tensor};

use super::attention::PixelAttention;
use super::conv::{Conv2d, Halo};
use super::group_norm::GroupNorm;
use crate::checkpoint::{CheckpointError, Weights};
use crate::error::ModelError;
use crate::kernels::silu;

/// What loading a block needs.
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

/// Norm, silu, convolution, twice, and a shortcut.
#[derive(Debug)]
struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl Resnet {
    fn load(
        loader: &Loader<'_>,
        prefix: &str,
        input: usize,
        output: usize,
    ) -> Result<Self, CheckpointError> {
        let shortcut = match input == output {
            true => None,
            false => Some(loader.conv(&format!("{prefix}.conv_shortcut"), input, output, 1)?),
        };
        Ok(Self {
            norm1: loader.group_norm(&format!("{prefix}.norm1"), input)?,
            conv1: loader.conv(&format!("{prefix}.conv1"), input, output, 3)?,
            norm2: loader.group_norm(&format!("{prefix}.norm2"), output)?,
            conv2: loader.conv(&format!("{prefix}.conv2"), output, output, 3)?,
            shortcut,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let edge = Halo::default();
        let y = self.conv1.forward(&silu(&self.norm1.forward(x)?)?, &edge)?;
        let y = self.conv2.forward(&silu(&self.norm2.forward(&y)?)?, &edge)?;
        Ok(match &self.shortcut {
            Some(conv) => (conv.forward(x, &edge)? + y)?,
            None => (x + y)?,
        })
    }
}

/// Resnet, attention, resnet at the latents' own resolution.
#[derive(Debug)]
pub(super) struct MidBlock {
    first: Resnet,
    attention: Option<PixelAttention>,
    second: Resnet,
}

impl MidBlock {
    pub(super) fn load(
        loader: &Loader<'_>,
        width: usize,
        attend: bool,
    ) -> Result<Self, CheckpointError> {
        let resnet = |index: usize| {
            Resnet::load(loader, &format!("decoder.mid_block.resnets.{index}"), width, width)
        };
        let prefix = "decoder.mid_block.attentions.0";
        let attention = match attend {
            true => {
                let norm = loader.group_norm(&format!("{prefix}.group_norm"), width)?;
                let (weights, device) = (loader.weights, loader.device);
                Some(PixelAttention::load(weights, prefix, norm, width, device)?)
            }
            false => None,
        };
        Ok(Self { first: resnet(0)?, attention, second: resnet(1)? })
    }

    pub(super) fn forward(&self, x: Tensor) -> Result<Tensor, ModelError> {
        let mut x = self.first.forward(&x)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.second.forward(&x)
    }
}

/// Some resnets, then doubling of the resolution (but for the last level).
#[derive(Debug)]
pub(super) struct UpBlock {
    resnets: Vec<Resnet>,
    upsample: Option<Conv2d>,
}

impl UpBlock {
    pub(super) fn load(
        loader: &Loader<'_>,
        level: usize,
        input: usize,
        width: usize,
        layers: usize,
        upsample: bool,
    ) -> Result<Self, CheckpointError> {
        let prefix = format!("decoder.up_blocks.{level}");
        let resnets = (0..layers).map(|index| {
            let input = if index == 0 { input } else { width };
            Resnet::load(loader, &format!("{prefix}.resnets.{index}"), input, width)
        });
        let resnets = resnets.collect::<Result<_, _>>()?;
        let upsample = match upsample {
            true => Some(loader.conv(&format!("{prefix}.upsamplers.0.conv"), width, width, 3)?),
            false => None,
        };
        Ok(Self { resnets, upsample })
    }

    pub(super) fn forward(&self, mut x: Tensor) -> Result<Tensor, ModelError> {
        for resnet in &self.resnets {
            x = resnet.forward(&x)?;
        }
        match &self.upsample {
            Some(conv) => {
                let (_, _, height, width) = x.dims4()?;
                let doubled = x.upsample_nearest2d(2 * height, 2 * width)?;
                conv.forward(&doubled, &Halo::default())
            }
            None => Ok(x),
        }
    }
}

//! Names and shapes of the decoder's tensors.

use super::attention::Naming;
use super::config::AutoencoderKlConfig;
use super::spec::{MID_RESNETS, VaeSpec};
use crate::checkpoint::Weights;

/// Where the middle block's attention is.
pub(super) const ATTENTION: &str = "decoder.mid_block.attentions.0";

/// Where resnet `index`, counted in order of execution, is.
pub(super) fn resnet_prefix(spec: &VaeSpec, index: usize) -> String {
    match index.checked_sub(MID_RESNETS) {
        None => format!("decoder.mid_block.resnets.{index}"),
        Some(index) => {
            let (level, index) = (index / spec.resnets_per_level, index % spec.resnets_per_level);
            format!("decoder.up_blocks.{level}.resnets.{index}")
        }
    }
}

/// Where the upsampling convolution of a level is.
pub(super) fn upsample_prefix(level: usize) -> String {
    format!("decoder.up_blocks.{level}.upsamplers.0.conv")
}

/// Every tensor of the decoder; `weights` only says which names its attention goes by.
pub(super) fn decoder(
    config: &AutoencoderKlConfig,
    weights: &Weights,
) -> Vec<(String, Vec<usize>)> {
    let mut list = List(Vec::new());
    let spec = config.spec();
    let (widths, latent) = (&spec.widths, spec.latent_channels);
    let (first, last) = (widths[0], widths[widths.len() - 1]);
    if config.use_post_quant_conv {
        list.conv("post_quant_conv", latent, latent, 1);
    }
    list.conv("decoder.conv_in", latent, first, 3);
    if spec.mid_attention {
        list.attention(ATTENTION, first, weights);
    }
    for (index, (input, output)) in spec.resnets().into_iter().enumerate() {
        list.resnet(&resnet_prefix(&spec, index), input, output);
    }
    for (level, &width) in widths[..widths.len() - 1].iter().enumerate() {
        list.conv(&upsample_prefix(level), width, width, 3);
    }
    list.norm("decoder.conv_norm_out", last);
    list.conv("decoder.conv_out", last, config.out_channels, 3);
    list.0
}

struct List(Vec<(String, Vec<usize>)>);

impl List {
    fn conv(&mut self, prefix: &str, input: usize, output: usize, kernel: usize) {
        self.0.push((format!("{prefix}.weight"), vec![output, input, kernel, kernel]));
        self.0.push((format!("{prefix}.bias"), vec![output]));
    }

    fn norm(&mut self, prefix: &str, width: usize) {
        self.0.push((format!("{prefix}.weight"), vec![width]));
        self.0.push((format!("{prefix}.bias"), vec![width]));
    }

    fn resnet(&mut self, prefix: &str, input: usize, output: usize) {
        self.norm(&format!("{prefix}.norm1"), input);
        self.conv(&format!("{prefix}.conv1"), input, output, 3);
        self.norm(&format!("{prefix}.norm2"), output);
        self.conv(&format!("{prefix}.conv2"), output, output, 3);
        if input != output {
            self.conv(&format!("{prefix}.conv_shortcut"), input, output, 1);
        }
    }

    fn attention(&mut self, prefix: &str, width: usize, weights: &Weights) {
        self.norm(&format!("{prefix}.group_norm"), width);
        let naming = Naming::of(weights, prefix);
        for name in naming.all() {
            let weight = format!("{prefix}.{name}.weight");
            let shape = naming.weight_shape(weights, &weight, width);
            self.0.push((weight, shape));
            self.0.push((format!("{prefix}.{name}.bias"), vec![width]));
        }
    }
}

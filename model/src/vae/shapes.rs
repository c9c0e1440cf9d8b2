//! Names and shapes of the decoder's tensors.

use super::attention::Naming;
use super::config::AutoencoderKlConfig;
use crate::checkpoint::Weights;

/// Every tensor of the decoder; `weights` only says which names its attention goes by.
pub(super) fn decoder(
    config: &AutoencoderKlConfig,
    weights: &Weights,
) -> Vec<(String, Vec<usize>)> {
    let mut list = List(Vec::new());
    let widths = config.widths();
    let (first, last, latent) = (widths[0], widths[widths.len() - 1], config.latent_channels);
    if config.use_post_quant_conv {
        list.conv("post_quant_conv", latent, latent, 1);
    }
    list.conv("decoder.conv_in", latent, first, 3);
    for index in 0..2 {
        list.resnet(&format!("decoder.mid_block.resnets.{index}"), first, first);
    }
    if config.mid_block_add_attention {
        list.attention("decoder.mid_block.attentions.0", first, weights);
    }
    let mut input = first;
    for (level, &width) in widths.iter().enumerate() {
        for index in 0..=config.layers_per_block {
            list.resnet(&format!("decoder.up_blocks.{level}.resnets.{index}"), input, width);
            input = width;
        }
        if level + 1 < widths.len() {
            list.conv(&format!("decoder.up_blocks.{level}.upsamplers.0.conv"), width, width, 3);
        }
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

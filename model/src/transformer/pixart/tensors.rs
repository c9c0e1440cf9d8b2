//! The tensors of a PixArt checkpoint: names and shapes, nothing else.
//!
//! Invariant: blocks and the rest together are the whole checkpoint, so that a partition that
//! reads a few tensors can still tell whether the files fit the configuration.

use super::config::PixArtConfig;

/// Width of the sinusoidal embeddings.
pub(super) const SINUSOID: usize = 256;
/// Tensors that some published files have and no forward pass uses: the position embedding, which
/// is computed, and PixArt-alpha's null caption.
pub(super) const IGNORABLE: [&str; 2] = ["pos_embed.pos_embed", "caption_projection.y_embedding"];

type Named = (String, Vec<usize>);

/// All tensors of the model.
pub(super) fn all(config: &PixArtConfig) -> Vec<Named> {
    let blocks = (0..config.num_layers).flat_map(|index| of_block(config, index));
    outside_blocks(config).into_iter().chain(blocks).collect()
}

/// The prefix of a block's tensors.
pub(super) fn block_prefix(index: usize) -> String {
    format!("transformer_blocks.{index}")
}

/// The tensors of block `index`.
pub(super) fn of_block(config: &PixArtConfig, index: usize) -> Vec<Named> {
    let hidden = config.hidden();
    let prefix = block_prefix(index);
    let mut tensors = vec![(format!("{prefix}.scale_shift_table"), vec![6, hidden])];
    for attention in ["attn1", "attn2"] {
        for part in ["to_q", "to_k", "to_v"] {
            let name = format!("{prefix}.{attention}.{part}");
            linear(&mut tensors, &name, hidden, hidden, config.attention_bias);
        }
        linear(&mut tensors, &format!("{prefix}.{attention}.to_out.0"), hidden, hidden, true);
    }
    linear(&mut tensors, &format!("{prefix}.ff.net.0.proj"), hidden, 4 * hidden, true);
    linear(&mut tensors, &format!("{prefix}.ff.net.2"), 4 * hidden, hidden, true);
    tensors
}

/// The tensors that belong to no block.
pub(super) fn outside_blocks(config: &PixArtConfig) -> Vec<Named> {
    let (hidden, patch) = (config.hidden(), config.patch_size);
    let mut tensors = vec![
        ("pos_embed.proj.weight".to_owned(), vec![hidden, config.in_channels, patch, patch]),
        ("pos_embed.proj.bias".to_owned(), vec![hidden]),
        ("scale_shift_table".to_owned(), vec![2, hidden]),
    ];
    let captions = config.caption_channels.unwrap_or(0);
    linear(&mut tensors, "caption_projection.linear_1", captions, hidden, true);
    linear(&mut tensors, "caption_projection.linear_2", hidden, hidden, true);
    linear(&mut tensors, "adaln_single.linear", hidden, 6 * hidden, true);
    linear(&mut tensors, "proj_out", hidden, patch * patch * config.output_channels(), true);
    embedder(&mut tensors, "timestep_embedder", hidden);
    if config.has_additional_conditions() {
        embedder(&mut tensors, "resolution_embedder", hidden / 3);
        embedder(&mut tensors, "aspect_ratio_embedder", hidden / 3);
    }
    tensors
}

fn embedder(tensors: &mut Vec<Named>, name: &str, width: usize) {
    linear(tensors, &format!("adaln_single.emb.{name}.linear_1"), SINUSOID, width, true);
    linear(tensors, &format!("adaln_single.emb.{name}.linear_2"), width, width, true);
}

fn linear(tensors: &mut Vec<Named>, name: &str, input: usize, output: usize, bias: bool) {
    tensors.push((format!("{name}.weight"), vec![output, input]));
    if bias {
        tensors.push((format!("{name}.bias"), vec![output]));
    }
}

//! What each family's blocks compute, from the keys of its configuration.
//!
//! The counts are those of diffusers' modules of the same names; terms that are linear in the
//! width (biases, norms) are left out where they are under a hundredth of a block.

use super::{Config, Description, edge, t5_xxl};
use crate::spec::work::{BlockWork, DecoderWork, ModelWork};
use crate::spec::{Family, ModelId, ModelSpec, TextStream};
use crate::vae::VaeSpec;

fn base(config: &Config, family: Family, text_stream: TextStream) -> ModelSpec {
    ModelSpec {
        id: ModelId(0),
        family,
        text_stream,
        long_skips: false,
        blocks: config.num_layers + config.num_single_layers,
        heads: config.num_attention_heads,
        head_dim: config.attention_head_dim,
        patch_size: config.patch_size,
        latent_channels: config.in_channels,
        sample_size: config.sample_size,
        vae_scale_factor: 8,
        vae: VaeSpec::default(),
        solver_history: 0,
        caption_channels: config.joint_attention_dim,
        text_tokens: 0,
        block_bytes: 0,
        other_bytes: 0,
    }
}

pub(super) fn pixart(config: &Config) -> Description {
    let (h, patch) = (config.hidden(), config.patch_size * config.patch_size);
    let block = BlockWork {
        qkv: 3 * h * h,
        // Output, query and output of cross-attention, feed-forward.
        out: 11 * h * h,
        cross_attention: true,
        parameters: 16 * h * h + 19 * h,
        ..BlockWork::default()
    };
    let captions = config.caption_channels as u64;
    let (inside, outside) = (config.in_channels, config.out_channels.unwrap_or(config.in_channels));
    let embed = h * (patch * config.in_channels) as u64;
    let project = h * (patch * outside) as u64;
    let spec = ModelSpec {
        caption_channels: config.caption_channels,
        latent_channels: inside,
        text_tokens: 120,
        ..base(config, Family::PixArt, TextStream::Cross)
    };
    Description {
        name: "PixArt".into(),
        size: edge(config.sample_size, 8),
        work: ModelWork {
            blocks: vec![block; config.num_layers],
            embed,
            project,
            other_parameters: embed + project + captions * h + h * h + 7 * h * h + 256 * h,
            frames: 1,
        },
        spec,
        text_encoder: t5_xxl(),
        decoder: DecoderWork::of_autoencoder_kl(&[128, 256, 512, 512], 2, 4, true),
        guided: true,
        runs: true,
    }
}

/// A block with a stream of its own for the text: attention, feed-forward and modulation twice.
fn two_streams(h: u64) -> BlockWork {
    BlockWork {
        qkv: 3 * h * h,
        out: 9 * h * h,
        text_qkv: 3 * h * h,
        text_out: 9 * h * h,
        cross_attention: false,
        parameters: 36 * h * h,
    }
}

pub(super) fn sd3(config: &Config) -> Description {
    let h = config.hidden();
    let mut blocks = vec![two_streams(h); config.num_layers];
    // The last block only takes keys and values of the text.
    if let Some(last) = blocks.last_mut() {
        *last = BlockWork { text_out: 0, parameters: 23 * h * h, ..*last };
    }
    let patch = (config.patch_size * config.patch_size * config.in_channels) as u64;
    let (joint, pooled) = (config.joint_attention_dim as u64, config.pooled_projection_dim as u64);
    let other_parameters = 2 * patch * h + joint * h + (pooled + 256 + 4 * h) * h;
    let mut spec = base(config, Family::StableDiffusion3, TextStream::Joint);
    spec.text_tokens = 333;
    Description {
        name: "Stable Diffusion 3".into(),
        size: edge(config.sample_size, 8),
        spec,
        work: ModelWork {
            blocks,
            embed: patch * h,
            project: patch * h,
            other_parameters,
            frames: 1,
        },
        text_encoder: t5_xxl(),
        decoder: DecoderWork::of_autoencoder_kl(&[128, 256, 512, 512], 2, 16, true),
        guided: true,
        runs: false,
    }
}

pub(super) fn flux(config: &Config) -> Description {
    let h = config.hidden();
    let single = BlockWork {
        qkv: 3 * h * h,
        out: 9 * h * h,
        text_qkv: 3 * h * h,
        text_out: 9 * h * h,
        cross_attention: false,
        parameters: 15 * h * h,
    };
    let mut blocks = vec![two_streams(h); config.num_layers];
    blocks.extend(vec![single; config.num_single_layers]);
    let channels = config.in_channels as u64;
    let (joint, pooled) = (config.joint_attention_dim as u64, config.pooled_projection_dim as u64);
    let other_parameters = 2 * channels * h + joint * h + (pooled + 2 * 256 + 5 * h) * h;
    let mut spec = base(config, Family::Flux, TextStream::Joint);
    // The pipeline packs 2 x 2 latent pixels into the channels before the transformer.
    spec.patch_size = 2;
    spec.latent_channels = config.in_channels / 4;
    spec.sample_size = 128;
    spec.text_tokens = 512;
    Description {
        name: "FLUX.1".into(),
        size: (1024, 1024),
        spec,
        work: ModelWork {
            blocks,
            embed: channels * h,
            project: channels * h,
            other_parameters,
            frames: 1,
        },
        text_encoder: t5_xxl(),
        decoder: DecoderWork::of_autoencoder_kl(&[128, 256, 512, 512], 2, 16, true),
        guided: false,
        runs: false,
    }
}

pub(super) fn cogvideox(config: &Config) -> Description {
    let (h, time) = (config.hidden(), config.time_embed_dim as u64);
    let block = BlockWork {
        qkv: 3 * h * h,
        out: 9 * h * h,
        text_qkv: 3 * h * h,
        text_out: 9 * h * h,
        cross_attention: false,
        parameters: 12 * h * h + 12 * time * h,
    };
    let patch = (config.patch_size * config.patch_size * config.in_channels) as u64;
    let other_parameters = 2 * patch * h + config.text_embed_dim as u64 * h + (h + time) * time;
    let mut spec = base(config, Family::CogVideoX, TextStream::Joint);
    spec.caption_channels = config.text_embed_dim;
    spec.text_tokens = config.max_text_seq_length;
    spec.sample_size = config.sample_height;
    let (height, width) = (8 * config.sample_height as u32, 8 * config.sample_width as u32);
    let frames = config.sample_frames.saturating_sub(1) / config.temporal_compression_ratio + 1;
    Description {
        name: "CogVideoX".into(),
        size: (height, width),
        spec,
        work: ModelWork {
            blocks: vec![block; config.num_layers],
            embed: patch * h,
            project: patch * h,
            other_parameters,
            frames,
        },
        text_encoder: t5_xxl(),
        // Its VAE is a causal 3-D one that is not described here.
        decoder: DecoderWork::default(),
        guided: true,
        runs: false,
    }
}

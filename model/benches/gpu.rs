//! Times PixArt blocks on a GPU: a whole stack of them at the sizes of PixArt-XL/2, in f32 and
//! bf16.
//!
//! `cargo bench --profile dev --features cuda -p ditmesh-model --bench gpu`
//!
//! Prints one line of JSON for each case: median, least and most milliseconds of a forward pass of
//! all blocks, for `model/benches/torch_gpu.py` to be compared with on the same machine.
#![allow(clippy::print_stdout, clippy::expect_used, missing_docs)]

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("built without the feature `cuda`");
}

#[cfg(feature = "cuda")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    gpu::main()
}

#[cfg(feature = "cuda")]
mod gpu {
    use std::collections::HashMap;
    use std::time::Instant;

    use candle_core::{DType, Device, Tensor, safetensors};
    use ditmesh_model::attention::{Precision, attention_in};
    use ditmesh_model::checkpoint::Weights;
    use ditmesh_model::conditioning::{Conditioning, LatentGrid};
    use ditmesh_model::spec::ModelId;
    use ditmesh_model::transformer::pixart::{PixArtConfig, PixArtTransformer2DModel};
    use ditmesh_model::transformer::{Activation, ForwardPass, Transformer};

    /// Blocks of the stack, batch rows (both guidance branches), text tokens.
    const BLOCKS: usize = 28;
    const BATCH: usize = 2;
    const TEXT: usize = 120;
    const CAPTIONS: usize = 64;
    const ROUNDS: usize = 15;
    const HIDDEN: usize = 1152;
    const HEADS: usize = 16;

    pub(super) fn main() -> Result<(), Box<dyn std::error::Error>> {
        let device = ditmesh_model::cuda::open(0)?;
        for side in [32, 64] {
            for (name, dtype, precision) in
                [("f32", DType::F32, Precision::Full), ("bf16", DType::BF16, Precision::Half)]
            {
                let times = stack(&device, side, dtype, precision)?;
                let tokens = side * side;
                println!(
                    "{{\"case\":\"stack-{BLOCKS}x{HIDDEN}x{HEADS}x{tokens}x{TEXT}\",\
                     \"dtype\":\"{name}\",\"ms\":{:.2},\"least\":{:.2},\"most\":{:.2}}}",
                    times[ROUNDS / 2],
                    times[0],
                    times[ROUNDS - 1]
                );
            }
        }
        Ok(())
    }

    /// Milliseconds of a pass through all blocks, ascending.
    fn stack(
        device: &Device,
        side: usize,
        dtype: DType,
        precision: Precision,
    ) -> Result<Vec<f64>, Box<dyn std::error::Error>> {
        let mut pass = pass(device, side, dtype)?;
        pass.set_timestep(500.0)?;
        let x = Tensor::randn(0f32, 1.0, (BATCH, side * side, HIDDEN), device)?;
        let scale = 1.0 / ((HIDDEN / HEADS) as f64).sqrt();
        let mut times = Vec::new();
        for round in 0..ROUNDS + 3 {
            device.synchronize()?;
            let started = Instant::now();
            let mut x = Activation { image: x.clone(), text: None };
            for block in 0..BLOCKS {
                let qkv = pass.project_qkv(block, &x)?;
                let out = attention_in(precision, &qkv.q, &qkv.k, &qkv.v, scale, None)?.out;
                x = pass.project_out(block, x, out)?;
            }
            device.synchronize()?;
            if round >= 3 {
                times.push(started.elapsed().as_secs_f64() * 1e3);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    }

    fn pass(
        device: &Device,
        side: usize,
        dtype: DType,
    ) -> Result<Box<dyn ForwardPass>, Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let config = serde_json::json!({
            "_class_name": "PixArtTransformer2DModel",
            "num_attention_heads": HEADS,
            "attention_head_dim": HIDDEN / HEADS,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": BLOCKS,
            "norm_num_groups": 32,
            "cross_attention_dim": HIDDEN,
            "attention_bias": true,
            "sample_size": 2 * side,
            "patch_size": 2,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": false,
            "norm_eps": 1e-6,
            "caption_channels": CAPTIONS,
            "use_additional_conditions": false
        });
        std::fs::write(folder.path().join("config.json"), config.to_string())?;
        let config = PixArtConfig::load(folder.path())?;
        let mut tensors = HashMap::new();
        for (name, shape) in config.tensors() {
            let value = (Tensor::randn(0f32, 1.0, shape.as_slice(), &Device::Cpu)? * 0.02)?;
            tensors.insert(name, value);
        }
        safetensors::save(&tensors, folder.path().join("diffusion_pytorch_model.safetensors"))?;
        let weights = Weights::open(folder.path(), "diffusion_pytorch_model")?;
        let model = PixArtTransformer2DModel::load(
            &weights,
            &config,
            config.spec(ModelId(1), dtype, 8, TEXT),
            0..BLOCKS,
            dtype,
            device,
        )?;
        let conditioning = Conditioning {
            embeds: Tensor::randn(0f32, 1.0, (BATCH, TEXT, CAPTIONS), device)?,
            mask: Tensor::ones((BATCH, TEXT), DType::F32, device)?,
            pooled: None,
        };
        let grid =
            LatentGrid { channels: 4, frames: 1, height: 2 * side, width: 2 * side, patch_size: 2 };
        Ok(model.begin(&conditioning, grid)?)
    }
}

//! Random models, pictures and meshes, and one device, against one process that knows no ranks:
//! what divides and what does not makes no difference. `DITMESH_TEST_SCALE=full` tries many.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use ditmesh_actors::plan::resolve;
use ditmesh_actors::request::GenerateRequest;
use ditmesh_model::pipeline::describe;
use proptest::prelude::*;

use crate::harness::{Golden, full, pipeline, relative, ring, run};
use crate::oracle;

/// Most ranks of a mesh.
const RANKS_MAX: usize = 16;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if full() { 150 } else { 5 },
        max_shrink_iters: 40,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_mesh_equals_one_process(
        (heads, blocks) in (1usize..=6, 1usize..=4),
        (rows, columns, text) in (2usize..=9, 1usize..=4, 1usize..=5),
        (cfg, stages, ulysses, rings) in (1u32..=2, 1u32..=3, 1u32..=4, 1u32..=4),
        (patches, sync_steps, sync_every) in (1u32..=4, 1u32..=2, 0u32..=3),
        seed in any::<u64>(),
    ) {
        let mesh = ring(cfg, stages, ulysses, rings);
        let folder = tempfile::tempdir().unwrap();
        let golden = case(folder.path(), &mut Random(seed), [heads, blocks], [rows, columns, text]);
        let request = GenerateRequest {
            num_inference_steps: 4,
            num_pipeline_patch: Some(patches),
            sync_steps,
            sync_every,
            ..golden.request(2)
        };
        let spec = describe(&golden.dir, candle_core::DType::F32).unwrap();
        let planned = resolve::resolve(&request, &spec, mesh).is_ok();
        prop_assume!(planned && mesh.world_size() <= RANKS_MAX);
        let expected = oracle::expected(&golden, &request);
        let error = relative(run(&golden.dir, mesh, &request).latents(), &expected);
        let alone = relative(run(&golden.dir, ring(1, 1, 1, 1), &request).latents(), &expected);
        println!("{mesh}, {heads} heads, {rows} rows, M {patches}: {error:.2e}");
        prop_assert!(error <= 1e-5, "{error:e}");
        prop_assert!(alone <= 1e-5, "one device: {alone:e}");
    }
}

/// The tensors of a case on a random model that is written to `dir`.
fn case(
    dir: &Path,
    random: &mut Random,
    [heads, blocks]: [usize; 2],
    [rows, columns, text]: [usize; 3],
) -> Golden {
    copy(&pipeline("sigma_8x8"), dir);
    let path = dir.join("transformer/config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let hidden = heads * 8;
    for (key, value) in [
        ("num_attention_heads", heads),
        ("attention_head_dim", 8),
        ("num_layers", blocks),
        ("cross_attention_dim", hidden),
    ] {
        config[key] = value.into();
    }
    std::fs::write(path, config.to_string()).unwrap();
    let weights: HashMap<String, Tensor> = weights(hidden, blocks)
        .into_iter()
        .map(|(name, shape, deviation)| (name, random.normal(&shape, deviation)))
        .collect();
    let path = dir.join("transformer/diffusion_pytorch_model.safetensors");
    candle_core::safetensors::save(&weights, path).unwrap();
    let mask = Tensor::ones((1, text), candle_core::DType::F32, &Device::Cpu).unwrap();
    let tensors = [
        ("latents", random.normal(&[1, 4, rows * 2, columns * 2], 1.0)),
        ("prompt_embeds", random.normal(&[1, text, 24], 1.0)),
        ("negative_prompt_embeds", random.normal(&[1, text, 24], 1.0)),
        ("prompt_attention_mask", mask.clone()),
        ("negative_prompt_attention_mask", mask),
    ];
    let tensors = tensors.map(|(name, tensor)| (name.to_owned(), tensor)).into();
    Golden { dir: dir.to_owned(), tensors, noise: 0.0 }
}

/// Names, shapes and deviations of the transformer's tensors.
fn weights(hidden: usize, blocks: usize) -> Vec<(String, Vec<usize>, f32)> {
    let mut all = Vec::new();
    let mut linear = |name: String, input: usize, output: usize, deviation: f32| {
        all.push((format!("{name}.weight"), vec![output, input], deviation));
        all.push((format!("{name}.bias"), vec![output], deviation));
    };
    for block in (0..blocks).map(|index| format!("transformer_blocks.{index}")) {
        for attention in ["attn1", "attn2"] {
            for part in ["to_q", "to_k", "to_v", "to_out.0"] {
                linear(format!("{block}.{attention}.{part}"), hidden, hidden, 0.2);
            }
        }
        linear(format!("{block}.ff.net.0.proj"), hidden, 4 * hidden, 0.15);
        linear(format!("{block}.ff.net.2"), 4 * hidden, hidden, 0.15);
    }
    linear("caption_projection.linear_1".into(), 24, hidden, 0.15);
    linear("caption_projection.linear_2".into(), hidden, hidden, 0.15);
    linear("adaln_single.linear".into(), hidden, 6 * hidden, 0.05);
    linear("adaln_single.emb.timestep_embedder.linear_1".into(), 256, hidden, 0.05);
    linear("adaln_single.emb.timestep_embedder.linear_2".into(), hidden, hidden, 0.05);
    linear("proj_out".into(), hidden, 2 * 2 * 8, 0.15);
    let tables =
        (0..blocks).map(|index| (format!("transformer_blocks.{index}.scale_shift_table"), 6));
    let tables = tables.chain([("scale_shift_table".to_owned(), 2)]);
    let tables = tables.map(|(name, rows)| (name, vec![rows, hidden], 0.3));
    all.extend(tables.collect::<Vec<_>>());
    all.push(("pos_embed.proj.weight".into(), vec![hidden, 4, 2, 2], 0.15));
    all.push(("pos_embed.proj.bias".into(), vec![hidden], 0.15));
    all
}

/// A linear congruential generator; nearly normal numbers are sums of twelve of its values.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    fn normal(&mut self, shape: &[usize], deviation: f32) -> Tensor {
        let count: usize = shape.iter().product();
        let one = |_| ((0..12).map(|_| self.uniform()).sum::<f32>() - 6.0) * deviation;
        let values: Vec<f32> = (0..count).map(one).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

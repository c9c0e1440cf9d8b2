//! The PixArt transformer against diffusers: hidden states block by block and the output.

use candle_core::{DType, Device, Tensor};
use ditmesh_model::attention::attention;
use ditmesh_model::checkpoint::Weights;
use ditmesh_model::conditioning::{Conditioning, LatentGrid};
use ditmesh_model::error::ModelError;
use ditmesh_model::guidance;
use ditmesh_model::rows::{RowSet, strips};
use ditmesh_model::scheduler::{self, Scheduler};
use ditmesh_model::spec::ModelId;
use ditmesh_model::transformer::pixart::{PixArtConfig, PixArtTransformer2DModel};
use ditmesh_model::transformer::{Activation, ForwardPass, Transformer};

use crate::fixture::{self, Outcome, Tensors, assert_close, relative_error};

const NAMES: [&str; 2] = ["pixart_alpha", "pixart_sigma"];

struct Fixture {
    weights: Weights,
    config: PixArtConfig,
    io: Tensors,
}

impl Fixture {
    fn open(name: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let component = fixture::path(&format!("transformers/{name}/transformer"));
        Ok(Self {
            weights: Weights::open(&component, "diffusion_pytorch_model")?,
            config: PixArtConfig::load(&component)?,
            io: Tensors::load(&format!("transformers/{name}/io.safetensors"))?,
        })
    }

    fn io(&self, name: &str) -> Tensor {
        self.io.get(name).expect("fixture has the tensor")
    }

    /// The latents as `[B, C, 1, H, W]`.
    fn latents(&self) -> Tensor {
        self.io("in.hidden_states").unsqueeze(2).expect("latents")
    }

    fn grid(&self) -> LatentGrid {
        let (_, channels, frames, height, width) = self.latents().dims5().expect("latents");
        LatentGrid { channels, frames, height, width, patch_size: self.config.patch_size }
    }

    fn load(&self, blocks: std::ops::Range<usize>, dtype: DType) -> PixArtTransformer2DModel {
        // The fixture's picture is given in pixels; the engine derives them from the latent.
        let factor = match self.io.get("in.resolution") {
            Ok(pixels) => {
                let height = pixels.to_vec2::<f32>().expect("resolution")[0][0];
                height as usize / self.grid().height
            }
            Err(_) => 8,
        };
        let spec = self.config.spec(ModelId(1), dtype, factor, 7);
        let (weights, config) = (&self.weights, &self.config);
        PixArtTransformer2DModel::load(weights, config, spec, blocks, dtype, &Device::Cpu)
            .expect("fixture loads")
    }

    fn all_blocks(&self) -> std::ops::Range<usize> {
        0..self.config.num_layers
    }

    /// The text of batch rows `row .. row + count`.
    fn text(&self, row: usize, count: usize) -> Result<Conditioning, ModelError> {
        let mask = self.io("in.encoder_attention_mask").to_dtype(DType::F32)?;
        Ok(Conditioning {
            embeds: self.io("in.encoder_hidden_states").narrow(0, row, count)?,
            mask: mask.narrow(0, row, count)?,
            pooled: None,
        })
    }
}

fn error(a: &Tensor, b: &Tensor) -> f64 {
    relative_error(a, b).expect("equal shapes")
}

/// One block with attention among its own tokens.
fn run_block(
    pass: &dyn ForwardPass,
    block: usize,
    head_dim: usize,
    x: Activation,
) -> Result<Activation, ModelError> {
    let qkv = pass.project_qkv(block, &x)?;
    let scale = 1.0 / (head_dim as f64).sqrt();
    let attended = attention(&qkv.q, &qkv.k, &qkv.v, scale, None)?.out;
    pass.project_out(block, x, attended)
}

/// A whole forward pass on one partition that holds every block.
fn forward(
    model: &PixArtTransformer2DModel,
    text: &Conditioning,
    grid: LatentGrid,
    timestep: f64,
    latents: &Tensor,
) -> Result<Tensor, ModelError> {
    let mut pass = model.begin(text, grid)?;
    pass.set_timestep(timestep)?;
    let rows = RowSet::all(grid.token_rows());
    let mut x = pass.embed(latents, &rows)?;
    for block in model.blocks() {
        x = run_block(pass.as_ref(), block, model.spec().head_dim, x)?;
    }
    pass.project_noise(&x, &rows)
}

#[test]
fn every_block_and_the_output_equal_diffusers() -> Outcome {
    for name in NAMES {
        let fixture = Fixture::open(name)?;
        let model = fixture.load(fixture.all_blocks(), DType::F32);
        let timesteps = fixture.io("in.timestep").to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let rows = RowSet::all(fixture.grid().token_rows());
        for (row, &timestep) in timesteps.iter().enumerate() {
            let hook = |name: &str| fixture.io(&format!("hook.{name}.0")).narrow(0, row, 1);
            let mut pass = model.begin(&fixture.text(row, 1)?, fixture.grid())?;
            pass.set_timestep(timestep)?;
            let mut x = pass.embed(&fixture.latents().narrow(0, row, 1)?, &rows)?;
            let check = |part: &str, x: &Tensor, reference: &Tensor| {
                assert_close(&format!("{name} row {row} {part}"), x, reference, 1e-5)
            };
            check("pos_embed", &x.image, &hook("pos_embed")?)?;
            for block in model.blocks() {
                x = run_block(pass.as_ref(), block, fixture.config.attention_head_dim, x)?;
                let part = format!("transformer_blocks.{block}");
                check(&part, &x.image, &hook(&part)?)?;
            }
            let noise = pass.project_noise(&x, &rows)?.squeeze(2)?;
            let sample = fixture.io("out.sample").narrow(0, row, 1)?;
            check("output", &noise, &sample.narrow(1, 0, fixture.grid().channels)?)?;
        }
    }
    Ok(())
}

#[test]
fn latents_after_eight_guided_steps_equal_diffusers() -> Outcome {
    for pipeline in ["sigma_8x8", "sigma_4x5", "alpha_6x4"] {
        let meta = fixture::json(&format!("cases/{pipeline}/meta.json"))?;
        let factor = meta["vae_scale_factor"].as_u64().ok_or("vae_scale_factor")? as usize;
        let dir = fixture::path(&format!("pipelines/{pipeline}/transformer"));
        let weights = Weights::open(&dir, "diffusion_pytorch_model")?;
        let config = PixArtConfig::load(&dir)?;
        let spec = config.spec(ModelId(1), DType::F32, factor, 300);
        let blocks = 0..config.num_layers;
        let model = PixArtTransformer2DModel::load(
            &weights,
            &config,
            spec,
            blocks,
            DType::F32,
            &Device::Cpu,
        )?;
        for case in ["square", "tall", "wide", "ddim"] {
            let scheduler = match case {
                "ddim" => fixture::path(&format!("cases/{pipeline}/ddim_scheduler")),
                _ => fixture::path(&format!("pipelines/{pipeline}/scheduler")),
            };
            let io = Tensors::load(&format!("cases/{pipeline}/{case}.safetensors"))?;
            let scheduler = scheduler::load(&scheduler, 8, None)?;
            let latents = guided(&model, scheduler.as_ref(), &io)?;
            assert_close(&format!("{pipeline} {case}"), &latents, &io.get("out.latents")?, 1e-5)?;
        }
    }
    Ok(())
}

/// Runs all steps of `scheduler` at guidance 4.5, both branches in one batch; `[1, C, H, W]`.
fn guided(
    model: &PixArtTransformer2DModel,
    scheduler: &dyn Scheduler,
    io: &Tensors,
) -> Result<Tensor, Box<dyn std::error::Error>> {
    let both = |name: &str| -> Result<Tensor, Box<dyn std::error::Error>> {
        let rows = [io.get(&format!("negative_{name}"))?, io.get(name)?];
        Ok(Tensor::cat(&rows, 0)?.to_dtype(DType::F32)?)
    };
    let (embeds, mask) = (both("prompt_embeds")?, both("prompt_attention_mask")?);
    let mut latents = io.get("latents")?.unsqueeze(2)?;
    let (_, channels, frames, height, width) = latents.dims5()?;
    let patch_size = model.spec().patch_size;
    let grid = LatentGrid { channels, frames, height, width, patch_size };
    let text = Conditioning { embeds, mask, pooled: None };
    let mut state = scheduler.new_state();
    for (step, &timestep) in scheduler.timesteps().iter().enumerate() {
        let input = scheduler.scale_model_input(&latents, step)?;
        let noise = forward(model, &text, grid, timestep, &Tensor::cat(&[&input, &input], 0)?)?;
        let (uncond, cond) = (noise.narrow(0, 0, 1)?, noise.narrow(0, 1, 1)?);
        let noise = guidance::combine(&uncond, &cond, 4.5)?;
        latents = scheduler.step(&mut state, step, &noise, &latents)?;
    }
    Ok(latents.squeeze(2)?)
}

#[test]
fn a_batch_of_branches_equals_the_branches_alone() -> Outcome {
    let fixture = Fixture::open("pixart_alpha")?;
    let model = fixture.load(fixture.all_blocks(), DType::F32);
    let (grid, latents) = (fixture.grid(), fixture.latents());
    let both = forward(&model, &fixture.text(0, 2)?, grid, 500.5, &latents)?;
    for row in 0..2 {
        let alone = latents.narrow(0, row, 1)?;
        let alone = forward(&model, &fixture.text(row, 1)?, grid, 500.5, &alone)?;
        assert!(error(&both.narrow(0, row, 1)?, &alone) < 1e-6);
    }
    Ok(())
}

#[test]
fn partitions_chained_equal_the_whole_and_read_only_their_tensors() -> Outcome {
    for name in NAMES {
        let fixture = Fixture::open(name)?;
        let (grid, latents, text) = (fixture.grid(), fixture.latents(), fixture.text(0, 2)?);
        let whole = fixture.load(fixture.all_blocks(), DType::F32);
        let want = forward(&whole, &text, grid, 321.0, &latents)?;
        let layers = fixture.config.num_layers;
        let parts = [fixture.load(0..1, DType::F32), fixture.load(1..layers, DType::F32)];
        let rows = RowSet::all(grid.token_rows());
        let mut x = None;
        for part in &parts {
            let mut pass = part.begin(&text, grid)?;
            pass.set_timestep(321.0)?;
            let mut hidden = match x.take() {
                Some(hidden) => hidden,
                None => pass.embed(&latents, &rows)?,
            };
            for block in part.blocks() {
                hidden = run_block(pass.as_ref(), block, part.spec().head_dim, hidden)?;
            }
            if part.blocks().end == layers {
                let noise = pass.project_noise(&hidden, &rows)?;
                assert_eq!(error(&noise, &want), 0.0, "{name}");
                assert!(pass.embed(&latents, &rows).is_err(), "holds no patch embedding");
                assert!(run_block(pass.as_ref(), 0, 8, hidden).is_err(), "holds no block 0");
            } else {
                assert!(pass.project_noise(&hidden, &rows).is_err(), "holds no final layer");
                x = Some(hidden);
            }
        }
        let spec = whole.spec();
        let total = spec.block_bytes * layers as u64 + spec.other_bytes;
        assert_eq!(whole.bytes_read(), total, "{name}");
        let read = parts.each_ref().map(Transformer::bytes_read);
        assert!(read[0] < total - spec.block_bytes * (layers as u64 - 1), "{name} {read:?}");
        assert!(read[0] > spec.block_bytes && read[1] < total, "{name} {read:?}");
    }
    Ok(())
}

#[test]
fn any_rows_can_be_embedded_and_projected_alone() -> Outcome {
    let fixture = Fixture::open("pixart_sigma")?;
    let model = fixture.load(fixture.all_blocks(), DType::F32);
    let (grid, latents) = (fixture.grid(), fixture.latents());
    let mut pass = model.begin(&fixture.text(0, 2)?, grid)?;
    pass.set_timestep(40.0)?;
    let all = RowSet::all(grid.token_rows());
    let whole = pass.embed(&latents, &all)?;
    let noise = pass.project_noise(&whole, &all)?;
    let per_row = grid.tokens_per_row();
    for index in 0..2 {
        let some = RowSet::of_rank(&strips(grid.token_rows(), 2), index, 2);
        let pick = |tensor: &Tensor, axis: usize, unit: usize| {
            let parts = some.ranges().iter();
            let parts = parts.map(|r| tensor.narrow(axis, r.start * unit, r.len() * unit));
            Tensor::cat(&parts.collect::<Result<Vec<_>, _>>()?, axis)
        };
        let part = pass.embed(&pick(&latents, 3, grid.patch_size)?, &some)?;
        assert!(error(&part.image, &pick(&whole.image, 1, per_row)?) < 1e-6);
        let part = pass.project_noise(&part, &some)?;
        assert!(error(&part, &pick(&noise, 3, grid.patch_size)?) < 1e-6);
    }
    let beyond = RowSet::all(grid.token_rows() + 1);
    assert!(pass.embed(&latents, &beyond).is_err() && pass.project_noise(&whole, &beyond).is_err());
    Ok(())
}

#[test]
fn half_precision_weights_stay_close() -> Outcome {
    let fixture = Fixture::open("pixart_alpha")?;
    let (grid, latents, text) = (fixture.grid(), fixture.latents(), fixture.text(0, 2)?);
    let run =
        |dtype| forward(&fixture.load(fixture.all_blocks(), dtype), &text, grid, 99.0, &latents);
    let single = run(DType::F32)?;
    for (dtype, bound) in [(DType::F16, 5e-3), (DType::BF16, 4e-2)] {
        let gap = error(&run(dtype)?, &single);
        assert!(gap > 0.0 && gap < bound, "{dtype:?} is off by {gap:e}");
    }
    Ok(())
}

#[test]
fn wrong_inputs_are_errors_that_name_what_was_expected() -> Outcome {
    let fixture = Fixture::open("pixart_sigma")?;
    let model = fixture.load(fixture.all_blocks(), DType::F32);
    let text = fixture.text(0, 2)?;
    let odd = LatentGrid { height: 5, ..fixture.grid() };
    let message = |grid, text: &Conditioning| match model.begin(text, grid) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    };
    assert!(message(odd, &text).contains("patches of 2"));
    let narrow = Conditioning { embeds: text.embeds.narrow(2, 0, 3)?, ..text.clone() };
    assert!(message(fixture.grid(), &narrow).contains("expected [B, L, "));
    let pass = model.begin(&text, fixture.grid())?;
    let all = RowSet::all(fixture.grid().token_rows());
    let x = pass.embed(&fixture.latents(), &all)?;
    let error = pass.project_qkv(0, &x).err().map(|error| error.to_string());
    assert_eq!(error.as_deref(), Some("no timestep was set"));
    let one = fixture.latents().narrow(0, 0, 1)?;
    assert!(pass.embed(&one, &all).is_err(), "a batch of 1 in a run of 2");
    let spec = model.spec().clone();
    let (weights, config) = (&fixture.weights, &fixture.config);
    let loaded =
        PixArtTransformer2DModel::load(weights, config, spec, 1..9, DType::F32, &Device::Cpu);
    assert!(loaded.expect_err("9 blocks").to_string().contains("1..9"));
    Ok(())
}

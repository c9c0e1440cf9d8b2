//! PipeFusion in one process, written without the planner, the executor or the KV cache: the rule
//! of algorithm and nothing else. Rows of patches up to the current one are of this step, rows
//! after it one step old; the noise scheduler runs once per step over the whole latent.

use candle_core::{Device, Tensor};
use ditmesh_actors::request::{FloatTensor, GenerateRequest, StepCache, Wire, WireDtype};
use ditmesh_model::attention::attention;
use ditmesh_model::conditioning::{Conditioning, LatentGrid};
use ditmesh_model::guidance;
use ditmesh_model::pipeline::{LoadedParts, Parts, describe};
use ditmesh_model::rows::RowSet;
use ditmesh_model::transformer::ForwardPass;
use ditmesh_transport::codec;

use crate::harness::Golden;

/// What the oracle computes.
pub struct Case<'a> {
    pub dir: &'a std::path::Path,
    /// `[2, L, D]`, unconditional first.
    pub embeds: &'a Tensor,
    /// `[2, L]`.
    pub mask: &'a Tensor,
    /// `[1, C, 1, H, W]`.
    pub latents: &'a Tensor,
    pub steps: usize,
    pub guidance_scale: f64,
    pub patches: usize,
    pub sync_steps: usize,
    pub sync_every: usize,
    pub step_cache: Option<StepCache>,
    pub wire: Wire,
    /// The block before which hidden states cross from one stage to the next.
    pub cut: Option<usize>,
}

/// What the oracle found.
pub struct Found {
    pub latents: FloatTensor,
    /// Relative change of keys and values by step, mean over blocks.
    pub kv_change: Vec<Option<f64>>,
    /// Step and patch of every pass that was reused.
    pub reused: Vec<(u32, u32)>,
}

/// The oracle's latents for a golden case, with the patches and the sync steps of `request`.
pub fn expected(golden: &Golden, request: &GenerateRequest) -> FloatTensor {
    watched(golden, request).latents
}

/// As [`expected`], with hidden states that travel before block `cut`, and guidance branches apart,
/// in the bytes of `request`.
pub fn on_wire(golden: &Golden, request: &GenerateRequest, cut: usize) -> FloatTensor {
    find(golden, request, Some(cut)).latents
}

/// As [`expected`], with all the oracle knows.
pub fn watched(golden: &Golden, request: &GenerateRequest) -> Found {
    find(golden, request, None)
}

fn find(golden: &Golden, request: &GenerateRequest, cut: Option<usize>) -> Found {
    let tensor = |x: &FloatTensor| {
        Tensor::from_vec(x.data.clone(), x.shape.as_slice(), &Device::Cpu).unwrap()
    };
    let pair = |name: &str| {
        let negative = tensor(&golden.floats(&format!("negative_{name}")));
        Tensor::cat(&[negative, tensor(&golden.floats(name))], 0).unwrap()
    };
    let latents = golden.floats("latents");
    let (x, kv_change, reused) = run(&Case {
        dir: &golden.dir,
        embeds: &pair("prompt_embeds"),
        mask: &pair("prompt_attention_mask"),
        latents: &tensor(&latents).unsqueeze(2).unwrap(),
        steps: request.num_inference_steps as usize,
        guidance_scale: f64::from(request.guidance_scale),
        patches: request.num_pipeline_patch.unwrap_or(1) as usize,
        sync_steps: request.sync_steps as usize,
        sync_every: request.sync_every as usize,
        step_cache: request.step_cache.clone(),
        wire: request.wire.unwrap_or_default(),
        cut,
    });
    let data = x.flatten_all().unwrap().to_vec1().unwrap();
    Found { latents: FloatTensor { shape: latents.shape, data }, kv_change, reused }
}

/// Final latents `[1, C, 1, H, W]`, and what else is in [`Found`].
fn run(case: &Case<'_>) -> (Tensor, Vec<Option<f64>>, Vec<(u32, u32)>) {
    let spec = describe(case.dir, candle_core::DType::F32).unwrap();
    let parts = Parts { blocks: 0..spec.blocks, text_encoder: None, vae: false };
    let loaded =
        LoadedParts::load(case.dir, candle_core::DType::F32, &parts, &Device::Cpu).unwrap();
    let (_, channels, frames, height, width) = case.latents.dims5().unwrap();
    let grid = LatentGrid { channels, frames, height, width, patch_size: spec.patch_size };
    let conditioning =
        Conditioning { embeds: case.embeds.clone(), mask: case.mask.clone(), pooled: None };
    let mut pass = loaded.transformer.begin(&conditioning, grid).unwrap();
    let scheduler = loaded.scheduler(case.steps).unwrap();
    let mut solver = scheduler.new_state();
    let mut x = (case.latents * scheduler.init_noise_sigma()).unwrap();
    let rows = grid.token_rows();
    let strip = rows.div_ceil(case.patches);
    let mut memory =
        Memory { kv: vec![None; spec.blocks], wire: (case.wire, case.cut), ..Memory::default() };
    let mut kv_change = Vec::new();
    for step in 0..case.steps {
        let before = memory.kv.clone();
        pass.set_timestep(scheduler.timesteps()[step]).unwrap();
        let cuts: Vec<(usize, usize)> = if case.patches == 1 || whole(case, step) {
            vec![(0, rows)]
        } else {
            (0..rows).step_by(strip).map(|start| (start, strip.min(rows - start))).collect()
        };
        let input = scheduler.scale_model_input(&x, step).unwrap();
        let may_reuse = step > 0 && (case.patches == 1 || !whole(case, step));
        let reusing = case.step_cache.as_ref().filter(|_| may_reuse);
        let mut predictions = Vec::new();
        for (index, &(start, len)) in cuts.iter().enumerate() {
            memory.at = (step as u32, index as u32);
            predictions.push(patch(pass.as_ref(), &input, start, len, grid, &mut memory, reusing));
        }
        let prediction = Tensor::cat(&predictions, 3).unwrap();
        let prediction = coded(&prediction, case.wire.cfg);
        let uncond = prediction.narrow(0, 0, 1).unwrap();
        let cond = prediction.narrow(0, 1, 1).unwrap();
        let guided = guidance::combine(&uncond, &cond, case.guidance_scale).unwrap();
        x = scheduler.step(&mut solver, step, &guided, &x).unwrap();
        let changes: Option<Vec<f64>> = memory
            .kv
            .iter()
            .zip(&before)
            .map(|(new, old)| change(new.as_ref()?, old.as_ref()?))
            .collect();
        kv_change.push(changes.map(|changes| changes.iter().sum::<f64>() / changes.len() as f64));
    }
    (x, kv_change, memory.reused)
}

/// What a step leaves for the next.
#[derive(Default)]
struct Memory {
    /// Keys and values of each block.
    kv: Vec<Option<(Tensor, Tensor)>>,
    /// What the first block and all others added to each token when it was computed last.
    residuals: Option<(Tensor, Tensor)>,
    /// Step and patch under way.
    at: (u32, u32),
    reused: Vec<(u32, u32)>,
    wire: (Wire, Option<usize>),
    /// What the second stage holds of the first one's hidden states.
    held: Option<Tensor>,
}

impl Memory {
    /// Hidden states of `count` tokens as the second stage gets them.
    fn cross(&mut self, image: &Tensor, first: usize, count: usize) -> Tensor {
        let wire = self.wire.0;
        if !wire.residual {
            return coded(image, wire.pipefusion);
        }
        let refreshed = self.at.0 == 0 || self.at.0.is_multiple_of(wire.refresh_every);
        let there = match &self.held {
            Some(held) if !refreshed => {
                let old = held.narrow(1, first, count).unwrap();
                (&old + coded(&(image - &old).unwrap(), wire.pipefusion)).unwrap()
            }
            _ => image.clone(),
        };
        self.held = Some(match self.held.take() {
            None => there.clone(),
            Some(held) => splice(&held, &there, first, count),
        });
        there
    }

    /// Whether the blocks after the first are left out, which added `fresh` to `count` tokens.
    fn reuses(&self, rule: &StepCache, fresh: &Tensor, first: usize, count: usize) -> bool {
        if let Some(replay) = &rule.replay {
            return replay.iter().any(|d| (d.step, d.patch) == self.at && d.reuse);
        }
        let (step, patch) = self.at;
        let in_a_row = (1..=step).take_while(|back| self.reused.contains(&(step - back, patch)));
        let old = self.residuals.as_ref().unwrap().0.narrow(1, first, count).unwrap();
        let l1 = |x: &Tensor| {
            let x = x.to_dtype(candle_core::DType::F64).unwrap().abs().unwrap();
            x.sum_all().unwrap().to_scalar::<f64>().unwrap()
        };
        let change = l1(&(fresh - &old).unwrap()) / l1(&old);
        change < f64::from(rule.threshold) && in_a_row.count() < rule.reuses_max as usize
    }
}

/// What comes out of `dtype` again.
fn coded(x: &Tensor, dtype: WireDtype) -> Tensor {
    let (row, dtype) = (*x.dims().last().unwrap(), dtype.payload());
    let mut floats: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
    let mut payload = vec![0; floats.len() / row * dtype.row_bytes(row)];
    codec::encode(dtype, row, &floats, &mut payload).unwrap();
    codec::decode(dtype, row, &payload, &mut floats).unwrap();
    Tensor::from_vec(floats, x.dims(), &Device::Cpu).unwrap()
}

/// `||new - old|| / ||old||` of keys and values together.
fn change(new: &(Tensor, Tensor), old: &(Tensor, Tensor)) -> Option<f64> {
    let both = |kv: &(Tensor, Tensor)| {
        Tensor::cat(&[&kv.0, &kv.1], 1).unwrap().to_dtype(candle_core::DType::F64).unwrap()
    };
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    Some(norm(&(both(new) - both(old)).unwrap()) / norm(&both(old)))
}

/// Whether a step is synchronous, counted out: the first ones, then each `sync_every`-th.
fn whole(case: &Case<'_>, step: usize) -> bool {
    let later = step.checked_sub(case.sync_steps).map(|after| after + 1);
    later.is_none_or(|nth| case.sync_every > 0 && nth % case.sync_every == 0)
}

/// One patch of one step through all blocks.
fn patch(
    pass: &dyn ForwardPass,
    x: &Tensor,
    start: usize,
    len: usize,
    grid: LatentGrid,
    memory: &mut Memory,
    reusing: Option<&StepCache>,
) -> Tensor {
    let rows = RowSet::range(start..start + len);
    let latent = x.narrow(3, start * grid.patch_size, len * grid.patch_size).unwrap();
    let latent = Tensor::cat(&[&latent, &latent], 0).unwrap();
    let mut hidden = pass.embed(&latent, &rows).unwrap();
    let (first, count) = (start * grid.tokens_per_row(), len * grid.tokens_per_row());
    let before = hidden.clone();
    let mut residual = None;
    for block in 0..memory.kv.len() {
        if block == 1 {
            let fresh = (&hidden.image - &before.image).unwrap();
            if reusing.is_some_and(|rule| memory.reuses(rule, &fresh, first, count)) {
                memory.reused.push(memory.at);
                let rest = &memory.residuals.as_ref().unwrap().1.narrow(1, first, count).unwrap();
                hidden.image = (&hidden.image + rest).unwrap();
                return pass.project_noise(&hidden, &rows).unwrap();
            }
            residual = Some((fresh, hidden.image.clone()));
        }
        if memory.wire.1 == Some(block) {
            hidden.image = memory.cross(&hidden.image, first, count);
        }
        let held = &mut memory.kv[block];
        let qkv = pass.project_qkv(block, &hidden).unwrap();
        let (k, v) = match held.take() {
            None => (qkv.k, qkv.v),
            Some((k, v)) => (splice(&k, &qkv.k, first, count), splice(&v, &qkv.v, first, count)),
        };
        let scale = 1.0 / (qkv.q.dim(3).unwrap() as f64).sqrt();
        let out = attention(&qkv.q, &k, &v, scale, None).unwrap();
        hidden = pass.project_out(block, hidden, out.out).unwrap();
        *held = Some((k, v));
    }
    if let Some((fresh, after)) = residual {
        let rest = (&hidden.image - after).unwrap();
        memory.residuals = Some(match memory.residuals.take() {
            None => (fresh, rest),
            Some(old) => {
                (splice(&old.0, &fresh, first, count), splice(&old.1, &rest, first, count))
            }
        });
    }
    pass.project_noise(&hidden, &rows).unwrap()
}

/// `old` with the tokens from `first` replaced by `new`.
fn splice(old: &Tensor, new: &Tensor, first: usize, count: usize) -> Tensor {
    let after = first + count;
    let total = old.dim(1).unwrap();
    let mut parts = Vec::new();
    if first > 0 {
        parts.push(old.narrow(1, 0, first).unwrap());
    }
    parts.push(new.clone());
    if after < total {
        parts.push(old.narrow(1, after, total - after).unwrap());
    }
    Tensor::cat(&parts, 1).unwrap().contiguous().unwrap()
}

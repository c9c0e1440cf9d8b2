//! From a request to a run: fills in every default and refuses what cannot be done.
//!
//! Owns the rules between request, model and degrees, and their messages: each names the two
//! things that disagree and says what would fit. Pure.

use ditmesh_model::conditioning::LatentGrid;
use ditmesh_model::rows::strips;
use ditmesh_model::spec::ModelSpec;
use thiserror::Error;

use super::batch;
use super::sequence::{self, RING_DEGREE_MAX};
use crate::parallel::step_cache;
use crate::parallel::vae;
use crate::parallel::vae::worth::{self, Pace};
use crate::protocol::{ImageSpec, RunSpec};
use crate::request::{Degrees, FloatTensor, GenerateRequest, OutputKind, PromptEmbeds};

/// Largest height or width in pixels.
pub const IMAGE_EDGE_PIXELS_MAX: u32 = 16_384;
/// Most denoising steps.
pub const INFERENCE_STEPS_MAX: u32 = 1_000;
/// Longest prompt and negative prompt together; both travel in one control message.
pub const PROMPT_BYTES_MAX: usize = 64 << 10;
/// Most text tokens of given embeddings.
pub const TEXT_TOKENS_MAX: usize = 4_096;

/// Why a request cannot be planned; all are the caller's to mend.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// Height or width.
    #[error(
        "{axis} {pixels} does not fit: it must be a multiple of {multiple} up to {max} ({hint})"
    )]
    Size {
        /// `height` or `width`.
        axis: &'static str,
        /// As asked.
        pixels: u32,
        /// VAE factor times patch size.
        multiple: u32,
        /// [`IMAGE_EDGE_PIXELS_MAX`].
        max: u32,
        /// The nearest size that fits.
        hint: String,
    },
    /// A degree against something of the model, the run or the cluster.
    #[error("{degree} {value} does not fit: {why}")]
    Degree {
        /// Its name.
        degree: &'static str,
        /// As asked.
        value: u32,
        /// What it disagrees with and what would fit.
        why: String,
    },
    /// Steps, sync steps, patches, guidance.
    #[error("{0}")]
    Value(String),
    /// A tensor given by the caller.
    #[error("{name} has shape {found:?}, expected {expected}")]
    Tensor {
        /// Which tensor.
        name: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// What the model takes.
        expected: String,
    },
}

/// Geometry of the latent of a picture of `height` x `width` pixels.
pub fn latent_grid(model: &ModelSpec, height: u32, width: u32) -> LatentGrid {
    LatentGrid {
        channels: model.latent_channels,
        frames: 1,
        height: height as usize / model.vae_scale_factor,
        width: width as usize / model.vae_scale_factor,
        patch_size: model.patch_size,
    }
}

/// Fills in the defaults of `request` for `model` on a mesh of `degrees`, and checks everything.
///
/// # Errors
/// [`PlanError`], each with what would fit.
pub fn resolve(
    request: &GenerateRequest,
    model: &ModelSpec,
    degrees: Degrees,
) -> Result<RunSpec, PlanError> {
    resolve_at(request, model, degrees, &Pace::unmeasured())
}

/// As [`resolve`], on devices and links of `pace`, which decides whether the picture is decoded in
/// bands where the request leaves it open.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_at(
    request: &GenerateRequest,
    model: &ModelSpec,
    degrees: Degrees,
    pace: &Pace,
) -> Result<RunSpec, PlanError> {
    if request.num_images_per_prompt != 1 {
        return Err(PlanError::Value(format!(
            "num_images_per_prompt {}: one run draws one picture of a request; deal the request \
             with `images` first",
            request.num_images_per_prompt
        )));
    }
    let edge = (model.sample_size * model.vae_scale_factor) as u32;
    let run = RunSpec {
        images: vec![ImageSpec {
            prompt: request.prompt.clone(),
            negative_prompt: request.negative_prompt.clone(),
            seed: request.seed,
        }],
        height: request.height.unwrap_or(edge),
        width: request.width.unwrap_or(edge),
        num_inference_steps: request.num_inference_steps,
        guidance_scale: request.guidance_scale,
        num_pipeline_patch: request.num_pipeline_patch.unwrap_or(degrees.pipefusion_degree),
        sync_steps: request.sync_steps,
        sync_every: request.sync_every,
        step_cache: request.step_cache.clone(),
        wire: request.wire.unwrap_or_default(),
        timeline: request.timeline,
        checkpoint_every: request.checkpoint_every.unwrap_or(0),
        first_step: 0,
        latent_output: request.output == OutputKind::Latent,
        vae_parallel: false,
        latents_given: request.latents.is_some(),
        embeds_tokens: match &request.prompt_embeds {
            Some(embeds) => Some(check_embeds(embeds, model, request.is_guided())?),
            None => None,
        },
    };
    check_run(&run, model, degrees)?;
    let run = RunSpec { vae_parallel: in_bands(request, &run, model, degrees, pace), ..run };
    if let Some(latents) = &request.latents {
        check_latents(latents, &latent_grid(model, run.height, run.width))?;
    }
    Ok(run)
}

/// Whether the picture is decoded in bands: as asked, or when that is faster.
fn in_bands(
    request: &GenerateRequest,
    run: &RunSpec,
    model: &ModelSpec,
    degrees: Degrees,
    pace: &Pace,
) -> bool {
    let ranks = degrees.world_size() / degrees.data_degree.max(1) as usize;
    let ranks = ranks.min(vae::DECODE_RANKS_MAX);
    let grid = latent_grid(model, run.height, run.width);
    let picture = worth::Decoding { vae: &model.vae, height: grid.height, width: grid.width };
    let faster = || worth::is_faster_in_parallel(picture, ranks, pace);
    !run.latent_output && ranks > 1 && request.vae_parallel.unwrap_or_else(faster)
}

/// Checks a resolved run against model and degrees.
///
/// # Errors
/// [`PlanError`].
pub fn check_run(run: &RunSpec, model: &ModelSpec, degrees: Degrees) -> Result<(), PlanError> {
    let multiple = (model.vae_scale_factor * model.patch_size) as u32;
    check_size("height", run.height, multiple)?;
    check_size("width", run.width, multiple)?;
    if !(1..=INFERENCE_STEPS_MAX).contains(&run.num_inference_steps) {
        return Err(PlanError::Value(format!(
            "num_inference_steps {} is outside 1..={INFERENCE_STEPS_MAX}",
            run.num_inference_steps
        )));
    }
    if !run.guidance_scale.is_finite() || run.guidance_scale < 0.0 {
        return Err(PlanError::Value(format!(
            "guidance_scale {} is not a number of 0 or more; 1 or less turns guidance off",
            run.guidance_scale
        )));
    }
    if run.first_step > run.num_inference_steps {
        return Err(PlanError::Value(format!(
            "a run of {} steps cannot go on from step {}",
            run.num_inference_steps, run.first_step
        )));
    }
    batch::check(run)?;
    let bytes = |image: &ImageSpec| image.prompt.len() + image.negative_prompt.len();
    let prompt_bytes = run.images.iter().map(bytes).max().unwrap_or(0);
    if prompt_bytes > PROMPT_BYTES_MAX {
        return Err(PlanError::Value(format!(
            "prompt and negative prompt have {prompt_bytes} bytes, at most {PROMPT_BYTES_MAX} are \
             taken (the model reads {} tokens)",
            model.text_tokens
        )));
    }
    if run.num_pipeline_patch == 0 {
        return Err(PlanError::Value("num_pipeline_patch 0: at least 1 patch is needed".into()));
    }
    if run.num_pipeline_patch > 1 && run.sync_steps == 0 {
        return Err(PlanError::Value(format!(
            "sync_steps 0 with num_pipeline_patch {}: the first step has no earlier keys and values \
             to read; give at least 1",
            run.num_pipeline_patch
        )));
    }
    let token_rows = latent_grid(model, run.height, run.width).token_rows();
    let patches = strips(token_rows, run.num_pipeline_patch as usize).len();
    step_cache::check(run, model.blocks, patches)?;
    run.wire.check().map_err(|why| PlanError::Value(why.into()))?;
    check_degrees(model, degrees, degrees.world_size())?;
    if degrees.cfg_degree == 2 && !run.is_guided() {
        return Err(PlanError::Degree {
            degree: "cfg_degree",
            value: 2,
            why: format!(
                "guidance_scale {} runs one branch; use cfg_degree 1 or a scale above 1",
                run.guidance_scale
            ),
        });
    }
    let rows = latent_grid(model, run.height, run.width).token_rows();
    sequence::check(&strips(rows, run.num_pipeline_patch as usize), model.heads, degrees)
}

/// Checks degrees against a model and a number of devices.
///
/// # Errors
/// [`PlanError::Degree`].
pub fn check_degrees(model: &ModelSpec, degrees: Degrees, devices: usize) -> Result<(), PlanError> {
    let refuse = |degree, value, why: String| Err(PlanError::Degree { degree, value, why });
    let named = [
        ("cfg_degree", degrees.cfg_degree),
        ("pipefusion_degree", degrees.pipefusion_degree),
        ("ulysses_degree", degrees.ulysses_degree),
        ("ring_degree", degrees.ring_degree),
        ("data_degree", degrees.data_degree),
    ];
    for (degree, value) in named {
        if value == 0 {
            return refuse(degree, 0, "a degree is at least 1".into());
        }
    }
    if degrees.cfg_degree > 2 {
        let why = "guidance has two branches; 1 or 2 would fit".into();
        return refuse("cfg_degree", degrees.cfg_degree, why);
    }
    if degrees.ring_degree > RING_DEGREE_MAX {
        let why = format!("a ring has at most {RING_DEGREE_MAX} ranks");
        return refuse("ring_degree", degrees.ring_degree, why);
    }
    if degrees.pipefusion_degree as usize > model.blocks {
        let why = format!("the model has {0} blocks; at most {0} would fit", model.blocks);
        return refuse("pipefusion_degree", degrees.pipefusion_degree, why);
    }
    if degrees.world_size() > devices {
        return Err(PlanError::Value(format!(
            "{degrees} needs {} devices, {devices} are there; lower a degree or add devices",
            degrees.world_size()
        )));
    }
    Ok(())
}

fn check_size(axis: &'static str, pixels: u32, multiple: u32) -> Result<(), PlanError> {
    let max = IMAGE_EDGE_PIXELS_MAX;
    if pixels > 0 && pixels <= max && pixels.is_multiple_of(multiple) {
        return Ok(());
    }
    let below = (pixels.min(max) / multiple * multiple).max(multiple);
    let hint = match below + multiple {
        above if pixels > below && above <= max => format!("{below} or {above} would"),
        _ => format!("{below} would"),
    };
    Err(PlanError::Size { axis, pixels, multiple, max, hint })
}

fn check_latents(latents: &FloatTensor, grid: &LatentGrid) -> Result<(), PlanError> {
    let four = [1, grid.channels, grid.height, grid.width];
    let five = [1, grid.channels, grid.frames, grid.height, grid.width];
    let elements: usize = four.iter().product();
    if (latents.shape == four || latents.shape == five) && latents.data.len() == elements {
        return Ok(());
    }
    let expected = format!("{four:?} for this height and width");
    Err(PlanError::Tensor { name: "latents", found: latents.shape.clone(), expected })
}

/// Text tokens of the embeddings, when all of them agree.
fn check_embeds(embeds: &PromptEmbeds, model: &ModelSpec, guided: bool) -> Result<u32, PlanError> {
    let found = &embeds.prompt_embeds.shape;
    let expected = || format!("[1, tokens, {}]", model.caption_channels);
    let &[1, tokens, width] = found.as_slice() else {
        let (name, found) = ("prompt_embeds", found.clone());
        return Err(PlanError::Tensor { name, found, expected: expected() });
    };
    if width != model.caption_channels || tokens == 0 || tokens > TEXT_TOKENS_MAX {
        let (name, found) = ("prompt_embeds", found.clone());
        return Err(PlanError::Tensor { name, found, expected: expected() });
    }
    let same = |name, tensor: Option<&FloatTensor>, shape: &[usize]| match tensor {
        Some(tensor)
            if tensor.shape == shape && tensor.data.len() == shape.iter().product::<usize>() =>
        {
            Ok(())
        }
        Some(tensor) => Err(PlanError::Tensor {
            name,
            found: tensor.shape.clone(),
            expected: format!("{shape:?}, as prompt_embeds"),
        }),
        None => Err(PlanError::Value(format!("guidance needs {name} beside prompt_embeds"))),
    };
    same("prompt_embeds", Some(&embeds.prompt_embeds), &[1, tokens, width])?;
    same("prompt_attention_mask", Some(&embeds.prompt_attention_mask), &[1, tokens])?;
    if guided {
        let negative = embeds.negative_prompt_embeds.as_ref();
        same("negative_prompt_embeds", negative, &[1, tokens, width])?;
        let mask = embeds.negative_prompt_attention_mask.as_ref();
        same("negative_prompt_attention_mask", mask, &[1, tokens])?;
    }
    Ok(tokens as u32)
}

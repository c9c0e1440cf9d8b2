//! From arguments to requests, and to the manifest of an engine in this process.
//!
//! Owns the agreement between flags. What a model can do (sizes, heads, blocks) the engine says.

use std::path::{Path, PathBuf};

use ditmesh::manifest::{self, DegreesSetting, GroupSection, Manifest, Quality};
use ditmesh::{Degrees, GenerateRequest, ModelSource, StepCache, Wire, tensor_file};

use crate::cli::args::{GenerateArgs, StepCacheArg, SwitchArg};
use crate::cli::failure::Failure;

/// `--model` for the model that ships with the project.
const BUILT_IN: &str = "built-in";

/// One request per picture.
pub(crate) fn requests(args: &GenerateArgs) -> Result<Vec<GenerateRequest>, Failure> {
    let template = GenerateRequest {
        prompt: args.prompt.clone().unwrap_or_default(),
        negative_prompt: args.negative_prompt.clone(),
        height: args.height,
        width: args.width,
        num_inference_steps: args.num_inference_steps,
        guidance_scale: args.guidance_scale,
        seed: args.seed,
        num_images_per_prompt: args.num_images_per_prompt,
        degrees: degrees(args)?,
        num_pipeline_patch: args.num_pipeline_patch,
        sync_steps: args.sync_steps,
        sync_every: args.sync_every.unwrap_or(0),
        step_cache: args.step_cache.map(|StepCacheArg::FirstBlock| StepCache {
            threshold: args.step_cache_threshold,
            reuses_max: args.step_cache_reuses_max,
            replay: None,
        }),
        wire: args.wire.choice(),
        checkpoint_every: args.checkpoint_every,
        deadline_s: args.deadline,
        output: args.output_type.into(),
        vae_parallel: args.use_parallel_vae.and_then(SwitchArg::forced),
        latents: args.latents.as_deref().map(tensor_file::read_latents).transpose()?,
        prompt_embeds: args
            .prompt_embeds
            .as_deref()
            .map(tensor_file::read_prompt_embeds)
            .transpose()?,
        traceparent: None,
        timeline: args.trace.is_some(),
    };
    template.images().map_err(Failure::usage)
}

/// The manifest of `--cluster`, or one for this process.
pub(crate) fn manifest(args: &GenerateArgs) -> Result<Manifest, Failure> {
    if let Some(path) = &args.cluster {
        return Ok(manifest::parse::load(path)?);
    }
    let degrees = degrees(args)?;
    let devices = devices(args.devices, degrees)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.map_or((cores / devices).max(1), |threads| threads as usize);
    let mut manifest = Manifest::in_process(model(args.model.as_deref())?, devices, threads);
    for model in &mut manifest.models {
        model.dtype = args.dtype.map(Into::into).unwrap_or_default();
    }
    if let Some(model) = manifest.models.first() {
        let fixed = |degrees: Degrees| DegreesSetting::Fixed(degrees.into());
        manifest.groups = vec![GroupSection {
            model: model.name.clone(),
            nodes: Vec::new(),
            degrees: degrees.map_or(DegreesSetting::Auto, fixed),
            max_batch: 1,
            checkpoint_every: 1,
            wire: Wire::default(),
            quality: if args.exact { Quality::Exact } else { Quality::Any },
        }];
    }
    Ok(manifest)
}

fn model(path: Option<&Path>) -> Result<ModelSource, Failure> {
    let Some(path) = path.filter(|path| path.as_os_str() != BUILT_IN) else {
        return Ok(ModelSource::Builtin);
    };
    if !path.is_dir() {
        return Err(Failure::usage(format!(
            "--model {} is no folder; expected a diffusers pipeline folder, or {BUILT_IN}",
            path.display()
        )));
    }
    let path: PathBuf = std::path::absolute(path).map_err(Failure::usage)?;
    Ok(ModelSource::Folder(path))
}

/// The degrees, when any is given; the others are 1.
fn degrees(args: &GenerateArgs) -> Result<Option<Degrees>, Failure> {
    let given = [
        args.cfg_degree,
        args.pipefusion_degree,
        args.ulysses_degree,
        args.ring_degree,
        args.data_degree,
    ];
    if given.iter().all(Option::is_none) {
        return Ok(None);
    }
    let degrees = Degrees {
        cfg_degree: args.cfg_degree.unwrap_or(1),
        pipefusion_degree: args.pipefusion_degree.unwrap_or(1),
        ulysses_degree: args.ulysses_degree.unwrap_or(1),
        ring_degree: args.ring_degree.unwrap_or(1),
        data_degree: args.data_degree.unwrap_or(1),
    };
    Ok(Some(degrees))
}

/// How many devices: as given, or the product of the degrees.
fn devices(given: Option<u32>, degrees: Option<Degrees>) -> Result<usize, Failure> {
    let given = given.map(|devices| devices as usize);
    let Some(degrees) = degrees else { return Ok(given.unwrap_or(1)) };
    let product = degrees.world_size();
    match given {
        Some(devices) if devices != product => Err(Failure::usage(format!(
            "the degrees ({degrees}) make {product} devices, and --devices is {devices}; leave \
             --devices away, or give degrees whose product it is"
        ))),
        _ => Ok(product),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn args(line: &str) -> GenerateArgs {
        let words =
            ["ditmesh", "generate", "-p", "apple"].into_iter().chain(line.split_whitespace());
        match Cli::parse_from(words).command {
            Command::Generate(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_of_the_command_line_are_those_of_the_library() {
        assert_eq!(requests(&args("")).unwrap(), [GenerateRequest::new("apple")]);
    }

    #[test]
    fn pictures_have_seeds_in_sequence() {
        let seeds: Vec<u64> =
            requests(&args("-n 3 --seed 7")).unwrap().iter().map(|one| one.seed).collect();
        assert_eq!(seeds, [7, 8, 9]);
        assert!(requests(&args("-n 2 --seed 18446744073709551615")).is_err());
    }

    #[test]
    fn the_names_of_xdit_and_of_diffusers_are_both_known() {
        let request = &requests(&args("--steps 5 --warmup-steps 2")).unwrap()[0];
        assert_eq!((request.num_inference_steps, request.sync_steps), (5, 2));
        let request = &requests(&args("--num-inference-steps 5 --sync-steps 2")).unwrap()[0];
        assert_eq!((request.num_inference_steps, request.sync_steps), (5, 2));
    }

    #[test]
    fn activations_travel_as_the_cluster_says_or_as_the_call_does() {
        let wire = |line: &str| requests(&args(line)).unwrap()[0].wire;
        assert_eq!(wire(""), None);
        let int8 = wire("--wire-dtype ulysses=int8,pipefusion=int8 --wire-residual").unwrap();
        assert_eq!(int8.to_string(), "ulysses=int8,pipefusion=int8, residual, refreshed every 8");
        assert!(wire("--wire-dtype f32").unwrap().is_exact());
        let misspelt = ["ditmesh", "generate", "-p", "apple", "--wire-dtype", "int9"];
        let error = Cli::try_parse_from(misspelt).unwrap_err().to_string();
        assert!(error.contains("AXIS=TYPE"), "{error}");
    }

    #[test]
    fn a_step_now_and_then_can_be_synchronous() {
        assert_eq!(requests(&args("--sync-every 4")).unwrap()[0].sync_every, 4);
        assert_eq!(requests(&args("")).unwrap()[0].sync_every, 0);
    }

    #[test]
    fn a_step_cache_is_off_unless_asked_for() {
        let cache = |line| requests(&args(line)).unwrap()[0].step_cache.clone();
        assert_eq!(cache(""), None);
        assert_eq!(cache("--step-cache first-block"), Some(StepCache::default()));
        let asked = "--step-cache first-block --step-cache-threshold 0.2 --step-cache-reuses-max 1";
        let expected = StepCache { threshold: 0.2, reuses_max: 1, replay: None };
        assert_eq!(cache(asked), Some(expected));
    }

    #[test]
    fn degrees_make_the_number_of_devices() {
        let manifest = super::manifest(&args("--cfg-degree 2 --pipefusion-degree 2")).unwrap();
        assert_eq!(manifest.device_count(), 4);
        manifest::validate::validate(&manifest).unwrap();
        assert_eq!(super::manifest(&args("--devices 3")).unwrap().device_count(), 3);
        assert_eq!(super::manifest(&args("")).unwrap().device_count(), 1);
        let replicas = super::manifest(&args("--data-degree 2 --ulysses-degree 2")).unwrap();
        assert_eq!(replicas.device_count(), 4);
        manifest::validate::validate(&replicas).unwrap();
        let error = super::manifest(&args("--devices 3 --ulysses-degree 2")).unwrap_err();
        assert!(error.message.contains("make 2 devices, and --devices is 3"), "{}", error.message);
    }
}

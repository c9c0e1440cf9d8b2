//! `inspect`: reads back how a file was made.

use std::fmt::Write;
use std::path::Path;

use ditmesh::picture::{self, PNG_SIGNATURE};
use ditmesh::recipe::Recipe;
use ditmesh::{StepCache, tensor_file};
use serde_json::Value;

use super::args::InspectArgs;
use super::failure::Failure;
use super::terminal::Terminal;

/// Prints the recipe of a PNG or of a latents file.
pub(crate) fn run(args: &InspectArgs, terminal: &Terminal) -> Result<(), Failure> {
    let path = &args.file;
    let bytes = tensor_file::read(path).map_err(Failure::failed)?;
    let (recipe, parameters) = texts(path, &bytes)?;
    let Some(json) = recipe else {
        return match parameters {
            Some(text) if args.json => {
                terminal.result(&serde_json::json!({ "parameters": text }).to_string())
            }
            Some(text) => terminal.result(&text),
            None => Err(Failure::failed(format!(
                "{} carries no recipe; ditmesh did not write it, or a program removed its text",
                path.display()
            ))),
        };
    };
    let broken = |error| {
        Failure::failed(format!("the recipe in {} is not readable: {error}", path.display()))
    };
    if args.json {
        let value: Value = serde_json::from_str(&json).map_err(broken)?;
        return terminal.result(&serde_json::to_string_pretty(&value).map_err(Failure::failed)?);
    }
    terminal.result(&describe(&serde_json::from_str(&json).map_err(broken)?))
}

/// The JSON recipe and the `parameters` text, as far as they are there.
fn texts(path: &Path, bytes: &[u8]) -> Result<(Option<String>, Option<String>), Failure> {
    if bytes.starts_with(&PNG_SIGNATURE) {
        let texts = picture::read_texts(bytes)
            .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
        return Ok((texts.recipe, texts.parameters));
    }
    // A safetensors file: eight bytes of length, then a JSON object.
    if bytes.get(8) == Some(&b'{') {
        let recipe = tensor_file::read_recipe_text(path, bytes).map_err(Failure::failed)?;
        return Ok((recipe, None));
    }
    let message = format!("{} is neither a png nor a safetensors file", path.display());
    Err(Failure::failed(message))
}

fn cached(cache: &StepCache) -> String {
    let StepCache { threshold, reuses_max, .. } = cache;
    format!("first block, threshold {threshold}, at most {reuses_max} reuses in a row")
}

fn describe(recipe: &Recipe) -> String {
    let nonzero = |value: u32| if value > 0 { value.to_string() } else { String::new() };
    let given = |given: bool, text: &str| if given { text.to_owned() } else { String::new() };
    let size = match (recipe.width, recipe.height) {
        (Some(width), Some(height)) => format!("{width} x {height}"),
        _ => String::new(),
    };
    let model_id = recipe.model_id.as_ref().map_or(String::new(), |id| format!(" (id {id})"));
    let dtype = format!("{:?}", recipe.dtype).to_lowercase();
    let rows = [
        ("prompt", recipe.prompt.clone()),
        ("", given(recipe.prompt_embeds_given, "embeddings were given in place of a prompt")),
        ("negative prompt", recipe.negative_prompt.clone()),
        ("size", size),
        ("steps", recipe.num_inference_steps.to_string()),
        ("sampler", recipe.sampler.clone().unwrap_or_default()),
        ("guidance scale", recipe.guidance_scale.to_string()),
        ("seed", recipe.seed.to_string()),
        ("", given(recipe.latents_given, "initial latents were given in place of noise")),
        ("model", format!("{} in {dtype}{model_id}", recipe.model)),
        ("degrees", recipe.degrees.to_string()),
        ("pipeline patches", recipe.num_pipeline_patch.to_string()),
        ("sync steps", recipe.sync_steps.to_string()),
        ("sync every", nonzero(recipe.sync_every)),
        ("step cache", recipe.step_cache.as_ref().map_or(String::new(), cached)),
        ("wire", if recipe.wire.is_exact() { String::new() } else { recipe.wire.to_string() }),
        ("seconds", format!("{:.3}", recipe.seconds)),
        ("made by", recipe.version.clone()),
    ];
    let mut text = String::new();
    for (name, value) in rows.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(text, "{name:17} {}", value.replace('\n', "\n                  "));
    }
    text
}

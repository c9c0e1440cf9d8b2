//! How a picture was made: what it carries with it so that it can be made again.
//!
//! Owns the values and their two texts: JSON with everything, and the `parameters` line that web
//! UIs read and write. Does not own the files they are kept in.

use ditmesh_actors::request::{Degrees, Dtype, GenerateRequest, Report, StepCache, Wire};
use serde::{Deserialize, Serialize};

/// Keyword of the text chunk (or metadata entry) with the JSON recipe.
pub const RECIPE_KEYWORD: &str = "ditmesh";
/// Keyword of the text chunk as web UIs write it.
pub const PARAMETERS_KEYWORD: &str = "parameters";

/// Which model made a picture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelFacts {
    /// Folder name, or `built-in`.
    pub name: String,
    /// Digest of its files, in hexadecimal; `None` when they cannot be read from here.
    pub id: Option<String>,
    /// Its noise scheduler in the words of the web UIs (`DPM++ 2M`); `None` as above.
    pub sampler: Option<String>,
    /// Precision.
    pub dtype: Dtype,
}

/// Everything that decides a picture, and how it was computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// `ditmesh` and its version.
    pub version: String,
    /// What was drawn.
    pub prompt: String,
    /// What was stayed away from.
    pub negative_prompt: String,
    /// Pixels; `None` for latents of the model's own size.
    pub height: Option<u32>,
    /// Pixels; `None` for latents of the model's own size.
    pub width: Option<u32>,
    /// Denoising steps.
    pub num_inference_steps: u32,
    /// Guidance scale.
    pub guidance_scale: f32,
    /// Seed of the initial noise.
    pub seed: u64,
    /// Noise scheduler in the words of the web UIs, if known.
    pub sampler: Option<String>,
    /// Folder name of the model, or `built-in`.
    pub model: String,
    /// Digest of the model's files in hexadecimal, if known.
    pub model_id: Option<String>,
    /// Precision.
    pub dtype: Dtype,
    /// Degrees of the mesh.
    pub degrees: Degrees,
    /// PipeFusion patches used.
    pub num_pipeline_patch: u32,
    /// Synchronous steps.
    pub sync_steps: u32,
    /// Every how many steps after those one was synchronous; 0 for none.
    #[serde(default)]
    pub sync_every: u32,
    /// The step cache, if there was one.
    #[serde(default)]
    pub step_cache: Option<StepCache>,
    /// What travelled in fewer bytes.
    #[serde(default)]
    pub wire: Wire,
    /// Whether the initial latents were given rather than drawn from the seed.
    pub latents_given: bool,
    /// Whether embeddings were given in place of a prompt.
    pub prompt_embeds_given: bool,
    /// Seconds it took.
    pub seconds: f64,
}

impl Recipe {
    /// The recipe of a finished request; `size` is (height, width) in pixels of what came out.
    pub fn new(
        request: &GenerateRequest,
        report: &Report,
        model: &ModelFacts,
        size: Option<(u32, u32)>,
    ) -> Self {
        Self {
            version: concat!("ditmesh ", env!("CARGO_PKG_VERSION")).to_owned(),
            prompt: request.prompt.clone(),
            negative_prompt: request.negative_prompt.clone(),
            height: size.map(|size| size.0).or(request.height),
            width: size.map(|size| size.1).or(request.width),
            num_inference_steps: request.num_inference_steps,
            guidance_scale: request.guidance_scale,
            seed: request.seed,
            sampler: model.sampler.clone(),
            model: model.name.clone(),
            model_id: model.id.clone(),
            dtype: model.dtype,
            degrees: report.degrees,
            num_pipeline_patch: report.num_pipeline_patch,
            sync_steps: report.sync_steps,
            sync_every: report.sync_every,
            step_cache: request.step_cache.clone(),
            wire: report.wire,
            latents_given: request.latents.is_some(),
            prompt_embeds_given: request.prompt_embeds.is_some(),
            seconds: report.seconds,
        }
    }

    /// As JSON.
    ///
    /// # Errors
    /// Never for a recipe made by [`Recipe::new`].
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// The text that web UIs keep under `parameters`: prompt, negative prompt, settings.
    pub fn to_parameters(&self) -> String {
        let mut text = self.prompt.clone();
        if !self.negative_prompt.is_empty() {
            text.push_str("\nNegative prompt: ");
            text.push_str(&self.negative_prompt);
        }
        let mut settings = vec![("Steps", self.num_inference_steps.to_string())];
        settings.extend(self.sampler.iter().map(|sampler| ("Sampler", sampler.clone())));
        settings.push(("CFG scale", self.guidance_scale.to_string()));
        settings.push(("Seed", self.seed.to_string()));
        if let (Some(width), Some(height)) = (self.width, self.height) {
            settings.push(("Size", format!("{width}x{height}")));
        }
        settings.extend(self.model_id.iter().map(|id| ("Model hash", id.clone())));
        settings.push(("Model", self.model.clone()));
        settings.push(("Version", self.version.clone()));
        let settings: Vec<_> =
            settings.iter().map(|(name, value)| format!("{name}: {}", quoted(value))).collect();
        if !text.is_empty() {
            text.push('\n');
        }
        text + &settings.join(", ")
    }
}

/// The web UIs' rule: a value that would break the line apart stands as a JSON string.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n']) {
        return serde_json::Value::from(value).to_string();
    }
    value.to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    pub(crate) fn example() -> Recipe {
        let request = GenerateRequest {
            negative_prompt: "blur".into(),
            seed: 7,
            ..GenerateRequest::new("a red apple")
        };
        let report =
            Report { num_pipeline_patch: 2, sync_steps: 1, seconds: 1.5, ..Report::default() };
        let model = ModelFacts {
            name: "built-in".into(),
            id: Some("00c0ffee".into()),
            sampler: Some("DPM++ 2M".into()),
            dtype: Dtype::F32,
        };
        Recipe::new(&request, &report, &model, Some((64, 96)))
    }

    #[test]
    fn parameters_are_as_the_web_uis_write_them() {
        let expected = format!(
            "a red apple\nNegative prompt: blur\nSteps: 20, Sampler: DPM++ 2M, CFG scale: 4.5, \
             Seed: 7, Size: 96x64, Model hash: 00c0ffee, Model: built-in, Version: ditmesh {}",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(example().to_parameters(), expected);
    }

    #[test]
    fn empty_parts_are_left_out_and_odd_values_are_quoted() {
        let recipe = Recipe {
            prompt: String::new(),
            negative_prompt: String::new(),
            sampler: None,
            model: "a, b: c".into(),
            ..example()
        };
        let text = recipe.to_parameters();
        assert!(text.starts_with("Steps: 20, CFG scale: 4.5"), "{text}");
        assert!(text.contains(r#"Model: "a, b: c", Version"#), "{text}");
    }

    #[test]
    fn json_holds_all_of_it() {
        let json = example().to_json().unwrap();
        assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), example());
    }
}

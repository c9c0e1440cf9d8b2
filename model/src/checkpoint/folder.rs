//! A pipeline folder as diffusers writes it: `model_index.json` and one folder per component.
//!
//! Owns which pipelines are supported, where a component's files are and the model's identity.
//! Does not own what a component's configuration means.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::digest::Digest;
use super::{CheckpointError, TensorSource, Weights, config};
use crate::spec::ModelId;

/// The components every supported pipeline has.
const COMPONENTS: [&str; 5] = ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"];
/// `_class_name` values that are supported.
const SUPPORTED: &str = "PixArtAlphaPipeline or PixArtSigmaPipeline";

/// Which diffusers pipeline a folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PipelineClass {
    /// `PixArtAlphaPipeline`: prompts of 120 tokens.
    PixArtAlpha,
    /// `PixArtSigmaPipeline`: prompts of 300 tokens.
    PixArtSigma,
}

impl PipelineClass {
    /// `max_sequence_length` of the diffusers pipeline: text tokens a prompt is padded to.
    pub fn text_tokens(self) -> usize {
        match self {
            Self::PixArtAlpha => 120,
            Self::PixArtSigma => 300,
        }
    }
}

/// An open pipeline folder. Cheap to clone; holds no weights.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    class: PipelineClass,
    components: BTreeMap<String, (String, String)>,
    /// Where the weights are, when not in the folder.
    source: Option<Arc<dyn TensorSource>>,
}

impl Checkpoint {
    /// Opens the folder `dir` and checks that its pipeline is supported and complete.
    ///
    /// # Errors
    /// When there is no valid `model_index.json`, it names another pipeline, or a component is
    /// missing.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let path = dir.join("model_index.json");
        if !path.is_file() {
            return Err(CheckpointError::MissingFile {
                path,
                expected: "a pipeline folder as diffusers' save_pretrained writes it".to_owned(),
            });
        }
        let json = config::read_json(&path)?;
        let class = pipeline_class(&path, json.get("_class_name"))?;
        let (dir, components, source) = (dir.to_owned(), components(&json), None);
        let checkpoint = Self { dir, class, components, source };
        for name in COMPONENTS {
            if !checkpoint.components.contains_key(name) {
                return Err(CheckpointError::Config {
                    path,
                    key: name.to_owned(),
                    expected: "a [library, class] pair".to_owned(),
                    found: json.get(name).map_or("absent".to_owned(), Value::to_string),
                });
            }
            let folder = checkpoint.component_dir(name);
            if !folder.is_dir() {
                let expected = format!("the folder of the component that {} names", path.display());
                return Err(CheckpointError::MissingFile { path: folder, expected });
            }
        }
        Ok(checkpoint)
    }

    /// Opens a folder of configurations whose weights `source` brings, each when it is read.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_from(dir: &Path, source: Arc<dyn TensorSource>) -> Result<Self, CheckpointError> {
        Ok(Self { source: Some(source), ..Self::open(dir)? })
    }

    /// The weights of a component, in files named `stem`.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn weights(&self, component: &str, stem: &str) -> Result<Weights, CheckpointError> {
        let dir = self.component_dir(component);
        match &self.source {
            None => Weights::open(&dir, stem),
            Some(source) => Weights::open_from(&dir, Path::new(component), stem, source),
        }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Which pipeline it holds.
    pub fn class(&self) -> PipelineClass {
        self.class
    }

    /// The folder of a component (`transformer`, `vae`, ...).
    pub fn component_dir(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The class that `model_index.json` gives a component, if it has it.
    pub fn component_class(&self, name: &str) -> Option<&str> {
        self.components.get(name).map(|(_, class)| class.as_str())
    }

    /// Where a component's configuration is.
    pub fn config_path(&self, component: &str) -> PathBuf {
        config_path(&self.component_dir(component))
    }

    /// A component's configuration as plain JSON.
    ///
    /// # Errors
    /// When it cannot be read or is not JSON.
    pub fn config_json(&self, component: &str) -> Result<Value, CheckpointError> {
        config::read_json(&self.config_path(component))
    }

    /// A component's configuration as the struct `T`, see [`typed_config`].
    ///
    /// # Errors
    /// As [`typed_config`].
    pub fn config<T: DeserializeOwned>(&self, component: &str) -> Result<T, CheckpointError> {
        typed_config(&self.component_dir(component))
    }

    /// Digest of every configuration and of samples of the weight files (so that a fine-tuned
    /// model differs from its base); reads a few hundred KiB.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn model_id(&self) -> Result<ModelId, CheckpointError> {
        if let Some(source) = &self.source {
            return Ok(source.model_id());
        }
        let mut digest = Digest::default();
        digest.folder(&self.dir)?;
        for name in COMPONENTS {
            digest.folder(&self.component_dir(name))?;
        }
        Ok(ModelId(digest.finish()))
    }
}

/// Reads the configuration in the component folder `dir` (`config.json`, or
/// `scheduler_config.json`) into the struct `T`. Keys that start with `_` are skipped.
///
/// # Errors
/// When the file cannot be read or is not JSON, a key is unknown to `T` (the error names the
/// nearest known one), or a value has the wrong type (the error names the key).
pub fn typed_config<T: DeserializeOwned>(dir: &Path) -> Result<T, CheckpointError> {
    config::read_typed(&config_path(dir))
}

/// As [`typed_config`], but keys that `T` does not have are skipped: for configurations of
/// transformers, which writes keys of every purpose.
///
/// # Errors
/// As [`typed_config`], unknown keys excepted.
pub fn partial_config<T: DeserializeOwned>(dir: &Path) -> Result<T, CheckpointError> {
    config::read_partial(&config_path(dir))
}

/// The configuration file of a component folder.
fn config_path(dir: &Path) -> PathBuf {
    let scheduler = dir.join("scheduler_config.json");
    if scheduler.is_file() { scheduler } else { dir.join("config.json") }
}

fn pipeline_class(path: &Path, found: Option<&Value>) -> Result<PipelineClass, CheckpointError> {
    match found.and_then(Value::as_str) {
        Some("PixArtAlphaPipeline") => Ok(PipelineClass::PixArtAlpha),
        Some("PixArtSigmaPipeline") => Ok(PipelineClass::PixArtSigma),
        _ => Err(CheckpointError::Config {
            path: path.to_owned(),
            key: "_class_name".to_owned(),
            expected: SUPPORTED.to_owned(),
            found: found.map_or("absent".to_owned(), Value::to_string),
        }),
    }
}

/// The `[library, class]` pairs of `model_index.json`; a component that is switched off
/// (`[null, null]`) is left out.
fn components(json: &Value) -> BTreeMap<String, (String, String)> {
    let pair = |value: &Value| match value.as_array()?.as_slice() {
        [library, class] => Some((library.as_str()?.to_owned(), class.as_str()?.to_owned())),
        _ => None,
    };
    let entries = json.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), pair(value)?))).collect()
}

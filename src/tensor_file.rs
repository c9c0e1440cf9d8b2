//! Safetensors files with latents and prompt embeddings: what goes into a request and what comes
//! out of one.
//!
//! Owns keys, number formats and shapes of those files. Does not own what a model takes: channel
//! counts and lengths are checked by the engine. Invariant: what is returned is finite f32.

mod convert;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ditmesh_actors::request::{FloatTensor, PromptEmbeds};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use thiserror::Error;

use crate::recipe::{RECIPE_KEYWORD, Recipe};

/// Bytes of a tensor file beyond which it is refused.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Why a tensor file could not be used.
#[derive(Debug, Error)]
pub enum TensorFileError {
    /// The system refused it.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It is larger than anything a request takes.
    #[error("{} holds {found} bytes, and at most {limit} are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The bound.
        limit: u64,
    },
    /// It is no safetensors file, or a broken one.
    #[error("{} is not a valid safetensors file: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        reason: String,
    },
    /// It lacks a tensor.
    #[error("{} has no tensor `{key}`; it holds {found}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: &'static str,
        /// Names of the tensors there are.
        found: String,
    },
    /// A tensor is not of a kind that can be used.
    #[error("{}: tensor `{key}` {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: &'static str,
        /// What it is and what was expected.
        problem: String,
    },
    /// The latents could not be written as safetensors.
    #[error("cannot encode the latents: {0}")]
    Encode(String),
}

/// Reads `latents`, `[1, C, H, W]` (or `[1, C, F, H, W]`).
///
/// # Errors
/// When the file cannot be read or its `latents` are not such a float tensor.
pub fn read_latents(path: &Path) -> Result<FloatTensor, TensorFileError> {
    let bytes = read(path)?;
    let file = Tensors { path, tensors: parse(path, &bytes)? };
    let latents = file.floats("latents")?;
    match latents.shape.as_slice() {
        [1, ..] if matches!(latents.shape.len(), 4 | 5) => Ok(latents),
        shape => {
            Err(file.problem("latents", format!("has shape {shape:?}, expected [1, C, H, W]")))
        }
    }
}

/// Reads `prompt_embeds`, `prompt_attention_mask` and, when they are there, their negatives.
///
/// # Errors
/// When the file cannot be read, a tensor is missing, or embeddings and masks do not fit.
pub fn read_prompt_embeds(path: &Path) -> Result<PromptEmbeds, TensorFileError> {
    let bytes = read(path)?;
    let file = Tensors { path, tensors: parse(path, &bytes)? };
    let (prompt_embeds, prompt_attention_mask) =
        file.embeds("prompt_embeds", "prompt_attention_mask")?;
    let negative = ["negative_prompt_embeds", "negative_prompt_attention_mask"];
    let negative = if negative.iter().any(|key| file.tensors.tensor(key).is_ok()) {
        let (embeds, mask) = file.embeds(negative[0], negative[1])?;
        if embeds.shape != prompt_embeds.shape {
            let (found, expected) = (&embeds.shape, &prompt_embeds.shape);
            let problem = format!("has shape {found:?}, and `prompt_embeds` has {expected:?}");
            return Err(file.problem(negative[0], problem));
        }
        (Some(embeds), Some(mask))
    } else {
        (None, None)
    };
    Ok(PromptEmbeds {
        prompt_embeds,
        prompt_attention_mask,
        negative_prompt_embeds: negative.0,
        negative_prompt_attention_mask: negative.1,
    })
}

/// `latents` and their recipe as the bytes of a safetensors file.
///
/// # Errors
/// When shape and data of the latents disagree.
pub fn encode_latents(latents: &FloatTensor, recipe: &Recipe) -> Result<Vec<u8>, TensorFileError> {
    let encode = |reason: String| TensorFileError::Encode(reason);
    let data: Vec<u8> = latents.data.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, latents.shape.clone(), &data)
        .map_err(|error| encode(error.to_string()))?;
    let json = recipe.to_json().map_err(|error| encode(error.to_string()))?;
    let metadata = HashMap::from([(RECIPE_KEYWORD.to_owned(), json)]);
    safetensors::serialize([("latents", view)], Some(metadata))
        .map_err(|error| encode(error.to_string()))
}

/// The JSON recipe in the metadata of a safetensors file, if there is one.
///
/// # Errors
/// When it is no safetensors file.
pub fn read_recipe_text(path: &Path, bytes: &[u8]) -> Result<Option<String>, TensorFileError> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| invalid(path, &error))?;
    let entries = metadata.metadata().as_ref();
    Ok(entries.and_then(|entries| entries.get(RECIPE_KEYWORD)).cloned())
}

/// The bytes of `path`, at most 1 GiB.
///
/// # Errors
/// When it cannot be read or is larger.
pub fn read(path: &Path) -> Result<Vec<u8>, TensorFileError> {
    let failed = |source| TensorFileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?.len();
    if found > FILE_BYTES_MAX {
        let (path, limit) = (path.to_owned(), FILE_BYTES_MAX);
        return Err(TensorFileError::TooLarge { path, found, limit });
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn parse<'b>(path: &Path, bytes: &'b [u8]) -> Result<SafeTensors<'b>, TensorFileError> {
    SafeTensors::deserialize(bytes).map_err(|error| invalid(path, &error))
}

fn invalid(path: &Path, error: &safetensors::SafeTensorError) -> TensorFileError {
    TensorFileError::Format { path: path.to_owned(), reason: error.to_string() }
}

struct Tensors<'b> {
    path: &'b Path,
    tensors: SafeTensors<'b>,
}

impl Tensors<'_> {
    fn problem(&self, key: &'static str, problem: String) -> TensorFileError {
        TensorFileError::Tensor { path: self.path.to_owned(), key, problem }
    }

    fn view(&self, key: &'static str) -> Result<TensorView<'_>, TensorFileError> {
        self.tensors.tensor(key).map_err(|_| {
            let mut names = self.tensors.names();
            names.sort_unstable();
            let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            TensorFileError::Missing { path: self.path.to_owned(), key, found }
        })
    }

    /// A tensor of real numbers.
    fn floats(&self, key: &'static str) -> Result<FloatTensor, TensorFileError> {
        let view = self.view(key)?;
        let data = convert::floats(view.dtype(), view.data()).ok_or_else(|| {
            self.problem(
                key,
                format!("is stored as {:?}, expected F32, F16, BF16 or F64", view.dtype()),
            )
        })?;
        if let Some(at) = data.iter().position(|value| !value.is_finite()) {
            return Err(self.problem(key, format!("holds {} at element {at}", data[at])));
        }
        Ok(FloatTensor { shape: view.shape().to_vec(), data })
    }

    /// Embeddings `[1, L, C]` and their mask `[1, L]`.
    fn embeds(
        &self,
        key: &'static str,
        mask_key: &'static str,
    ) -> Result<(FloatTensor, FloatTensor), TensorFileError> {
        let embeds = self.floats(key)?;
        let &[1, tokens, _] = embeds.shape.as_slice() else {
            let shape = &embeds.shape;
            return Err(self.problem(key, format!("has shape {shape:?}, expected [1, L, C]")));
        };
        let view = self.view(mask_key)?;
        if view.shape() != [1, tokens] {
            let problem = format!("has shape {:?}, expected [1, {tokens}]", view.shape());
            return Err(self.problem(mask_key, problem));
        }
        let data = convert::mask(view.dtype(), view.data()).ok_or_else(|| {
            self.problem(mask_key, format!("is stored as {:?}, which is no mask", view.dtype()))
        })?;
        if let Some(odd) = data.iter().find(|&&value| value != 0.0 && value != 1.0) {
            return Err(self.problem(mask_key, format!("holds {odd}, expected only 0 and 1")));
        }
        Ok((embeds, FloatTensor { shape: vec![1, tokens], data }))
    }
}

#[cfg(test)]
mod tests;

//! Configuration files: bounded reading, Python's flavour of JSON, typed structs.
//!
//! Owns turning a file into a value or a struct with errors that name the key. Does not own which
//! values a component supports. Invariant: an unknown key is never skipped silently; only keys
//! that start with `_` (diffusers' own bookkeeping) are.

mod fields;
mod python;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::CheckpointError;
pub use python::FloatValue;

/// Bytes of a configuration file beyond which it is refused.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// Reads a configuration file of at most 4 MiB. `NaN`, `Infinity` and `-Infinity`, which Python
/// writes and JSON does not have, become strings; [`FloatValue`] reads those.
///
/// # Errors
/// When the file cannot be read, is larger, or is not JSON (with line and column).
pub fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    read_json_bounded(path, CONFIG_BYTES_MAX)
}

/// [`read_json`] with another bound.
pub(super) fn read_json_bounded(path: &Path, limit: u64) -> Result<Value, CheckpointError> {
    let bytes = read_bounded(path, limit)?;
    let bad = |reason: String| CheckpointError::Json { path: path.to_owned(), reason };
    let text = String::from_utf8(bytes).map_err(|error| bad(error.to_string()))?;
    serde_json::from_str(&python::quote_non_finite(&text)).map_err(|error| bad(error.to_string()))
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?.len();
    if found > limit {
        return Err(CheckpointError::TooLarge { path: path.to_owned(), found, limit });
    }
    let mut bytes = Vec::with_capacity(found as usize);
    file.take(limit).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Reads the configuration `path` into `T`; keys that `T` does not have are errors.
pub(super) fn read_typed<T: DeserializeOwned>(path: &Path) -> Result<T, CheckpointError> {
    let object = read_object(path)?;
    let known = fields::of::<T>();
    if let Some(key) = object.keys().find(|key| !known.contains(&key.as_str())) {
        let nearest = known
            .iter()
            .max_by(|a, b| strsim::jaro_winkler(key, a).total_cmp(&strsim::jaro_winkler(key, b)));
        return Err(CheckpointError::UnknownKey {
            path: path.to_owned(),
            key: key.clone(),
            nearest: nearest.copied().unwrap_or("none").to_owned(),
        });
    }
    decode(path, &object)
}

/// Reads the configuration `path` into `T`; keys that `T` does not have are skipped.
pub(super) fn read_partial<T: DeserializeOwned>(path: &Path) -> Result<T, CheckpointError> {
    let mut object = read_object(path)?;
    let known = fields::of::<T>();
    object.retain(|key, _| known.contains(&key.as_str()));
    decode(path, &object)
}

/// The configuration as an object, without diffusers' own keys.
fn read_object(path: &Path) -> Result<Map<String, Value>, CheckpointError> {
    match read_json(path)? {
        Value::Object(mut object) => {
            object.retain(|key, _| !key.starts_with('_'));
            Ok(object)
        }
        _ => Err(CheckpointError::Json {
            path: path.to_owned(),
            reason: "expected an object".to_owned(),
        }),
    }
}

fn decode<T: DeserializeOwned>(
    path: &Path,
    object: &Map<String, Value>,
) -> Result<T, CheckpointError> {
    T::deserialize(Value::Object(object.clone()))
        .map_err(|error| culprit::<T>(path, object, &error))
}

/// Which key makes `object` fail: the one without which the error is another.
fn culprit<T: DeserializeOwned>(
    path: &Path,
    object: &Map<String, Value>,
    error: &serde_json::Error,
) -> CheckpointError {
    let message = error.to_string();
    for (key, value) in object {
        let mut without = object.clone();
        without.remove(key);
        let changed = match T::deserialize(Value::Object(without)) {
            Ok(_) => true,
            Err(other) => other.to_string() != message,
        };
        if changed {
            return CheckpointError::Config {
                path: path.to_owned(),
                key: key.clone(),
                expected: expected_part(&message),
                found: value.to_string(),
            };
        }
    }
    CheckpointError::Json { path: path.to_owned(), reason: message }
}

/// The part of serde's message that says what it wanted.
fn expected_part(message: &str) -> String {
    match message.split_once("expected ") {
        Some((_, wanted)) => wanted.to_owned(),
        None => message.to_owned(),
    }
}

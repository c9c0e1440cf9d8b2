//! What a recipe says about the model: read from its folder when that can be reached from here.
//!
//! Owns the web UIs' names of noise schedulers. A model that cannot be read is no failure here:
//! the engine says what is wrong with it, and on a cluster it may lie on other hosts.

use std::path::PathBuf;

use ditmesh::recipe::ModelFacts;
use ditmesh::{Manifest, ModelSource};
use ditmesh_model::checkpoint::Checkpoint;
use serde_json::Value;

/// The facts about the model that `manifest` serves first.
pub(crate) fn of(manifest: &Manifest) -> ModelFacts {
    let wanted = manifest.groups.first().map(|group| &group.model);
    let mut models = manifest.models.iter();
    let Some(model) = models.find(|model| wanted.is_none_or(|wanted| *wanted == model.name)) else {
        return ModelFacts::default();
    };
    let source = model.source();
    let name = match &source {
        ModelSource::Builtin => "built-in".to_owned(),
        ModelSource::Folder(path) => {
            path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
        }
    };
    let checkpoint = folder(source).and_then(|folder| Checkpoint::open(&folder).ok());
    let id = checkpoint.as_ref().and_then(|checkpoint| checkpoint.model_id().ok());
    let scheduler =
        checkpoint.as_ref().and_then(|checkpoint| checkpoint.config_json("scheduler").ok());
    ModelFacts {
        name,
        id: id.map(|id| format!("{:016x}", id.0)),
        sampler: scheduler.as_ref().and_then(sampler),
        dtype: model.dtype,
    }
}

fn folder(source: ModelSource) -> Option<PathBuf> {
    match source {
        ModelSource::Folder(path) => Some(path),
        #[cfg(feature = "builtin")]
        ModelSource::Builtin => ditmesh_model::builtin::folder().ok(),
        #[cfg(not(feature = "builtin"))]
        ModelSource::Builtin => None,
    }
}

/// The name that web UIs use for a diffusers scheduler configuration.
fn sampler(config: &Value) -> Option<String> {
    let class = config.get("_class_name")?.as_str()?;
    let order = config.get("solver_order").and_then(Value::as_u64).unwrap_or(2);
    let is_sde = config
        .get("algorithm_type")
        .and_then(Value::as_str)
        .is_some_and(|algorithm| algorithm.starts_with("sde"));
    let name = match class {
        "DPMSolverMultistepScheduler" if is_sde => format!("DPM++ {order}M SDE"),
        "DPMSolverMultistepScheduler" => format!("DPM++ {order}M"),
        "DDIMScheduler" => "DDIM".to_owned(),
        "FlowMatchEulerDiscreteScheduler" | "EulerDiscreteScheduler" => "Euler".to_owned(),
        other => other.trim_end_matches("Scheduler").to_owned(),
    };
    let is_karras = config.get("use_karras_sigmas").and_then(Value::as_bool).unwrap_or(false);
    Some(if is_karras { name + " Karras" } else { name })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn schedulers_have_the_names_of_the_web_uis() {
        let name = |config: Value| sampler(&config);
        let dpm = "DPMSolverMultistepScheduler";
        assert_eq!(name(json!({ "_class_name": dpm })).as_deref(), Some("DPM++ 2M"));
        let karras = json!({ "_class_name": dpm, "solver_order": 3, "use_karras_sigmas": true });
        assert_eq!(name(karras).as_deref(), Some("DPM++ 3M Karras"));
        assert_eq!(name(json!({ "_class_name": "DDIMScheduler" })).as_deref(), Some("DDIM"));
        assert_eq!(name(json!({})), None);
    }
}

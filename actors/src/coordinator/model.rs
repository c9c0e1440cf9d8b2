//! The model a cluster serves, as far as planning needs it.
//!
//! Owns how a model's source becomes a folder, and which mesh serves a request that names none: the
//! planner's choice for the model's own size. Reads configuration files only, never weights.

use std::path::PathBuf;

use candle_core::DType;
use ditmesh_model::pipeline::describe;
use ditmesh_model::spec::ModelSpec;
use ditmesh_model::spec::description::{Description, describe_any};

use crate::cost::calibration::Calibration;
use crate::cost::cluster::Cluster;
use crate::generation::GenerateError;
use crate::manifest::{DegreesSetting, GroupSection, Manifest, ModelSection, Quality};
use crate::parallel::vae::worth::Pace;
use crate::plan::layout::Layout;
use crate::plan::resolve::check_degrees;
use crate::planner::{self, Wish};
use crate::protocol::DeviceId;
use crate::request::{Degrees, Dtype, ModelSource, TextEncoderPolicy, Wire};

/// A model and who serves it.
pub(crate) struct Model {
    pub(crate) folder: PathBuf,
    /// As the manifest names it, for people.
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) text_encoder: TextEncoderPolicy,
    pub(crate) spec: ModelSpec,
    /// What travels in fewer bytes for requests that do not say.
    pub(crate) wire: Wire,
    /// The devices of its group, in rank order.
    pub(crate) devices: Vec<DeviceId>,
    description: Box<Description>,
    cluster: Box<Cluster>,
    mesh: Mesh,
}

/// Degrees of requests that leave them open.
enum Mesh {
    /// As the manifest says.
    Fixed(Degrees),
    /// As the planner chose, with the number of patches: for requests with guidance and without.
    Planned { guided: (Degrees, u32), unguided: (Degrees, u32) },
}

impl Model {
    /// The model of the manifest's first group, on its devices. Reads files; may unpack the
    /// built-in model.
    ///
    /// # Errors
    /// [`GenerateError::Refused`] when the manifest's degrees do not fit the model, `Failed` when the
    /// model cannot be read.
    pub(crate) fn of(manifest: &Manifest) -> Result<Self, GenerateError> {
        let group = manifest.groups.first();
        let section = section_of(manifest, group).map_err(GenerateError::Failed)?;
        let source = section.as_ref().map_or(ModelSource::Builtin, ModelSection::source);
        let policy = section.as_ref().map(|section| section.text_encoder);
        let dtype = section.map_or(Dtype::F32, |section| section.dtype);
        let folder = model_folder(&source).map_err(GenerateError::Failed)?;
        let spec = describe(&folder, to_candle(dtype))
            .map_err(|error| GenerateError::Failed(error.to_string()))?;
        let name = match source {
            ModelSource::Builtin => "built-in".into(),
            ModelSource::Folder(path) => path.display().to_string(),
        };
        let devices = devices_of(manifest, group);
        let description = describe_any(&folder, to_candle(dtype))
            .map_err(|error| GenerateError::Failed(error.to_string()))?;
        let calibration = Calibration::find(&manifest.cluster.state_dir).unwrap_or_else(|error| {
            tracing::warn!(%error, "planning without a calibration");
            Calibration::default()
        });
        let cluster = Cluster::of(manifest, &calibration);
        let wire = group.map_or(Wire::default(), |group| group.wire);
        let mesh = match group.map(|group| group.degrees) {
            Some(DegreesSetting::Fixed(table)) => {
                let degrees = Degrees::from(table);
                check_degrees(&spec, degrees, devices.len())
                    .map_err(|error| GenerateError::Refused(error.to_string()))?;
                Mesh::Fixed(degrees)
            }
            Some(DegreesSetting::Auto) | None => {
                let exact = group.is_some_and(|group| group.quality == Quality::Exact);
                plan_meshes(&description, &cluster, exact, dtype, wire)?
            }
        };
        let (description, cluster) = (Box::new(description), Box::new(cluster));
        let text_encoder = policy.unwrap_or_default();
        Ok(Self {
            folder,
            name,
            dtype,
            text_encoder,
            spec,
            wire,
            devices,
            description,
            cluster,
            mesh,
        })
    }

    /// Degrees of the mesh for a request that leaves them open, and the number of patches when the
    /// planner chose it.
    pub(crate) fn mesh(&self, guided: bool) -> (Degrees, Option<u32>) {
        match &self.mesh {
            // Without guidance there is one branch: the other copy of the mesh has nothing to do.
            Mesh::Fixed(degrees) if !guided => (Degrees { cfg_degree: 1, ..*degrees }, None),
            Mesh::Fixed(degrees) => (*degrees, None),
            Mesh::Planned { guided: with, unguided } => {
                let (degrees, patches) = if guided { with } else { unguided };
                (*degrees, Some(*patches))
            }
        }
    }

    /// What decodes a picture on a mesh of `degrees`: its slowest device and link.
    pub(crate) fn pace(&self, degrees: Degrees) -> Pace {
        let devices = self.devices.iter().take(degrees.world_size());
        let names: Vec<String> = devices.map(ToString::to_string).collect();
        self.cluster.of_devices(&names).pace()
    }

    /// Which blocks each stage of a mesh of `degrees` holds when its ranks run on `devices`.
    pub(crate) fn layout(&self, degrees: Degrees, devices: &[DeviceId]) -> Layout {
        let names: Vec<String> = devices.iter().map(ToString::to_string).collect();
        let cluster = self.cluster.of_devices(&names);
        let wish = Wish::new(&self.description, self.dtype);
        planner::layout(&self.description, &cluster, &wish, degrees)
    }
}

/// The planner's choice for the model's own size and the command line's number of steps.
fn plan_meshes(
    model: &Description,
    cluster: &Cluster,
    exact: bool,
    dtype: Dtype,
    wire: Wire,
) -> Result<Mesh, GenerateError> {
    let choose = |guided| {
        let wish = Wish { guided, exact, wire, ..Wish::new(model, dtype) };
        let decision = planner::choose(model, cluster, &wish)
            .map_err(|error| GenerateError::Refused(error.to_string()))?;
        let best = decision.best().map(|trial| trial.candidate);
        let best = best.ok_or_else(|| GenerateError::Refused("no mesh fits".into()))?;
        tracing::info!(mesh = %best, guided, considered = decision.considered, "mesh planned");
        Ok((best.degrees, best.num_pipeline_patch))
    };
    Ok(Mesh::Planned { guided: choose(true)?, unguided: choose(false)? })
}

/// The folder of a model, unpacking the built-in one when needed.
///
/// # Errors
/// When there is no such folder or it cannot be written.
pub fn model_folder(source: &ModelSource) -> Result<PathBuf, String> {
    match source {
        ModelSource::Builtin => builtin_folder(),
        ModelSource::Folder(path) => std::path::absolute(path)
            .map_err(|error| format!("model folder {}: {error}", path.display())),
    }
}

#[cfg(feature = "builtin")]
fn builtin_folder() -> Result<PathBuf, String> {
    ditmesh_model::builtin::folder()
        .map_err(|error| format!("cannot unpack the built-in model: {error}"))
}

#[cfg(not(feature = "builtin"))]
fn builtin_folder() -> Result<PathBuf, String> {
    Err("this build has no built-in model: name a model folder".into())
}

/// The library's name of a precision.
pub fn to_candle(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    }
}

fn section_of(
    manifest: &Manifest,
    group: Option<&GroupSection>,
) -> Result<Option<ModelSection>, String> {
    match group {
        None => Ok(manifest.models.first().cloned()),
        Some(group) => match manifest.models.iter().find(|model| model.name == group.model) {
            Some(model) => Ok(Some(model.clone())),
            None => Err(format!("the group's model \"{}\" is not in the manifest", group.model)),
        },
    }
}

/// All devices of the group's nodes, in manifest order; of all nodes when it names none.
fn devices_of(manifest: &Manifest, group: Option<&GroupSection>) -> Vec<DeviceId> {
    let named = group.map_or(&[][..], |group| &group.nodes);
    manifest
        .nodes
        .iter()
        .filter(|node| named.is_empty() || named.contains(&node.name))
        .flat_map(|node| {
            (0..node.devices.len() as u32).map(|index| DeviceId { node: node.name.clone(), index })
        })
        .collect()
}

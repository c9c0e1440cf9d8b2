//! The model a cluster serves, as far as planning needs it.
//!
//! Owns how a model's source becomes a folder, and which mesh some devices make for a request that
//! names none: the planner's choice for the model's own size. Reads configuration files only, never
//! weights.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use candle_core::DType;
use ditmesh_model::pipeline::describe;
use ditmesh_model::spec::ModelSpec;
use ditmesh_model::spec::description::{Description, describe_any};

use super::progress::Planned;
use super::switch::StepTimes;
use crate::cost::calibration::Calibration;
use crate::cost::cluster::Cluster;
use crate::cost::device::DeviceProfile;
use crate::cost::link::NodeLink;
use crate::cost::phase;
use crate::generation::GenerateError;
use crate::manifest::{
    DegreesSetting, GroupSection, LinkSection, Manifest, ModelSection, NodeSection, Quality,
    default_checkpoint_every,
};
use crate::parallel::vae::DECODE_RANKS_MAX;
use crate::parallel::vae::worth::{self, Decoding, Pace};
use crate::plan::footprint::{self, RankMemory};
use crate::plan::layout::Layout;
use crate::plan::resolve::{check_degrees, latent_grid};
use crate::planner::{self, Candidate, Wish};
use crate::protocol::{DeviceId, DeviceSpeed, RunSpec};
use crate::request::{Degrees, Dtype, ModelSource, TextEncoderPolicy, Wire};

/// How many times longer than at its own size a step of a model may be planned.
const PIXELS_FACTOR_MAX: f64 = 1e4;

/// At which the weights of a text encoder are read where that is slow: a shared disk.
const READ_BYTES_PER_S: f64 = 200e6;

/// How much slower than the products that were measured the convolutions of a decoder may be.
const CONVOLUTION_SLOWNESS: f64 = 4.0;

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
    /// Steps between checkpoints of requests that do not say.
    pub(crate) checkpoint_every: u32,
    /// The devices of its group, in rank order, as the manifest has them.
    pub(crate) devices: Vec<DeviceId>,
    /// Nodes that serve it; empty for all.
    nodes: Vec<String>,
    description: Box<Description>,
    /// What the planner knows: grows while nodes join, and as links are measured.
    cluster: RwLock<Cluster>,
    /// Degrees of requests that leave them open, where the manifest has them.
    fixed: Option<Degrees>,
    /// Only methods that give the picture of one device.
    exact: bool,
}

impl Model {
    /// The model of the manifest's first group, on its devices. Reads files; may unpack the
    /// built-in model.
    ///
    /// # Errors
    /// [`GenerateError::Refused`] when the manifest's degrees do not fit the model, `Failed` when
    /// the model cannot be read.
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
        let checkpoint_every =
            group.map_or_else(default_checkpoint_every, |group| group.checkpoint_every);
        let fixed = match group.map(|group| group.degrees) {
            Some(DegreesSetting::Fixed(table)) => Some(Degrees::from(table)),
            Some(DegreesSetting::Auto) | None => None,
        };
        if let Some(degrees) = fixed {
            check_degrees(&spec, degrees, devices.len())
                .map_err(|error| GenerateError::Refused(error.to_string()))?;
        }
        let exact = group.is_some_and(|group| group.quality == Quality::Exact);
        let nodes = group.map(|group| group.nodes.clone()).unwrap_or_default();
        let (description, cluster) = (Box::new(description), RwLock::new(cluster));
        let text_encoder = policy.unwrap_or_default();
        Ok(Self {
            folder,
            name,
            dtype,
            text_encoder,
            spec,
            wire,
            checkpoint_every,
            devices,
            nodes,
            description,
            cluster,
            fixed,
            exact,
        })
    }

    /// Degrees that the manifest fixes for requests that leave them open.
    pub(crate) fn fixed(&self, guided: bool) -> Option<Degrees> {
        // Without guidance there is one branch: the other copy of the mesh has nothing to do.
        self.fixed.map(|fixed| if guided { fixed } else { Degrees { cfg_degree: 1, ..fixed } })
    }

    /// The fastest mesh of one replica on the first of these devices, its number of patches, and
    /// what its steps take: the planner's choice for the model's own size and the command line's
    /// number of steps.
    ///
    /// # Errors
    /// When the devices cannot hold the model, in words.
    pub(crate) fn degrees_on(
        &self,
        live: &[DeviceId],
        guided: bool,
    ) -> Result<(Degrees, Option<u32>, Option<StepTimes>), String> {
        let (cluster, wish) = (self.cluster_of(live), self.wish(guided));
        let decision = planner::choose(&self.description, &cluster, &wish)
            .map_err(|error| error.to_string())?;
        let trial = decision.best().ok_or("no mesh fits")?;
        let (best, considered) = (trial.candidate, decision.considered);
        tracing::info!(mesh = %best, guided, considered, "mesh planned");
        let step = step_times(best.degrees, trial.step_seconds);
        Ok((best.degrees, Some(best.num_pipeline_patch), step))
    }

    /// What steps take on a mesh that nobody chose.
    pub(crate) fn step_on(
        &self,
        degrees: Degrees,
        devices: &[DeviceId],
        guided: bool,
    ) -> Option<StepTimes> {
        let degrees = degrees.alone();
        let used = devices.get(..degrees.world_size())?;
        let (cluster, wish) = (self.cluster_of(used), self.wish(guided));
        let candidate = Candidate { degrees, num_pipeline_patch: degrees.pipefusion_degree };
        let (.., simulation) =
            planner::predict(&self.description, &cluster, &wish, &candidate).ok()?;
        step_times(degrees, simulation.last_step_seconds())
    }

    /// What the stages of this run are planned to take on a mesh, whose steps take `step` at the
    /// model's own size. A guess is good enough to compare meshes, not to tell that one hangs:
    /// nothing where a device was not measured.
    pub(crate) fn planned(
        &self,
        step: Option<StepTimes>,
        run: &RunSpec,
        degrees: Degrees,
        devices: &[DeviceId],
    ) -> Planned {
        let cluster = self.cluster_of(devices);
        if cluster.devices.len() < devices.len() || cluster.unmeasured() > 0 {
            return Planned::default();
        }
        let pace = cluster.pace();
        let seconds = |seconds: Option<f64>| Duration::try_from_secs_f64(seconds?).ok();
        Planned {
            text: seconds(self.text_seconds(run, &pace.device)),
            step: step.map(|step| self.planned_step(step.synchronous, run)),
            decode: seconds(self.decode_seconds(run, degrees, &pace)),
        }
    }

    /// Seconds of all prompts of a run, the encoder's weights read anew; `None` for an encoder that
    /// nobody has described.
    fn text_seconds(&self, run: &RunSpec, device: &DeviceProfile) -> Option<f64> {
        let (model, blocks) = (&*self.description, self.spec.blocks);
        let rows = run.images.len() * if run.is_guided() { 2 } else { 1 };
        let condition = phase::condition(model, blocks, rows, self.dtype, device);
        if run.embeds_tokens.is_some() {
            return Some(condition);
        }
        let bytes = (model.text_encoder.parameters * size_of::<f32>() as u64) as f64;
        let encode = phase::encode(model, rows, self.dtype, device) + bytes / READ_BYTES_PER_S;
        (model.text_encoder.weights > 0).then_some(encode + condition)
    }

    /// Seconds to decode the pictures of a run; `None` for a decoder that nobody has described.
    fn decode_seconds(&self, run: &RunSpec, degrees: Degrees, pace: &Pace) -> Option<f64> {
        if run.latent_output {
            return Some(0.0);
        }
        let grid = latent_grid(&self.spec, run.height, run.width);
        let (vae, height, width) = (&self.spec.vae, grid.height, grid.width);
        let ranks = degrees.alone().world_size().min(DECODE_RANKS_MAX);
        let members = if run.vae_parallel { ranks } else { 1 };
        let each = worth::decode_seconds(Decoding { vae, height, width }, members, pace);
        let known = self.description.decoder.macs_per_pixel > 0;
        known.then_some(CONVOLUTION_SLOWNESS * each * run.images.len() as f64)
    }

    /// What a step of this run is planned to take, given what one of the model's own size does:
    /// more pixels cost up to their square (attention), each picture its own.
    fn planned_step(&self, step: Duration, run: &RunSpec) -> Duration {
        let (height, width) = self.description.size;
        let pixels = |height: u32, width: u32| f64::from(height) * f64::from(width);
        let ratio = (pixels(run.height, run.width) / pixels(height, width).max(1.0)).max(1.0);
        step.mul_f64((ratio * ratio).min(PIXELS_FACTOR_MAX)).saturating_mul(run.images.len() as u32)
    }

    /// Why these devices cannot hold their parts of a mesh; `None` when they can, or say not what
    /// they have.
    pub(crate) fn shortage(
        &self,
        degrees: Degrees,
        devices: &[DeviceId],
        guided: bool,
    ) -> Option<String> {
        let (cluster, wish) = (self.cluster_of(devices), self.wish(guided));
        let num_pipeline_patch = degrees.pipefusion_degree;
        let candidate = Candidate { degrees: degrees.alone(), num_pipeline_patch };
        planner::shortage(&self.description, &cluster, &wish, &candidate)
    }

    /// These devices, faster ones first; `None` when they are in that order, or not all are
    /// measured.
    pub(crate) fn fastest_first(&self, live: &[DeviceId]) -> Option<Vec<DeviceId>> {
        let sorted = self.cluster_of(live).fastest_first(self.dtype)?;
        let named = |name: &String| live.iter().find(|device| device.to_string() == *name).cloned();
        sorted.devices.iter().map(|device| named(&device.name)).collect()
    }

    /// What each rank of a mesh holds while it runs at the model's own size, with guidance where
    /// that has it.
    pub(crate) fn footprints(
        &self,
        degrees: Degrees,
        patches: Option<u32>,
        devices: &[DeviceId],
    ) -> Option<Vec<RankMemory>> {
        let (cluster, wish) = (self.cluster_of(devices), self.wish(self.description.guided));
        let num_pipeline_patch = patches.unwrap_or(degrees.pipefusion_degree);
        let candidate = Candidate { degrees, num_pipeline_patch };
        let steps = wish.num_inference_steps;
        let plan = planner::plan_of(&self.description, &cluster, &wish, &candidate, steps).ok()?;
        let of_rank = |rank| footprint::of_rank(&plan, rank, &self.description, self.dtype);
        Some((0..plan.mesh.world_size()).map(of_rank).collect())
    }

    /// Whether devices of this node serve the model.
    pub(crate) fn is_served_by(&self, node: &str) -> bool {
        self.nodes.is_empty() || self.nodes.iter().any(|name| name == node)
    }

    fn cluster_of(&self, devices: &[DeviceId]) -> Cluster {
        let names: Vec<String> = devices.iter().map(ToString::to_string).collect();
        self.cluster.read().unwrap_or_else(PoisonError::into_inner).of_devices(&names)
    }

    /// A node has joined.
    pub(crate) fn take_in(&self, node: &NodeSection) {
        self.cluster.write().unwrap_or_else(PoisonError::into_inner).take_in(node);
    }

    /// From now on plans reckon with what a node's agent says of its devices; whether that is news.
    pub(crate) fn learn_speeds(&self, node: &str, speeds: &[DeviceSpeed]) -> bool {
        let mut cluster = self.cluster.write().unwrap_or_else(PoisonError::into_inner);
        cluster.learn_speeds(node, speeds)
    }

    /// What a device sustains in the linear layers of this model, in FLOP/s; `None` when nobody has
    /// measured it.
    pub(crate) fn flops_per_s(&self, device: &DeviceId) -> Option<f64> {
        let cluster = self.cluster_of(std::slice::from_ref(device));
        cluster.devices.first()?.flops_per_s(self.dtype)
    }

    /// From now on plans reckon with what was measured; returns what the manifest does not
    /// overrule.
    pub(crate) fn learn(&self, given: &[LinkSection], measured: Vec<NodeLink>) -> Vec<NodeLink> {
        let mut cluster = self.cluster.write().unwrap_or_else(PoisonError::into_inner);
        let learned = measured.into_iter().filter(|link| cluster.learn(given, link.clone()));
        learned.collect()
    }

    fn wish(&self, guided: bool) -> Wish {
        let (exact, wire) = (self.exact, self.wire);
        Wish { guided, exact, wire, ..Wish::new(&self.description, self.dtype) }
    }

    /// What decodes a picture on a mesh of `degrees`: its slowest device and link.
    pub(crate) fn pace(&self, degrees: Degrees) -> Pace {
        let devices = self.devices.get(..degrees.world_size()).unwrap_or(&self.devices);
        self.cluster_of(devices).pace()
    }

    /// Which blocks each stage of a mesh of `degrees` holds when its ranks run on `devices`.
    pub(crate) fn layout(&self, degrees: Degrees, devices: &[DeviceId]) -> Layout {
        let (cluster, wish) = (self.cluster_of(devices), Wish::new(&self.description, self.dtype));
        planner::layout(&self.description, &cluster, &wish, degrees)
    }
}

/// From the seconds of a step in the steady state: a synchronous one goes through the stages one
/// after the other.
fn step_times(degrees: Degrees, steady_s: f64) -> Option<StepTimes> {
    let steady = Duration::try_from_secs_f64(steady_s).ok()?;
    let synchronous = steady.saturating_mul(degrees.pipefusion_degree);
    Some(StepTimes { steady, synchronous })
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

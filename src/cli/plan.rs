//! `plan`: says before anything runs which mesh is the fastest, and what it holds, sends and takes.
//!
//! Owns where model, cluster and calibration come from. The choice is the planner's; nothing is
//! started and no weight is read.

mod json;
mod text;

use std::path::{Path, PathBuf};

use ditmesh::manifest::{self, Quality};
use ditmesh::{Dtype, Manifest, ModelSource, atomic_file};
use ditmesh_actors::coordinator::model::{model_folder, to_candle};
use ditmesh_actors::cost::calibration::Calibration;
use ditmesh_actors::cost::cluster::Cluster;
use ditmesh_actors::plan::Plan;
use ditmesh_actors::plan::footprint::{RankMemory, of_rank};
use ditmesh_actors::planner::{self, Decision, Trial, Wish};
use ditmesh_actors::simulate::{Setting, simulate, svg};
use ditmesh_model::spec::description::{Description, describe_any};
use ditmesh_transport::ucx;

use super::args::PlanArgs;
use super::failure::Failure;
use super::terminal::Terminal;

/// Steps drawn in a Gantt chart, at most: enough to see the steady state.
const GANTT_STEPS_MAX: u32 = 8;

/// Everything there is to say.
struct Planned {
    model: Description,
    cluster: Cluster,
    wish: Wish,
    decision: Decision,
    /// The best mesh's plan of the whole run.
    plan: Plan,
    memory: Vec<RankMemory>,
    /// What carries frames within a host and between hosts, and why.
    carriers: [String; 2],
}

impl Planned {
    fn best(&self) -> Option<&Trial> {
        self.decision.best()
    }
}

/// Plans and prints.
pub(crate) fn run(args: &PlanArgs, terminal: &Terminal) -> Result<(), Failure> {
    let manifest = manifest(args)?;
    let (path, dtype) = model(args, &manifest)?;
    let model = describe_any(&path, to_candle(dtype)).map_err(Failure::usage)?;
    let calibration = Calibration::find(&manifest.cluster.state_dir).map_err(Failure::failed)?;
    let cluster = Cluster::of(&manifest, &calibration);
    let group = manifest.groups.first();
    let exact = group.is_some_and(|group| group.quality == Quality::Exact);
    let default = Wish::new(&model, dtype);
    let wish = Wish {
        height: args.height.unwrap_or(default.height),
        width: args.width.unwrap_or(default.width),
        num_inference_steps: args.steps,
        sync_steps: args.sync_steps,
        guided: default.guided && !args.no_guidance,
        exact: exact || args.exact,
        wire: args.wire.choice().or(group.map(|group| group.wire)).unwrap_or_default(),
        ..default
    };
    let (cluster, decision) =
        planner::choose_order(&model, &cluster, &wish).map_err(Failure::usage)?;
    let best = decision.best().ok_or_else(|| Failure::usage("no mesh fits"))?.candidate;
    let plan = planner::plan_of(&model, &cluster, &wish, &best, wish.num_inference_steps)
        .map_err(Failure::usage)?;
    let memory =
        (0..plan.mesh.world_size()).map(|rank| of_rank(&plan, rank, &model, dtype)).collect();
    let carriers = carriers(&manifest);
    let planned = Planned { model, cluster, wish, decision, plan, memory, carriers };
    if let Some(file) = &args.gantt {
        draw(&planned, file)?;
    }
    terminal.result(&match args.json {
        true => json::of(&planned),
        false => text::of(&planned, args.explain),
    })
}

/// What carries frames, as far as this machine can say: UCX is looked for where it may be used.
fn carriers(manifest: &Manifest) -> [String; 2] {
    let ucx = match manifest.transport.ucx() {
        Some(_) => ucx::version().map_err(|error| error.to_string()),
        None => Err("it is not to be used".into()),
    };
    let ucx = ucx.as_ref().map(String::as_str).map_err(String::as_str);
    [true, false].map(|same_host| manifest.transport.carrier_text(same_host, ucx))
}

fn manifest(args: &PlanArgs) -> Result<Manifest, Failure> {
    match &args.cluster {
        Some(path) => Ok(manifest::parse::load(path)?),
        None => Ok(Manifest::in_process(ModelSource::Builtin, args.devices as usize, 1)),
    }
}

/// Where the model is described, and the precision of its weights.
fn model(args: &PlanArgs, manifest: &Manifest) -> Result<(PathBuf, Dtype), Failure> {
    let wanted = manifest.groups.first().map(|group| &group.model);
    let mut models = manifest.models.iter();
    let served = models.find(|model| wanted.is_none_or(|wanted| *wanted == model.name));
    let dtype = args.dtype.map(Dtype::from).or(served.map(|model| model.dtype));
    let dtype = dtype.unwrap_or_default();
    if let Some(spec) = &args.spec {
        return Ok((spec.clone(), dtype));
    }
    let source = match (&args.model, served) {
        (Some(path), _) if path.as_os_str() != "built-in" => ModelSource::Folder(path.clone()),
        (None, Some(model)) => model.source(),
        _ => ModelSource::Builtin,
    };
    Ok((model_folder(&source).map_err(Failure::failed)?, dtype))
}

/// Simulates the beginning of the run once more, recorded, and draws it.
fn draw(planned: &Planned, file: &Path) -> Result<(), Failure> {
    let Planned { model, cluster, wish, .. } = planned;
    let Some(best) = planned.best() else { return Ok(()) };
    let steps = wish.num_inference_steps.min(GANTT_STEPS_MAX.max(wish.sync_steps + 2));
    let plan =
        planner::plan_of(model, cluster, wish, &best.candidate, steps).map_err(Failure::usage)?;
    let setting = planner::setting(&plan, model, cluster, wish);
    let run = simulate(&Setting { record: true, ..setting });
    let names: Vec<String> = cluster.devices.iter().map(|device| device.name.clone()).collect();
    atomic_file::write(file, svg(&run, &names).as_bytes())
        .map_err(|error| Failure::write(file, &error))
}

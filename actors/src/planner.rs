//! Chooses the mesh for a request: enumerates all that fit, bounds each, simulates the best few.
//!
//! Every mesh `cfg x pipefusion x ulysses x ring` that the model, the devices and their memory
//! allow gets an analytic lower bound of its seconds ([`bound`]); in the order of that bound meshes
//! are simulated until no bound is below the best simulated time, or a limit is reached. One
//! replica is looked at: replicas are alike and only add throughput, so `data_degree` is 1 in
//! what is chosen, and what devices are left could serve as more. PipeFusion changes the picture;
//! `exact` leaves only methods that do not. Pure.

pub mod bound;
mod candidates;
mod decision;

use ditmesh_model::spec::description::Description;

pub use candidates::Candidate;
pub use decision::{Decision, Rejected, Trial};

use crate::cost::cluster::Cluster;
use crate::plan::layout::Layout;
use crate::plan::resolve::{self, PlanError};
use crate::plan::{Plan, footprint};
use crate::protocol::RunSpec;
use crate::request::{Degrees, Dtype, GenerateRequest, OutputKind, Wire};
use crate::simulate::{Setting, Simulation, simulate};

/// Meshes simulated, at most.
pub const SIMULATED_MESHES_MAX: usize = 24;
/// Actions simulated over all meshes, at most: what bounds the seconds of planning.
pub const SIMULATED_ACTIONS_MAX: u64 = 4_000_000;
/// Asynchronous steps simulated after the synchronous ones; the last two stand for the rest.
const ASYNC_STEPS_SIMULATED: u32 = 4;
/// Share of the time that another order of the devices must save.
const REORDERING_GAIN: f64 = 0.05;

/// What is planned for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// Pixels.
    pub height: u32,
    /// Pixels.
    pub width: u32,
    /// Denoising steps.
    pub num_inference_steps: u32,
    /// Synchronous steps before asynchronous ones.
    pub sync_steps: u32,
    /// Whether both branches of guidance run.
    pub guided: bool,
    /// Only methods that give the single device's picture.
    pub exact: bool,
    /// Whether the run ends with latents rather than a decoded picture, and starts from embeddings.
    pub transformer_only: bool,
    /// Precision of the weights.
    pub dtype: Dtype,
    /// What travels in fewer bytes.
    pub wire: Wire,
    /// See [`Setting::text_with_every_patch`].
    pub text_with_every_patch: bool,
    /// Devices to use, all when `None`.
    pub devices: Option<usize>,
}

impl Wish {
    /// A request of the command line's defaults for `model`.
    pub fn new(model: &Description, dtype: Dtype) -> Self {
        let defaults = GenerateRequest::default();
        Self {
            height: model.size.0,
            width: model.size.1,
            num_inference_steps: defaults.num_inference_steps,
            sync_steps: defaults.sync_steps,
            guided: model.guided,
            exact: false,
            transformer_only: false,
            dtype,
            wire: Wire::default(),
            text_with_every_patch: false,
            devices: None,
        }
    }

    /// Text tokens given as embeddings, when the text encoder has no part in it.
    fn embeds_tokens(&self, model: &Description) -> Option<u32> {
        self.transformer_only.then_some(model.spec.text_tokens as u32)
    }

    /// The run of a candidate, with `steps` steps.
    fn run(
        &self,
        model: &Description,
        cluster: &Cluster,
        candidate: &Candidate,
        steps: u32,
    ) -> Result<RunSpec, PlanError> {
        let request = GenerateRequest {
            height: Some(self.height),
            width: Some(self.width),
            num_inference_steps: steps,
            guidance_scale: if self.guided { 4.5 } else { 1.0 },
            num_pipeline_patch: Some(candidate.num_pipeline_patch),
            sync_steps: self.sync_steps,
            wire: Some(self.wire),
            output: if self.transformer_only { OutputKind::Latent } else { OutputKind::Image },
            ..GenerateRequest::default()
        };
        let run = resolve::resolve_at(&request, &model.spec, candidate.degrees, &cluster.pace())?;
        Ok(RunSpec { embeds_tokens: self.embeds_tokens(model), ..run })
    }
}

/// The plan of a candidate with `steps` steps, its stages balanced by cost.
///
/// # Errors
/// When the mesh does not fit model or request.
pub fn plan_of(
    model: &Description,
    cluster: &Cluster,
    wish: &Wish,
    candidate: &Candidate,
    steps: u32,
) -> Result<Plan, PlanError> {
    let run = wish.run(model, cluster, candidate, steps)?;
    let layout = layout(model, cluster, wish, candidate.degrees);
    let mut plan = Plan::with_layout(candidate.degrees, layout, &model.spec, &run)?;
    plan.grid.frames = model.work.frames;
    Ok(plan)
}

/// The stages of a mesh of `degrees` on `cluster`, balanced by what blocks and edges cost on the
/// slowest device of each stage.
pub fn layout(model: &Description, cluster: &Cluster, wish: &Wish, degrees: Degrees) -> Layout {
    let stages = degrees.pipefusion_degree as usize;
    let slowness: Vec<f64> = (0..stages).map(|s| slowness(cluster, wish, degrees, s)).collect();
    let work = bound::Work::of(model, wish);
    let blocks: Vec<f64> = (0..model.spec.blocks).map(|block| work.block(block)).collect();
    Layout::balanced(&blocks, &slowness, (work.first(), work.last()))
}

/// Time of the slowest device of a stage for one unit of work.
fn slowness(cluster: &Cluster, wish: &Wish, degrees: Degrees, stage: usize) -> f64 {
    let mesh = crate::plan::mesh::DeviceMesh::new(degrees);
    let ranks = (0..mesh.world_size()).filter(|&rank| mesh.coordinates(rank).stage == stage);
    let devices = ranks.filter_map(|rank| cluster.devices.get(rank));
    devices
        .map(|device| 1.0 / device.profile.gemm_flops_per_s.of(wish.dtype))
        .fold(f64::MIN_POSITIVE, f64::max)
}

/// Simulates a candidate; seconds are those of all steps, the actions those that were simulated.
///
/// # Errors
/// When the mesh does not fit model or request.
pub fn predict(
    model: &Description,
    cluster: &Cluster,
    wish: &Wish,
    candidate: &Candidate,
) -> Result<(f64, Plan, Simulation), PlanError> {
    let enough = wish.sync_steps + ASYNC_STEPS_SIMULATED;
    let steps = wish.num_inference_steps.min(enough);
    let plan = plan_of(model, cluster, wish, candidate, steps)?;
    let simulation = simulate(&setting(&plan, model, cluster, wish));
    let seconds = simulation.extended_to(wish.num_inference_steps as usize);
    Ok((seconds, plan, simulation))
}

/// How a plan of `wish` is simulated.
pub fn setting<'a>(
    plan: &'a Plan,
    model: &'a Description,
    cluster: &'a Cluster,
    wish: &Wish,
) -> Setting<'a> {
    Setting {
        text_with_every_patch: wish.text_with_every_patch,
        ..Setting::new(plan, model, cluster, wish.dtype)
    }
}

/// Chooses the fastest mesh that fits.
///
/// # Errors
/// When none does; the error is of the mesh that needs least.
pub fn choose(model: &Description, cluster: &Cluster, wish: &Wish) -> Result<Decision, PlanError> {
    let all = candidates::all(model, cluster, wish);
    let mut decision = Decision { considered: all.len(), ..Decision::default() };
    for (bound, candidate) in all {
        let slower = decision.best().is_some_and(|best| bound >= best.seconds);
        let spent = decision.trials.len() >= SIMULATED_MESHES_MAX
            || decision.actions >= SIMULATED_ACTIONS_MAX;
        if slower || spent {
            decision.unsimulated += 1;
            decision.pruned_by_bound &= slower;
            continue;
        }
        match trial(model, cluster, wish, &candidate, bound) {
            Ok((trial, actions)) => {
                decision.actions += actions;
                decision.add(trial);
            }
            Err(rejected) => decision.rejected.push(rejected),
        }
    }
    if decision.trials.is_empty() {
        let why = decision.rejected.iter().min_by_key(|rejected| rejected.short_bytes);
        let why = why.map_or_else(|| "no mesh fits".to_owned(), |rejected| rejected.why.clone());
        return Err(PlanError::Value(format!("no mesh of these devices fits: {why}")));
    }
    Ok(decision)
}

/// As [`choose`], on the devices in their order or, where that clearly gains, with the faster ones
/// first; the cluster comes back in the order chosen.
///
/// # Errors
/// When no mesh fits in either order.
pub fn choose_order(
    model: &Description,
    cluster: &Cluster,
    wish: &Wish,
) -> Result<(Cluster, Decision), PlanError> {
    let given = choose(model, cluster, wish);
    let seconds = |decision: &Decision| decision.best().map_or(f64::INFINITY, |best| best.seconds);
    if let Some(sorted) = cluster.fastest_first(wish.dtype)
        && let Ok(decision) = choose(model, &sorted, wish)
        && given.as_ref().map_or(true, |given| reordering_pays(seconds(given), seconds(&decision)))
    {
        return Ok((sorted, decision));
    }
    given.map(|decision| (cluster.clone(), decision))
}

/// Whether other devices, or the same ones in other places, are worth it.
pub(crate) fn reordering_pays(given_s: f64, reordered_s: f64) -> bool {
    reordered_s < given_s * (1.0 - REORDERING_GAIN)
}

fn trial(
    model: &Description,
    cluster: &Cluster,
    wish: &Wish,
    candidate: &Candidate,
    bound: f64,
) -> Result<(Trial, u64), Rejected> {
    let refuse = |why: String, short_bytes| Rejected { candidate: *candidate, why, short_bytes };
    // Memory first: it needs no simulation.
    let steps = wish.num_inference_steps;
    let plan = plan_of(model, cluster, wish, candidate, steps)
        .map_err(|error| refuse(error.to_string(), u64::MAX))?;
    if let Some((why, short_bytes)) = short_of(&plan, model, cluster, wish.dtype) {
        return Err(refuse(why, short_bytes));
    }
    let (seconds, plan, simulation) = predict(model, cluster, wish, candidate)
        .map_err(|error| refuse(error.to_string(), u64::MAX))?;
    let actions = simulation.actions;
    Ok((Trial::new(*candidate, bound, seconds, &plan, simulation), actions))
}

/// Why a mesh does not fit its devices' memory; `None` when it does, or nobody says what there is.
pub fn shortage(
    model: &Description,
    cluster: &Cluster,
    wish: &Wish,
    candidate: &Candidate,
) -> Option<String> {
    let plan = plan_of(model, cluster, wish, candidate, wish.num_inference_steps).ok()?;
    short_of(&plan, model, cluster, wish.dtype).map(|(why, _)| why)
}

/// The first rank whose device has too little memory, in words, and how many bytes are missing.
fn short_of(
    plan: &Plan,
    model: &Description,
    cluster: &Cluster,
    dtype: Dtype,
) -> Option<(String, u64)> {
    (0..plan.mesh.world_size()).find_map(|rank| {
        let needed = footprint::of_rank(plan, rank, model, dtype).total();
        let device = cluster.devices.get(rank)?;
        let there = device.profile.memory_bytes;
        let why = format!("rank {rank} needs {needed} bytes, device {} has {there}", device.name);
        (there > 0 && needed > there).then(|| (why, needed - there))
    })
}

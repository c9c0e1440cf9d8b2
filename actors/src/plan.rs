//! Turns a mesh, a model and a run into one program per rank.
//!
//! Pure: the same three values give the same plan on every machine, so only the run's description
//! travels and each rank plans for itself; [`Plan::digest`] proves that all agree. What each
//! parallel method adds is in [`crate::parallel`]; this module owns the skeleton they hang on.
//! Knows nothing of links, clocks or tensors.

mod actions;
pub mod batch;
pub mod bytes;
pub mod check;
mod composing;
pub mod footprint;
pub mod interleave;
pub mod layout;
pub mod memory;
pub mod mesh;
pub mod message;
pub mod program;
pub mod resolve;
pub mod resume;
pub mod sequence;
pub mod sync;

use std::ops::Range;

use ditmesh_model::conditioning::LatentGrid;
use ditmesh_model::phase::ForwardShape;
use ditmesh_model::rows::{PatchRange, RowSet, share, strips};
use ditmesh_model::spec::ModelSpec;

use crate::parallel::vae;
use crate::protocol::RunSpec;
use crate::request::{Degrees, GenerateRequest, StepCache};
pub use actions::Action;
use layout::Layout;
use mesh::{Coordinates, DeviceMesh};
use program::Patch;
pub use resolve::PlanError;

/// A run laid out over a mesh.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The ranks.
    pub mesh: DeviceMesh,
    /// The model.
    pub model: ModelSpec,
    /// The run.
    pub run: RunSpec,
    /// Geometry of the latent.
    pub grid: LatentGrid,
    /// The patches; fewer than asked for when rows do not divide.
    pub strips: Vec<PatchRange>,
    /// Blocks of each stage.
    pub layout: Layout,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// FNV-1a: the same on every machine and in every build, unlike the standard hasher.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Plan {
    /// Plans `run` of `model` on a mesh of `degrees`, its blocks dealt evenly to the stages.
    ///
    /// # Errors
    /// When the degrees do not fit the model or the run.
    pub fn new(degrees: Degrees, model: &ModelSpec, run: &RunSpec) -> Result<Self, PlanError> {
        let layout = Layout::even(model.blocks, degrees.pipefusion_degree.max(1) as usize);
        Self::with_layout(degrees, layout, model, run)
    }

    /// Plans `run` of `model` on a mesh of `degrees` whose stages hold the blocks of `layout`.
    ///
    /// # Errors
    /// When the degrees do not fit the model or the run.
    pub fn with_layout(
        degrees: Degrees,
        layout: Layout,
        model: &ModelSpec,
        run: &RunSpec,
    ) -> Result<Self, PlanError> {
        resolve::check_run(run, model, degrees)?;
        let stages = degrees.pipefusion_degree as usize;
        let layout = Layout::from_ends(&layout.ends(), model.blocks, stages)?;
        let grid = resolve::latent_grid(model, run.height, run.width);
        let asked = run.num_pipeline_patch as usize;
        let strips = strips(grid.token_rows(), asked);
        let mut warnings = Vec::new();
        if strips.len() < asked {
            warnings.push(format!(
                "{} token rows make {} patches of {} rows, not {asked}",
                grid.token_rows(),
                strips.len(),
                strips.first().map_or(0, |strip| strip.len),
            ));
        }
        let mesh = DeviceMesh::new(degrees);
        Ok(Self { mesh, model: model.clone(), run: run.clone(), grid, strips, layout, warnings })
    }

    /// Equal on all ranks that planned the same run.
    pub fn digest(&self) -> u64 {
        let (mesh, model, run) = (&self.mesh, &self.model, &self.run);
        fnv(&format!("{mesh:?}{model:?}{run:?}{:?}{:?}", self.strips, self.layout))
    }

    /// The controller's member number, one past the last rank.
    pub fn controller(&self) -> usize {
        self.mesh.world_size()
    }

    /// Number of denoising steps.
    pub fn steps(&self) -> usize {
        self.run.num_inference_steps as usize
    }

    /// Whether patches of `step` run one by one against keys and values of the step before.
    pub fn is_async(&self, step: usize) -> bool {
        self.strips.len() > 1 && !sync::is_sync(&self.run, step)
    }

    /// Whether any step is asynchronous, so that keys and values must be kept.
    pub fn needs_cache(&self) -> bool {
        (self.first_step()..self.steps()).any(|step| self.is_async(step))
    }

    /// Guidance branches in all.
    pub fn branches(&self) -> usize {
        if self.run.is_guided() { 2 } else { 1 }
    }

    /// Pictures of the run.
    pub fn images(&self) -> usize {
        self.run.images.len()
    }

    /// Batch rows one rank computes: both branches, or its own under CFG parallelism, of every
    /// picture; the unconditional ones come first.
    pub fn batch(&self) -> usize {
        self.branches() / self.mesh.branches() * self.images()
    }

    /// Text tokens per prompt.
    pub fn text_tokens(&self) -> usize {
        self.run.embeds_tokens.map_or(self.model.text_tokens, |tokens| tokens as usize)
    }

    /// Blocks held by the ranks of a stage.
    pub fn blocks(&self, stage: usize) -> Range<usize> {
        self.layout.blocks(stage)
    }

    /// Token rows that sequence rank `sp` owns of `patch`.
    pub fn rows(&self, sp: usize, patch: Patch) -> RowSet {
        let strips = match patch {
            Patch::All => self.strips.as_slice(),
            Patch::Strip(index) => self.strips.get(index..=index).unwrap_or_default(),
        };
        RowSet::of_rank(strips, sp, self.mesh.sequence())
    }

    /// Heads that the rank at `at` attends with.
    pub fn heads(&self, at: Coordinates) -> usize {
        let ulysses = self.mesh.degrees().ulysses_degree as usize;
        share(self.model.heads, at.sp % ulysses, ulysses).len()
    }

    /// The shape of a forward pass of the rank at `at` through `blocks`.
    pub fn forward_shape(
        &self,
        at: Coordinates,
        patch: Patch,
        blocks: Range<usize>,
    ) -> ForwardShape {
        ForwardShape {
            batch: self.batch(),
            blocks,
            rows: (0..self.mesh.sequence()).map(|sp| self.rows(sp, patch)).collect(),
            ulysses: self.mesh.degrees().ulysses_degree as usize,
            member: at.sp,
            tokens_per_row: self.grid.tokens_per_row(),
            cached_tokens: self.needs_cache().then(|| self.grid.tokens()),
        }
    }

    /// Shape of the latent rows of a rank, `[batch, C, F, rows*patch_size, W]`.
    pub fn latent_shape(&self, batch: usize, rows: usize) -> Vec<usize> {
        let grid = &self.grid;
        vec![batch, grid.channels, grid.frames, rows * grid.patch_size, grid.width]
    }

    /// Whether the rank at `at` decodes and talks to the controller.
    pub fn is_output(&self, at: Coordinates) -> bool {
        at.sp == 0 && at.cfg == 0 && at.stage + 1 == self.mesh.stages()
    }

    /// A run that uses every edge a run on a mesh of `degrees` can use.
    ///
    /// # Errors
    /// When the degrees do not fit the model.
    pub fn widest(degrees: Degrees, model: &ModelSpec) -> Result<Self, PlanError> {
        // Enough rows: every rank owns some of every patch, so every edge is used. A ring that
        // keeps keys and values talks to all its ranks, one that does not only to its neighbours.
        let multiple = (model.vae_scale_factor * model.patch_size) as u32;
        let edge = (model.sample_size * model.vae_scale_factor) as u32;
        let patches = if degrees.ring_degree > 1 { 2 } else { 1 };
        let rows = patches * degrees.sequence_degree() as u32;
        let decoders = degrees.world_size().min(vae::DECODE_RANKS_MAX);
        let decoders = (decoders * model.vae_scale_factor) as u32;
        let request = GenerateRequest {
            guidance_scale: 2.0,
            num_inference_steps: 3,
            height: Some(
                edge.max(rows.saturating_mul(multiple)).max(decoders.next_multiple_of(multiple)),
            ),
            num_pipeline_patch: Some(patches),
            step_cache: (model.blocks > 1).then(StepCache::default),
            vae_parallel: Some(true),
            ..GenerateRequest::default()
        };
        let run = resolve::resolve(&request, model, degrees)?;
        Self::new(degrees, model, &RunSpec { latents_given: true, ..run })
    }
}

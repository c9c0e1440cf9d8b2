//! Carries out one rank's program on its device: the inside of a worker's compute thread.
//!
//! Owns what lives as long as a run: text, latents, partition state, posted frames. Walks the
//! program op by op and never chooses; the plan has decided everything. Synchronous: it never
//! enters an async runtime, waits only with deadlines, and looks at the abort flag between phases.

pub mod abort;
pub mod agenda;
mod decode;
pub mod error;
mod group;
mod latents;
pub mod mailbag;
mod packing;
mod port;
mod reconstruction;
mod resident;
mod spans;
mod staleness;
mod step_cache;
pub(crate) mod wire_tensor;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use candle_core::{Device, Tensor};
use ditmesh_model::conditioning::Conditioning;
use ditmesh_model::error::ModelError;
use ditmesh_model::forward::{CacheShape, ForwardInput, ForwardOutput, PartitionRun};
use ditmesh_model::guidance;
use ditmesh_model::phase::ForwardShape;
use ditmesh_model::pipeline::LoadedParts;
use ditmesh_model::rows::RowSet;
use ditmesh_model::scheduler::Scheduler;
use ditmesh_model::transformer::Activation;
use ditmesh_transport::Transport;
use ditmesh_transport::ids::{Epoch, RunId};

use crate::plan::Plan;
use crate::plan::mesh::Coordinates;
use crate::plan::message::{Message, MessageKind};
use crate::plan::program::{Op, Patch, Program};
use crate::request::{Event, OpTime, RankReport};
use crate::timeline::Stopwatch;
use abort::AbortFlag;
use decode::Picture;
use error::ExecuteError;
use group::Group;
use latents::Latents;
use mailbag::{Mailbag, Place};
use packing::Packing;
use port::Port;
use reconstruction::Reconstructions;
use spans::Spans;
use staleness::Staleness;
use step_cache::{CacheRun, Pass};

/// Everything a rank needs to run its program.
pub struct Assignment {
    /// The plan.
    pub plan: Arc<Plan>,
    /// Which program of it.
    pub rank: usize,
    /// The run.
    pub run: RunId,
    /// The mesh.
    pub epoch: Epoch,
    /// Links to the other members.
    pub transport: Arc<dyn Transport>,
    /// Weights.
    pub parts: Arc<LoadedParts>,
    /// Where to compute.
    pub device: Device,
    /// Set from outside to stop the run.
    pub abort: Arc<AbortFlag>,
    /// Longest single wait.
    pub wait_limit: Duration,
    /// W3C trace context of the span that ordered the run.
    pub traceparent: Option<String>,
    /// Takes progress events; called on the compute thread, must not block for long.
    pub progress: Box<dyn Fn(Event) + Send>,
}

/// Runs the program to its end.
///
/// # Errors
/// [`ExecuteError`], naming the peer where one is the cause.
pub fn execute(assignment: Assignment) -> Result<RankReport, ExecuteError> {
    let mut executor = Executor::new(assignment)?;
    for unit in 0..executor.units() {
        executor.run_unit(unit)?;
    }
    executor.finish()
}

/// Text of all branches.
struct Text {
    embeds: Option<Tensor>,
    mask: Option<Tensor>,
}

/// One rank's part of one run, carried out unit by unit in order; others may run in between.
pub struct Executor {
    program: Program,
    plan: Arc<Plan>,
    at: Coordinates,
    rank: usize,
    parts: Arc<LoadedParts>,
    device: Device,
    wait_limit: Duration,
    progress: Box<dyn Fn(Event) + Send>,
    scheduler: Arc<dyn Scheduler>,
    bag: Mailbag,
    spans: Spans,
    text: Text,
    latents: Latents,
    partition: Option<PartitionRun>,
    staleness: Staleness,
    step_cache: Option<CacheRun>,
    /// Hidden states that were received or are to be sent.
    activation: Option<Tensor>,
    /// Predicted noise of this rank's branch, then of both after an exchange.
    predictions: Vec<Tensor>,
    received_latents: Option<Tensor>,
    final_rows: Vec<(usize, Tensor)>,
    result: Option<Tensor>,
    picture: Picture,
}

impl Executor {
    /// Sets the run up and posts its first receives.
    ///
    /// # Errors
    /// When links are missing.
    pub fn new(assignment: Assignment) -> Result<Self, ExecuteError> {
        let clock = Stopwatch::start(&assignment.plan);
        let Assignment { plan, rank, parts, device, wait_limit, progress, .. } = assignment;
        let at = plan.mesh.coordinates(rank);
        let scheduler = parts.scheduler(plan.steps())?;
        let step_cache = CacheRun::new(&plan, at);
        let traceparent = assignment.traceparent.as_deref();
        let spans = Spans::new(&plan, rank, assignment.run.0, traceparent);
        let place = Place {
            transport: assignment.transport,
            run: assignment.run,
            epoch: assignment.epoch,
            packing: Packing::new(Port::new(device.clone())?, Reconstructions::new(&plan, at)),
            wait_limit,
            abort: assignment.abort,
            clock,
        };
        Ok(Self {
            latents: Latents::new(&plan, at.sp, Arc::clone(&scheduler)),
            bag: Mailbag::new(place, Box::new(plan.receives(rank)))?,
            program: plan.program(rank),
            spans,
            plan,
            at,
            rank,
            parts,
            device,
            wait_limit,
            progress,
            scheduler,
            text: Text { embeds: None, mask: None },
            partition: None,
            staleness: Staleness::default(),
            step_cache,
            activation: None,
            predictions: Vec::new(),
            received_latents: None,
            final_rows: Vec::new(),
            result: None,
            picture: Picture::default(),
        })
    }

    /// Number of units.
    pub fn units(&self) -> usize {
        self.program.unit_ends.len()
    }

    /// Carries out one unit.
    ///
    /// # Errors
    /// [`ExecuteError`]; the run cannot go on after one.
    pub fn run_unit(&mut self, unit: usize) -> Result<(), ExecuteError> {
        for op in self.program.unit(unit).to_vec() {
            self.bag.check_abort()?;
            self.step(op)?;
        }
        Ok(())
    }

    /// Whether every frame sent so far was taken.
    ///
    /// # Errors
    /// When one never will be.
    pub fn is_through(&mut self) -> Result<bool, ExecuteError> {
        self.bag.is_through()
    }

    fn step(&mut self, op: Op) -> Result<(), ExecuteError> {
        self.bag.clock.begin(&op);
        let span = self.spans.of(&op);
        self.bag.traceparent = self.spans.traceparent();
        let done = span.in_scope(|| self.carry_out(&op));
        if let Err(error) = &done {
            self.spans.fail(&error.to_string());
        }
        self.bag.clock.end(&op);
        done
    }

    fn carry_out(&mut self, op: &Op) -> Result<(), ExecuteError> {
        match *op {
            Op::Encode => self.encode(),
            Op::Noise => Ok(self.latents.draw(&self.plan)?),
            Op::TakeLatents => self.take_latents(),
            Op::Restore => self.restore(),
            Op::Condition => self.condition(),
            Op::Recv { peer, ref message } => self.receive(peer, message),
            Op::Send { peer, ref message } | Op::Checkpoint { peer, ref message } => {
                self.send(peer, message)
            }
            Op::Forward { step, patch, ref blocks } => self.forward(step, patch, blocks.clone()),
            Op::Decide { step, patch } => {
                self.step_cache()?.decide(step, patch);
                Ok(())
            }
            Op::Exchange { peer, ref message } => self.exchange(peer, message),
            Op::Denoise { step, patch } => self.denoise(step, patch),
            Op::StepDone { step } => {
                // The controller grants a step's checkpoint when it has the one before: so a rank
                // is never further ahead of what a loss would go back to than the step it now
                // begins.
                self.bag.wait_until_taken_by(self.plan.controller())?;
                let event = Event::Step { step: step as u32 + 1, of: self.plan.steps() as u32 };
                self.report(event);
                Ok(())
            }
            Op::Gather => self.gather(),
            Op::Decode => self.decode(),
            Op::Assemble => self.assemble(),
        }
    }

    /// Tells the user, if this rank is the one that does.
    fn report(&self, event: Event) {
        if self.plan.is_output(self.at) {
            (self.progress)(event);
        }
    }

    fn encode(&mut self) -> Result<(), ExecuteError> {
        let run = &self.plan.run;
        let encoder = self.parts.text_encoder.as_ref();
        let encoder =
            encoder.ok_or(ExecuteError::Order { op: "encoding", missing: "the text encoder" })?;
        let negative = run.images.iter().filter(|_| run.is_guided());
        let negative = negative.map(|image| image.negative_prompt.as_str());
        let prompts = negative.chain(run.images.iter().map(|image| image.prompt.as_str()));
        let prompts: Vec<&str> = prompts.collect();
        let bag = &self.bag;
        let mut proceed =
            || bag.check_abort().map_err(|error| ModelError::Aborted(error.to_string()));
        let text = encoder.encode(&prompts, self.plan.text_tokens(), &mut proceed);
        bag.check_abort()?;
        let text = text?;
        text.warnings.into_iter().for_each(|warning| (self.progress)(Event::Warning(warning)));
        let (embeds, mask) = (text.embeds, text.mask);
        let on_host = |x: Tensor| x.to_device(&Device::Cpu);
        self.text = Text { embeds: Some(on_host(embeds)?), mask: Some(on_host(mask)?) };
        Ok(())
    }

    /// Gives the partition the text of this rank's branches.
    fn condition(&mut self) -> Result<(), ExecuteError> {
        let (Some(embeds), Some(mask)) = (&self.text.embeds, &self.text.mask) else {
            return Err(ExecuteError::Order { op: "conditioning", missing: "the text" });
        };
        let batch = self.plan.batch();
        let own = |x: &Tensor| x.narrow(0, self.at.cfg * batch, batch)?.to_device(&self.device);
        let conditioning = Conditioning { embeds: own(embeds)?, mask: own(mask)?, pooled: None };
        let pass = self.parts.transformer.begin(&conditioning, self.plan.grid)?;
        let spec = self.plan.model.clone();
        let cache = self.plan.needs_cache().then(|| CacheShape {
            blocks: self.plan.blocks(self.at.stage),
            batch: self.plan.batch(),
            tokens: self.plan.grid.tokens(),
            heads: self.plan.heads(self.at),
        });
        let mut partition = PartitionRun::new(pass, spec, cache, &self.device, self.wait_limit)?;
        partition.keep_residuals(self.step_cache.is_some());
        self.partition = Some(partition);
        self.report(Event::Encoded);
        Ok(())
    }

    fn take_latents(&mut self) -> Result<(), ExecuteError> {
        let whole = self.received_latents.take();
        let missing = ExecuteError::Order { op: "taking latents", missing: "the latents" };
        Ok(self.latents.take(&whole.ok_or(missing)?)?)
    }

    fn restore(&mut self) -> Result<(), ExecuteError> {
        let whole = self.received_latents.take();
        let missing = ExecuteError::Order { op: "restoring", missing: "the checkpoint" };
        Ok(self.latents.restore(&self.plan, &whole.ok_or(missing)?)?)
    }

    fn receive(&mut self, peer: usize, message: &Message) -> Result<(), ExecuteError> {
        if message.kind == MessageKind::Decision {
            let reuse = self.bag.receive_decision(peer, message)?;
            self.step_cache()?.told(reuse);
            return Ok(());
        }
        let deadline = self.bag.deadline();
        let tensor = self.bag.receive(peer, message, deadline)?;
        match message.kind {
            MessageKind::TextEmbeds => self.text.embeds = Some(tensor),
            MessageKind::TextMask => self.text.mask = Some(tensor),
            MessageKind::InitialLatents | MessageKind::Resume => {
                self.received_latents = Some(tensor);
            }
            MessageKind::Activation => self.activation = Some(tensor),
            MessageKind::Sample => self.latents.put(message.patch(), &tensor)?,
            MessageKind::ResidualChange => self.step_cache()?.add_change(&tensor)?,
            MessageKind::FinalRows => self.final_rows.push((peer, tensor)),
            MessageKind::BandLatents => self.picture.latents = Some(tensor),
            MessageKind::PixelRows => self.picture.bands.push((peer, tensor)),
            _ => return Err(ExecuteError::Order { op: "receiving", missing: "a place for it" }),
        }
        Ok(())
    }

    fn send(&mut self, peer: usize, message: &Message) -> Result<(), ExecuteError> {
        if message.kind == MessageKind::Decision {
            let reuse = self.step_cache()?.is_reused();
            return self.bag.send_decision(peer, message, reuse);
        }
        let held = match message.kind {
            MessageKind::TextEmbeds => self.text.embeds.clone(),
            MessageKind::TextMask => self.text.mask.clone(),
            MessageKind::Activation => self.activation.take(),
            MessageKind::ResidualChange => Some(self.step_cache()?.change()?),
            MessageKind::Sample => Some(self.latents.get(message.patch())?),
            MessageKind::FinalRows => Some(self.latents.get(Patch::All)?),
            MessageKind::Checkpoint => {
                let rows = self.plan.checkpoint_batch(usize::from(message.step));
                Some(self.latents.snapshot(message.patch(), rows)?)
            }
            MessageKind::Result | MessageKind::PixelRows => self.result.take(),
            MessageKind::BandLatents => match &self.result {
                Some(whole) => Some(decode::rows_for(&self.plan, peer, whole)?),
                None => None,
            },
            _ => None,
        };
        let missing = ExecuteError::Order { op: "sending", missing: "what to send" };
        self.bag.send(peer, message, &held.ok_or(missing)?)
    }

    /// The step cache of a run that has one.
    fn step_cache(&mut self) -> Result<&mut CacheRun, ExecuteError> {
        let missing = ExecuteError::Order { op: "deciding", missing: "a step cache" };
        self.step_cache.as_mut().ok_or(missing)
    }

    fn forward(
        &mut self,
        step: usize,
        patch: Patch,
        blocks: Range<usize>,
    ) -> Result<(), ExecuteError> {
        let shape = self.plan.forward_shape(self.at, patch, blocks);
        let input = self.forward_input(step, patch, &shape)?;
        let timestep = self.scheduler.timesteps().get(step).copied();
        let timestep =
            timestep.ok_or(ExecuteError::Order { op: "forward", missing: "its timestep" })?;
        let ranks = self.plan.mesh.sequence_group(self.at);
        let partition = self.partition.as_mut();
        let partition =
            partition.ok_or(ExecuteError::Order { op: "forward", missing: "the text" })?;
        self.staleness.begin(step, partition);
        let mut group = Group::new(&mut self.bag, ranks, step, patch.strip(), self.plan.run.wire);
        let output = match &mut self.step_cache {
            Some(cache) => {
                let pass = Pass { plan: &self.plan, step, patch, shape: &shape, timestep };
                cache.forward(partition, &pass, input, &mut group)
            }
            None => partition.forward(&shape, timestep, input, &mut group),
        };
        let output = match output {
            Ok(output) => output,
            Err(error) => return Err(group.error.take().unwrap_or(ExecuteError::Model(error))),
        };
        match output {
            ForwardOutput::Noise(noise) => {
                self.predictions = vec![noise.to_device(&Device::Cpu)?];
            }
            ForwardOutput::Activation(x) => self.activation = Some(x.image),
            ForwardOutput::Nothing => {}
        }
        Ok(())
    }

    fn forward_input(
        &mut self,
        step: usize,
        patch: Patch,
        shape: &ForwardShape,
    ) -> Result<ForwardInput, ExecuteError> {
        if shape.own_tokens() == 0 {
            return Ok(ForwardInput::Nothing);
        }
        if shape.blocks.start > 0 {
            let image = self.activation.take();
            let missing = ExecuteError::Order { op: "forward", missing: "hidden states" };
            let image = image.ok_or(missing)?;
            return Ok(ForwardInput::Activation(Activation { image, text: None }));
        }
        let x = self.scheduler.scale_model_input(&self.latents.get(patch)?, step)?;
        let branches: Vec<&Tensor> = vec![&x; self.plan.batch() / self.plan.images()];
        Ok(ForwardInput::Latents(Tensor::cat(&branches, 0)?.to_device(&self.device)?))
    }

    /// Swaps predicted noise with the other branch; the unconditional one comes first. Both go on
    /// with what travelled, so that their latents stay the same.
    fn exchange(&mut self, peer: usize, message: &Message) -> Result<(), ExecuteError> {
        let own = self.predictions.pop();
        let missing = ExecuteError::Order { op: "exchange", missing: "the prediction" };
        let own = own.ok_or(missing)?;
        self.bag.send(peer, message, &own)?;
        let own = self.bag.as_received(&own, message)?;
        let other = self.bag.receive(peer, message, self.bag.deadline())?;
        self.predictions = if self.at.cfg == 0 { vec![own, other] } else { vec![other, own] };
        Ok(())
    }

    fn denoise(&mut self, step: usize, patch: Patch) -> Result<(), ExecuteError> {
        let scale = f64::from(self.plan.run.guidance_scale);
        let predictions = std::mem::take(&mut self.predictions);
        let prediction = match (predictions.as_slice(), self.plan.branches()) {
            ([one], 1) => one.clone(),
            ([both], _) => {
                let images = self.plan.images();
                let (uncond, cond) = (both.narrow(0, 0, images)?, both.narrow(0, images, images)?);
                guidance::combine(&uncond, &cond, scale)?
            }
            ([uncond, cond], _) => guidance::combine(uncond, cond, scale)?,
            _ => return Err(ExecuteError::Order { op: "denoising", missing: "the prediction" }),
        };
        self.latents.denoise(step, patch, &prediction)
    }

    /// Puts the rows of all sequence ranks together in raster order.
    fn gather(&mut self) -> Result<(), ExecuteError> {
        let group = self.plan.mesh.sequence_group(self.at);
        let mut rows = std::mem::take(&mut self.final_rows);
        if !self.plan.rows(self.at.sp, Patch::All).is_empty() {
            rows.push((self.rank, self.latents.get(Patch::All)?));
        }
        let sets: Vec<(RowSet, Tensor)> = rows
            .into_iter()
            .filter_map(|(rank, x)| Some((group.iter().position(|&r| r == rank)?, x)))
            .map(|(sp, x)| (self.plan.rows(sp, Patch::All), x))
            .collect();
        let height = self.plan.grid.patch_size;
        let mut whole = Vec::with_capacity(self.plan.grid.token_rows());
        for row in 0..self.plan.grid.token_rows() {
            let found = sets.iter().find_map(|(set, x)| Some((set.position(row)?, x)));
            let missing = ExecuteError::Order { op: "gathering", missing: "a row" };
            let (position, x) = found.ok_or(missing)?;
            whole.push(x.narrow(3, position * height, height)?);
        }
        self.result = Some(Tensor::cat(&whole, 3)?);
        Ok(())
    }

    /// This rank's band (or the whole latent) to pixels.
    fn decode(&mut self) -> Result<(), ExecuteError> {
        let output = self.plan.is_output(self.at);
        let shape = self.plan.decode_shape(self.at);
        let missing = ExecuteError::Order { op: "decoding", missing: "latents" };
        let shape = shape.ok_or(ExecuteError::Order { op: "decoding", missing: "a band" })?;
        let rows = match output {
            true => {
                let whole = self.result.take().ok_or(missing)?;
                decode::rows_for(&self.plan, self.rank, &whole)?
            }
            false => self.picture.latents.take().ok_or(missing)?,
        };
        let rows = rows.to_device(&self.device)?;
        // The pictures of a batch, which are never cut into bands, one after another.
        let mut pictures = Vec::with_capacity(self.plan.images());
        for image in 0..self.plan.images() {
            let place = (&mut self.bag, self.wait_limit);
            let latents = rows.narrow(0, image, 1)?;
            let part = (self.at, &shape);
            pictures.push(decode::band(&self.plan, &self.parts, part, &latents, place)?);
        }
        let rows = Tensor::cat(&pictures, 0)?;
        if output && shape.active() > 1 {
            self.picture.bands.push((self.rank, rows));
            return Ok(());
        }
        self.result = Some(rows);
        self.report(Event::Decoded);
        Ok(())
    }

    fn assemble(&mut self) -> Result<(), ExecuteError> {
        let bands = std::mem::take(&mut self.picture.bands);
        self.result = Some(decode::assemble(&self.plan, self.at, bands)?);
        self.report(Event::Decoded);
        Ok(())
    }

    /// Waits until the last frames are taken, and reports.
    ///
    /// # Errors
    /// When one was not taken in time, or the run was aborted.
    pub fn finish(mut self) -> Result<RankReport, ExecuteError> {
        let staleness = self.staleness;
        let kv_change = self.partition.as_mut().map(|partition| staleness.finish(partition));
        let (traffic, clock) = self.bag.finish()?;
        clock.chunks(self.rank).for_each(|chunk| (self.progress)(Event::Timeline(chunk)));
        let blocks = self.plan.blocks(self.at.stage);
        let sum = |of: fn(&OpTime) -> f64| traffic.time.ops.iter().map(of).sum();
        Ok(RankReport {
            rank: self.rank as u32,
            device: String::new(),
            blocks: (blocks.start as u32, blocks.end as u32),
            weight_bytes_read: self.parts.bytes_read(),
            kv_cache_bytes: self.partition.as_ref().map_or(0, PartitionRun::cache_bytes),
            bytes_sent: traffic.bytes_sent,
            frames_sent: traffic.frames_sent,
            traffic: traffic.by_axis(),
            foreign_units: 0,
            kv_change: kv_change.unwrap_or_default(),
            decisions: self.step_cache.map(CacheRun::decisions).unwrap_or_default(),
            peak_memory_bytes: resident::peak_bytes(),
            compute_seconds: sum(|op| op.compute_s),
            wait_seconds: sum(|op| op.wait_s),
            time: traffic.time,
        })
    }
}

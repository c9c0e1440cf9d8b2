//! Carries out one rank's program on its device: the inside of a worker's compute thread.
//!
//! Owns what lives as long as a run: text, latents, partition state, posted frames. Walks the
//! program op by op and never chooses; the plan has decided everything. Synchronous: it never
//! enters an async runtime, waits only with deadlines, and looks at the abort flag between phases.

pub mod abort;
pub mod agenda;
mod decode;
mod denoise;
pub mod error;
mod group;
mod latents;
pub mod mailbag;
mod packing;
mod picture;
mod port;
mod reconstruction;
mod resident;
mod spans;
mod staleness;
mod step_cache;
mod text;
pub(crate) mod wire_tensor;

use std::sync::Arc;
use std::time::Duration;

use candle_core::{Device, Tensor};
use ditmesh_model::forward::PartitionRun;
use ditmesh_model::pipeline::LoadedParts;
use ditmesh_model::scheduler::Scheduler;
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
use latents::Latents;
use mailbag::{Mailbag, Place};
use packing::Packing;
use port::Port;
use reconstruction::Reconstructions;
use spans::Spans;
use staleness::Staleness;
use step_cache::CacheRun;
use text::Text;

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
            text: Text::default(),
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

//! Workers: they join meshes and take runs to their seats.
//!
//! Owns what a worker is told and what it says. How a rank works off what it has is the seat's.

use std::collections::BTreeMap;
use std::sync::Arc;

use ditmesh_model::spec::{Family, ModelId, ModelSpec, TextStream};
use ditmesh_model::vae::VaeSpec;

use super::coordinator::Session;
use super::frames::Frame;
use super::invariants::waits_end::is_late;
use super::seat::{Computing, Seat, Turn};
use super::walker::Waited;
use super::world::{Order, Wake, World};
use super::{Sabotage, ms};
use crate::executor::agenda::AgendaError;
use crate::membership::{Member, Now};
use crate::plan::Plan;
use crate::protocol::{
    DeviceId, FormFault, FromCoordinator, ImageSpec, RankOutcome, RunSpec, ToCoordinator,
};

pub(super) const STEPS: u32 = 5;

pub(super) fn model() -> ModelSpec {
    ModelSpec {
        id: ModelId(1),
        family: Family::PixArt,
        text_stream: TextStream::Cross,
        long_skips: false,
        blocks: 4,
        heads: 4,
        head_dim: 8,
        patch_size: 2,
        latent_channels: 4,
        sample_size: 8,
        vae_scale_factor: 8,
        vae: VaeSpec::default(),
        solver_history: 2,
        caption_channels: 24,
        text_tokens: 8,
        block_bytes: 1,
        other_bytes: 1,
    }
}

/// What every request asks for.
pub(super) fn spec() -> RunSpec {
    let prompt = "a".to_owned();
    RunSpec {
        images: vec![ImageSpec { prompt, negative_prompt: String::new(), seed: 0 }],
        height: 64,
        width: 64,
        num_inference_steps: STEPS,
        guidance_scale: 4.5,
        num_pipeline_patch: 1,
        sync_steps: 1,
        checkpoint_every: 1,
        ..RunSpec::default()
    }
}

/// Longest time to reach the other ranks of a mesh that forms.
const LINKS_WITHIN: Now = ms(3_000);

/// From a process to the coordinator.
#[derive(Clone, Debug)]
pub(super) enum Report {
    Hello {
        epoch: u64,
        number: u64,
    },
    /// Its session is over.
    Closed,
    Message(ToCoordinator),
}

/// A mesh as a rank joins it.
#[derive(Clone, Debug)]
pub(super) struct Form {
    pub(super) epoch: u64,
    pub(super) rank: usize,
    pub(super) beside: bool,
    /// By rank, with the life of the process that is meant.
    pub(super) members: Arc<Vec<(DeviceId, u64)>>,
}

#[derive(Clone, Debug)]
pub(super) struct Start {
    pub(super) epoch: u64,
    pub(super) run: u64,
    pub(super) rank: u32,
    pub(super) plan: Arc<Plan>,
    /// Others are under way: the rank says where it can come in.
    pub(super) propose: bool,
}

/// A worker's meshes.
#[derive(Default)]
pub(super) struct Worker {
    pub(super) newest_epoch: u64,
    forming: BTreeMap<u64, (Form, Now)>,
    pub(super) seats: BTreeMap<u64, Seat>,
}

impl Worker {
    pub(super) fn leave_all(&mut self) {
        self.forming.clear();
        self.seats.clear();
    }

    /// Whether something that it computes does not end.
    pub(super) fn hangs(&self) -> bool {
        self.seats.values().any(|seat| seat.computing == Computing::ForEver)
    }

    /// Epochs of the meshes in which the process of this life is a mate.
    pub(super) fn mates_of(&self, device: &DeviceId, life: u64) -> Vec<(u64, usize)> {
        let seats = self.seats.iter().filter_map(|(&epoch, seat)| {
            let mate = |(other, number): &(DeviceId, u64)| other == device && *number == life;
            Some((epoch, seat.form.members.iter().position(mate)?))
        });
        seats.collect()
    }

    /// Where a run is, and in which mesh.
    fn seat_of(&mut self, run: u64) -> Option<(u64, &mut Seat)> {
        let mut seats = self.seats.iter_mut();
        seats.find(|(_, seat)| seat.knows(run)).map(|(&epoch, seat)| (epoch, seat))
    }

    /// The longest wait: since when, and for what.
    pub(super) fn oldest_wait(&self) -> Option<(Now, u64, Option<Waited>)> {
        let waits = self.seats.iter().filter_map(|(&epoch, seat)| {
            let (since, whom) = seat.wait()?;
            Some((since, epoch, whom))
        });
        waits.min_by_key(|(since, epoch, _)| (*since, *epoch))
    }
}

impl World {
    /// A worker hears from the coordinator.
    pub(super) fn ordered(&mut self, device: &DeviceId, session: Session, order: Order) {
        let again = Wake::Ordered(device.clone(), session, order.clone());
        if self.network.away.contains(&device.node) {
            return self.network.hold(&device.node, again);
        }
        let number = session.number;
        if !self.takes(device, number, || again) {
            return;
        }
        let now = self.now;
        let Some(process) = self.processes.acting(device, number) else { return };
        if !process.has_session(&session) {
            return;
        }
        let worker = &mut process.worker;
        match order {
            Order::Form(form) if form.epoch <= worker.newest_epoch => {
                let cause = format!("epoch {} is not after {}", form.epoch, worker.newest_epoch);
                let (epoch, fault) = (form.epoch, FormFault::Loading);
                self.report(device, ToCoordinator::FormFailed { epoch, fault, cause });
            }
            Order::Form(form) => {
                worker.newest_epoch = form.epoch;
                if !form.beside {
                    worker.leave_all();
                }
                let epoch = form.epoch;
                worker.forming.insert(epoch, (form, now));
                let after = self.dice.between(20, 300);
                self.at(after, Wake::Loaded(device.clone(), number, epoch));
            }
            Order::Start(start) => {
                let (epoch, run, rank) = (start.epoch, start.run, start.rank);
                let started = match worker.seats.get_mut(&epoch) {
                    Some(seat) => seat.start(start).map_err(|error| error.to_string()),
                    None => Err(format!("epoch {epoch} is not formed here")),
                };
                match started {
                    Ok(Some(after)) => self.report(device, ToCoordinator::Proposed { run, after }),
                    Ok(None) => self.work(device, number, epoch),
                    Err(cause) => {
                        self.run_ended(device, run, rank, RankOutcome::Failed { cause, peer: None })
                    }
                }
            }
            Order::Message(message) => self.told(device, number, message),
            Order::Closed => self.session_lost(&Member::Worker(device.clone())),
        }
    }

    /// A worker is told something about its runs or meshes, or to end.
    fn told(&mut self, device: &DeviceId, number: u64, message: FromCoordinator) {
        let Some(process) = self.processes.acting(device, number) else { return };
        let worker = &mut process.worker;
        match message {
            FromCoordinator::Enter { run, after } => {
                let Some((epoch, seat)) = worker.seat_of(run) else { return };
                match seat.enter(run, after) {
                    Ok(()) | Err(AgendaError::Unknown { .. }) => {}
                    Err(error) => {
                        seat.abort(run);
                        let (rank, cause) = (seat.form.rank as u32, error.to_string());
                        let outcome = RankOutcome::Failed { cause, peer: None };
                        self.run_ended(device, run, rank, outcome);
                    }
                }
                self.work(device, number, epoch);
            }
            FromCoordinator::Abort { run, .. } => {
                let Some((epoch, seat)) = worker.seat_of(run) else { return };
                let rank = seat.form.rank as u32;
                if seat.abort(run) {
                    self.run_ended(device, run, rank, RankOutcome::Aborted);
                }
                self.work(device, number, epoch);
            }
            FromCoordinator::Dissolve { epoch, .. } => {
                worker.forming.remove(&epoch);
                worker.seats.remove(&epoch);
            }
            FromCoordinator::Shutdown => self.kill(&Member::Worker(device.clone())),
            _ => {}
        }
    }

    /// A rank is done with a run.
    fn run_ended(&mut self, device: &DeviceId, run: u64, rank: u32, outcome: RankOutcome) {
        self.report(device, ToCoordinator::RunEnded { run, rank, outcome });
    }

    fn report(&mut self, device: &DeviceId, message: ToCoordinator) {
        let member = Member::Worker(device.clone());
        let Some(process) = self.processes.get(&member) else { return };
        let incarnation = process.incarnation;
        self.tell_coordinator(&member, incarnation, Report::Message(message));
    }

    /// A rank's part is loaded: it reaches for the others.
    pub(super) fn loaded(&mut self, device: &DeviceId, number: u64, epoch: u64) {
        if !self.takes(device, number, || Wake::Loaded(device.clone(), number, epoch)) {
            return;
        }
        let Some(process) = self.processes.acting(device, number) else { return };
        let Some((form, since)) = process.worker.forming.get(&epoch).cloned() else { return };
        let missing = form.members.iter().position(|(mate, life)| {
            let member = Member::Worker(mate.clone());
            let there = self.processes.get(&member).is_some_and(|process| {
                process.number == *life
                    && !process.is_frozen
                    && process.worker.newest_epoch >= epoch
            });
            !there || !self.network.joins(&device.node, &mate.node)
        });
        if let Some(mate) = missing {
            if self.now.saturating_sub(since) < LINKS_WITHIN {
                return self.at(ms(100), Wake::Loaded(device.clone(), number, epoch));
            }
            let cause = format!("no link to rank {mate}");
            if let Some(process) = self.processes.acting(device, number) {
                process.worker.forming.remove(&epoch);
            }
            let fault = FormFault::Links { unanswered: Some(mate as u32) };
            return self.report(device, ToCoordinator::FormFailed { epoch, fault, cause });
        }
        let sends_wait = self.is(Sabotage::SendsWait);
        let Some(process) = self.processes.acting(device, number) else { return };
        process.worker.forming.remove(&epoch);
        process.worker.seats.insert(epoch, Seat::new(form, sends_wait));
        let (blocks, weight_bytes_read, carriers) = ((0, 0), 0, Vec::new());
        let formed = ToCoordinator::Formed { epoch, blocks, weight_bytes_read, carriers };
        self.report(device, formed);
    }

    /// A rank's thread goes on as far as it can.
    pub(super) fn work(&mut self, device: &DeviceId, life: u64, epoch: u64) {
        loop {
            let now = self.now;
            let Some(process) = self.processes.acting(device, life) else { return };
            let Some(seat) = process.worker.seats.get_mut(&epoch) else { return };
            match seat.turn(now) {
                Turn::Wait => return,
                Turn::Begins(number, entry) => self.watch.begins(epoch, number, entry),
                Turn::Compute => {
                    let after = self.dice.between(1, 6);
                    let device = device.clone();
                    return self.at(after, Wake::Computed { device, life, epoch });
                }
                Turn::Took(run, from, tag) => {
                    let (by, members) = (seat.form.rank, Arc::clone(&seat.form.members));
                    self.taken(epoch, &members, (run, from, tag), by);
                }
                Turn::Tell(run, event) => {
                    self.report(device, ToCoordinator::Progress { run, event });
                }
                Turn::Ended(run, outcome) => {
                    let rank = seat.form.rank as u32;
                    self.run_ended(device, run, rank, outcome);
                }
                Turn::Send(run, to, message) => {
                    let (from, members) = (seat.form.rank, Arc::clone(&seat.form.members));
                    let coordinator = self.lives;
                    let frame = Frame {
                        epoch,
                        run,
                        from,
                        life,
                        message,
                        to: members.get(to).map(|(mate, _)| mate.clone()).ok_or(coordinator),
                    };
                    self.send(frame, Some(&device.node));
                }
            }
        }
    }

    pub(super) fn computed(&mut self, device: &DeviceId, life: u64, epoch: u64) {
        let again = || Wake::Computed { device: device.clone(), life, epoch };
        if !self.takes(device, life, again) {
            return;
        }
        let Some(process) = self.processes.acting(device, life) else { return };
        let Some(seat) = process.worker.seats.get_mut(&epoch) else { return };
        seat.computing = match std::mem::take(&mut process.hang) {
            true => Computing::ForEver,
            false => Computing::Nothing,
        };
        self.work(device, life, epoch);
    }

    /// Nobody waits too long who can be told.
    pub(super) fn check_waits(&mut self) {
        let now = self.now;
        let at_work = self.processes.workers().filter(|(_, process)| !process.is_frozen);
        let late = at_work.filter_map(|(device, process)| {
            let (since, epoch, what) = process.worker.oldest_wait()?;
            if !is_late(since, now) {
                return None;
            }
            let since = since.max(self.network.reached_since(&device.node)?);
            let who = format!("{device} waits for {what:?} in epoch {epoch} since {since:?}");
            is_late(since, now).then_some(who)
        });
        let late: Vec<String> = late.collect();
        late.into_iter().for_each(|who| self.watch.waits(now, who));
    }
}

//! The coordinator at its desk: the real engines, and what carries their commands out.
//!
//! Owns one life of the coordinator. What outlives it is in the world's journal. The order in which
//! engines hear of each other is that of `coordinator/advance.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ditmesh_model::spec::{Family, ModelId, ModelSpec, TextStream};
use ditmesh_model::vae::VaeSpec;

use super::processes::{RETRANSMIT, node_of};
use super::runs::{Fault, Report};
use super::walker::{Inbox, Walker};
use super::world::{Order, Wake, World};
use super::{Sabotage, ms};
use crate::coordinator::copies::Copies;
use crate::coordinator::formation::{Formation, FormationCommand, FormationEvent};
use crate::coordinator::mesh_plan::{MeshPlan, MeshPlans, NoMesh};
use crate::coordinator::progress::{Progress, StepLimit};
use crate::dispatcher::{Dispatcher, DispatcherCommand, DispatcherEvent, MeshNeed, Need, Room};
use crate::generation::GenerateError;
use crate::groups::Retry;
use crate::journal::Remembered;
use crate::manifest::Manifest;
use crate::membership::cuts::{Pair, pair};
use crate::membership::{
    Incarnation, Loss, Member, Membership, MembershipCommand, MembershipEvent, Now,
};
use crate::plan::Plan;
use crate::protocol::{DeviceId, ImageSpec, RunSpec};
use crate::request::{Degrees, ModelSource};

const TICK: Now = ms(100);
/// Devices that have not come by then are waited for no longer.
const SETTLE: Now = ms(5_000);
/// Longest time for all ranks to end an aborted run.
pub(super) const ABORT_WITHIN: Now = ms(10_000);
/// Until a client asks again.
pub(super) const ASK_AGAIN: Now = ms(500);
/// Longest time that requests wait for a mesh.
const MESH_WITHIN: Now = ms(60_000);
pub(super) const STEPS: u32 = 5;
/// When a step counts as one of a device that hangs.
pub(super) const STEP_LIMIT: StepLimit =
    StepLimit { floor: ms(3_000), factor: 5, longest: ms(60_000) };
/// Longest time for the ranks of a stalled run to end it.
pub(super) const STALLED_WITHIN: Now = ms(2_000);

/// A mesh that was ordered.
pub(super) struct Mesh {
    pub(super) degrees: Degrees,
    pub(super) members: Arc<Vec<(DeviceId, u64)>>,
    pub(super) formed: BTreeSet<usize>,
}

/// A run under way.
pub(super) struct Run {
    pub(super) epoch: u64,
    pub(super) requests: Vec<u64>,
    pub(super) plan: Arc<Plan>,
    pub(super) ended: BTreeSet<usize>,
    pub(super) fault: Option<Fault>,
    pub(super) controller: Walker,
    pub(super) controller_done: bool,
    pub(super) inbox: Inbox,
    /// Strips of each step's checkpoint: still missing.
    pub(super) missing: BTreeMap<u16, usize>,
    /// Steps that are kept whole.
    pub(super) kept: u32,
    pub(super) progress: Progress,
    /// Why it is given up.
    pub(super) stalled: Option<String>,
}

/// A request without a result.
pub(super) struct Request {
    pub(super) client: u64,
    pub(super) run: Option<u64>,
    pub(super) steps: u32,
    /// Where it has no run.
    pub(super) waits_since: Now,
}

/// One life of the coordinator.
pub(super) struct Desk {
    pub(super) number: u64,
    began: Now,
    pub(super) membership: Membership,
    pub(super) formation: Formation,
    settled: bool,
    dispatcher: Dispatcher,
    pub(super) copies: Copies,
    pub(super) sessions: BTreeMap<Member, (Incarnation, u64, u64)>,
    pub(super) meshes: BTreeMap<u64, Mesh>,
    pub(super) runs: BTreeMap<u64, Run>,
    pub(super) requests: BTreeMap<u64, Request>,
    pub(super) next_request: u64,
    pub(super) answered: BTreeSet<u64>,
}

impl Desk {
    pub(super) fn has_session(&self, member: &Member, incarnation: Incarnation) -> bool {
        self.sessions.get(member).is_some_and(|(current, ..)| *current == incarnation)
    }
}

pub(super) enum Step {
    Formation(FormationEvent),
    Dispatcher(DispatcherEvent),
}

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

/// Meshes of every kind: a pipeline of three, pairs and products, of devices that all reach each
/// other.
fn plans(devices: &[DeviceId], cuts: &[Pair]) -> MeshPlans {
    let mut joined: Vec<DeviceId> = Vec::new();
    for device in devices {
        let reaches = |other: &DeviceId| !cuts.contains(&pair(device.clone(), other.clone()));
        if joined.iter().all(reaches) {
            joined.push(device.clone());
        }
    }
    let devices = joined.as_slice();
    let (pipefusion_degree, ulysses_degree) = match devices.len() {
        0 | 1 => (1, 1),
        2 => (1, 2),
        3 => (3, 1),
        _ => (2, 2),
    };
    let degrees = Degrees { pipefusion_degree, ulysses_degree, ..Degrees::default() };
    let used = devices.iter().take(degrees.world_size()).cloned().collect();
    let plan = match devices.is_empty() {
        true => Err(NoMesh::NoDevice),
        false => {
            let num_pipeline_patch = Some(2 * pipefusion_degree);
            Ok(MeshPlan { degrees, num_pipeline_patch, step: None, devices: used })
        }
    };
    MeshPlans { guided: plan.clone(), unguided: plan }
}

pub(super) fn spec(images: usize, first_step: u32, patches: u32) -> RunSpec {
    RunSpec {
        images: vec![
            ImageSpec { prompt: "a".into(), negative_prompt: String::new(), seed: 0 };
            images
        ],
        height: 64,
        width: 64,
        num_inference_steps: STEPS,
        guidance_scale: 4.5,
        num_pipeline_patch: patches,
        sync_steps: 1,
        checkpoint_every: 1,
        first_step,
        ..RunSpec::default()
    }
}

pub(super) fn need(first_step: u32) -> Need {
    Need { mesh: MeshNeed::Open { guided: true }, bytes: 0, shape: Some(first_step.into()) }
}

impl World {
    /// The coordinator's process starts, with what an earlier one wrote down.
    pub(super) fn start_desk(&mut self) {
        self.desks += 1;
        let mut remembered = Remembered::default();
        self.journal.iter().cloned().for_each(|entry| remembered.add(entry));
        let mut manifest = Manifest::in_process(ModelSource::Builtin, 1, 1);
        let section = manifest.nodes.remove(0);
        for node in self.processes.nodes() {
            let mut section = section.clone();
            let count = self.processes.devices_of(&node).len();
            section.devices = vec![section.devices[0].clone(); count];
            section.name = node;
            manifest.nodes.push(section);
        }
        let first = MeshNeed::Open { guided: true };
        let devices = self.processes.devices();
        let next_request = remembered.requests.keys().last().map_or(1, |last| last + 1);
        self.desk = Some(Desk {
            number: self.desks,
            began: self.now,
            membership: Membership::new(&manifest),
            formation: Formation::new(devices, first, remembered.epochs),
            settled: false,
            dispatcher: Dispatcher::new(MESH_WITHIN),
            copies: Copies::default(),
            sessions: BTreeMap::new(),
            meshes: BTreeMap::new(),
            runs: BTreeMap::new(),
            requests: BTreeMap::new(),
            // Numbers of requests that have ended may be used again by nobody.
            next_request: next_request.max(1_000 * self.desks),
            answered: BTreeSet::new(),
        });
        for (id, pending) in remembered.requests {
            let steps = pending.kept.map_or(0, |kept| kept.step);
            let waited = pending.waited(self.now.as_millis() as u64);
            self.admit(id, pending.key.client, steps, waited);
        }
    }

    pub(super) fn tick(&mut self) {
        self.at(TICK, Wake::Tick);
        let Some(desk) = &mut self.desk else { return };
        let settles = !desk.settled && self.now.saturating_sub(desk.began) >= SETTLE;
        desk.settled |= settles;
        self.member(MembershipEvent::Tick);
        self.watch_progress();
        self.let_go();
        self.tend_copies(None);
        if !self.is(Sabotage::KeepExpired) {
            self.advance(Step::Dispatcher(DispatcherEvent::Tick));
        }
        self.check_deadlines();
        if settles {
            self.advance(Step::Formation(FormationEvent::Settled));
        }
    }

    /// What a member says arrives.
    pub(super) fn said(&mut self, member: Member, incarnation: Incarnation, report: Report) {
        if self.network.away.contains(node_of(&member)) {
            return self.at(RETRANSMIT, Wake::Said(member, incarnation, report));
        }
        let Some(desk) = &mut self.desk else { return };
        if let Report::Hello { epoch, number } = report {
            desk.sessions.insert(member.clone(), (incarnation, epoch, number));
            let address = String::new();
            return self.member(MembershipEvent::Joined { member, incarnation, address });
        }
        if !desk.has_session(&member, incarnation) {
            return;
        }
        match (report, &member) {
            (Report::Closed, _) => {
                desk.sessions.remove(&member);
                let reason = "closed".to_owned();
                self.member(MembershipEvent::SessionClosed { member, incarnation, reason });
            }
            (Report::WorkerExited(device, of_worker), _) => {
                let status = "killed".to_owned();
                let incarnation = of_worker;
                self.member(MembershipEvent::WorkerExited { device, incarnation, status });
            }
            (Report::Formed(epoch), Member::Worker(device)) => self.rank_formed(device, epoch),
            (Report::FormFailed(epoch, cause, unanswered), Member::Worker(device)) => {
                let by = device.clone();
                self.member(match unanswered {
                    Some(to) => MembershipEvent::LinkLost { by, to },
                    None => MembershipEvent::Unlinked { by },
                });
                self.lose_mesh(epoch, &cause, Retry::AFewTimes);
            }
            (Report::RunEnded { epoch, run, outcome }, Member::Worker(device)) => {
                self.rank_ended(device, epoch, run, outcome);
            }
            (Report::Copies(message), Member::Agent(node)) => self.about_copies(node, message),
            _ => self.member(MembershipEvent::Heard { member, incarnation }),
        }
    }

    pub(super) fn member(&mut self, event: MembershipEvent) {
        let now = self.now;
        let of_links = |event: &MembershipEvent| {
            matches!(event, MembershipEvent::LinkLost { .. } | MembershipEvent::Unlinked { .. })
        };
        if self.is(Sabotage::IgnoreCuts) && of_links(&event) {
            return;
        }
        let Some(desk) = &mut self.desk else { return };
        for command in desk.membership.handle(now, event) {
            let Some(desk) = &mut self.desk else { return };
            match command {
                MembershipCommand::Refuse(member, incarnation, _)
                | MembershipCommand::CloseSession(member, incarnation, _)
                    if desk.has_session(&member, incarnation) =>
                {
                    let number = desk.sessions.remove(&member).map_or(0, |(.., number)| number);
                    if let Member::Worker(device) = &member {
                        self.order(device, number, Order::Closed);
                    }
                }
                MembershipCommand::DeviceReady(device) => {
                    let member = Member::Worker(device.clone());
                    let epoch = desk.sessions.get(&member).map_or(0, |(_, epoch, _)| *epoch);
                    let epoch = if self.is(Sabotage::ForgetEpochs) { 0 } else { epoch };
                    self.advance(Step::Formation(FormationEvent::DeviceReady { device, epoch }));
                }
                MembershipCommand::DeviceLost(device, loss) => {
                    self.note(|| format!("{device} lost: {loss}"));
                    self.advance(Step::Formation(FormationEvent::DeviceLost(device.clone())));
                    self.lose_meshes_of(&device, &loss.to_string());
                    if let Loss::Hung { .. } = loss {
                        self.recycle(device);
                    }
                }
                MembershipCommand::CutsChanged => {
                    self.note(|| "links count as cut, or no more".to_owned());
                    self.advance(Step::Formation(FormationEvent::CutsChanged));
                }
                MembershipCommand::DeviceLeaving(device) => {
                    self.advance(Step::Formation(FormationEvent::DeviceLeaving(device)));
                }
                MembershipCommand::NodeLost(node, _) => self.tend_copies(Some(&node)),
                MembershipCommand::Release(node) => self.released(node),
                MembershipCommand::Quarantined(member, length) => {
                    self.note(|| format!("{member} is not counted on for {length:?}"));
                }
                _ => {}
            }
        }
    }

    pub(super) fn advance(&mut self, step: Step) {
        let mut steps = VecDeque::from([step]);
        while let Some(step) = steps.pop_front() {
            let now = self.now;
            let Some(desk) = &mut self.desk else { return };
            match step {
                Step::Formation(event) => {
                    for command in desk.formation.handle(event) {
                        self.carry_out_formation(command, &mut steps);
                    }
                }
                Step::Dispatcher(event) => {
                    for command in desk.dispatcher.handle(now, event) {
                        self.carry_out_dispatch(command, &mut steps);
                    }
                }
            }
        }
    }

    fn carry_out_formation(&mut self, command: FormationCommand, steps: &mut VecDeque<Step>) {
        let dispatch = |event, steps: &mut VecDeque<Step>| steps.push_back(Step::Dispatcher(event));
        match command {
            FormationCommand::Plan { number, devices } => {
                let after = self.dice.between(2, 60);
                let desk = self.desk.as_ref().map_or(0, |desk| desk.number);
                let cuts =
                    self.desk.as_ref().map(|desk| desk.membership.cuts()).unwrap_or_default();
                self.at(after, Wake::Planned(desk, number, plans(&devices, &cuts)));
            }
            FormationCommand::Form(order) if order.beside && self.dice.roll(3) == 0 => {
                let (replica, cause) = (order.replica, "no room for both".to_owned());
                self.note(|| format!("epoch {replica} does not fit beside the present mesh"));
                steps.push_back(Step::Formation(FormationEvent::NoRoomBeside { replica, cause }));
            }
            FormationCommand::Form(order) => self.form_mesh(order),
            FormationCommand::Retire { replica } => {
                dispatch(DispatcherEvent::Retired { replica }, steps);
                if self.dice.roll(2) == 0 {
                    // What runs there is worth moving.
                    self.note(|| format!("the runs of epoch {replica} are moved"));
                    steps.push_back(Step::Formation(FormationEvent::Idle(replica)));
                }
            }
            FormationCommand::Open(open) => dispatch(DispatcherEvent::Open(open), steps),
            FormationCommand::Dissolve { replica, cause } => {
                let going_on = self.give_up(replica);
                let error = GenerateError::Lost(cause);
                dispatch(DispatcherEvent::ReplicaLost { replica, going_on, error }, steps);
            }
            FormationCommand::Ready { replica, degrees } => {
                let room = Room { runs_max: 2, images_max: 2, bytes: None };
                dispatch(DispatcherEvent::ReplicaReady { replica, degrees, room }, steps);
            }
            FormationCommand::Failed { mesh, cause } => {
                let error = GenerateError::Failed(cause);
                dispatch(DispatcherEvent::FormFailed { mesh, error }, steps);
            }
            FormationCommand::Absent { cause } => {
                dispatch(DispatcherEvent::MeshAbsent { cause }, steps);
            }
        }
    }

    fn carry_out_dispatch(&mut self, command: DispatcherCommand, steps: &mut VecDeque<Step>) {
        match command {
            DispatcherCommand::Queued { .. } | DispatcherCommand::Waits { .. } => {}
            DispatcherCommand::Start { run, requests, replica } => {
                self.start_run(run, requests, replica);
            }
            DispatcherCommand::Abort { run, replica } => self.stop_run(run, replica),
            DispatcherCommand::Want { mesh } => {
                steps.push_back(Step::Formation(FormationEvent::Want(mesh)));
            }
            DispatcherCommand::Idle { replica } => {
                steps.push_back(Step::Formation(FormationEvent::Idle(replica)));
            }
            DispatcherCommand::Fail { request, error } => {
                self.end_request(request, Err(error.to_string()));
            }
        }
    }

    pub(super) fn planned(&mut self, desk: u64, number: u64, plans: MeshPlans) {
        if self.desk.as_ref().is_some_and(|current| current.number == desk) {
            self.advance(Step::Formation(FormationEvent::Planned { number, plans }));
        }
    }
}

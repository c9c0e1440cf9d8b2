//! The coordinator at its desk: the real engines, and what carries their commands out.
//!
//! Owns one life of the coordinator. What outlives it is in the world's journal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ditmesh_model::spec::{Family, ModelId, ModelSpec, TextStream};
use ditmesh_model::vae::VaeSpec;

use super::processes::node_of;
use super::runs::{Fault, Report};
use super::walker::{Inbox, Walker};
use super::world::{Order, Wake, World};
use super::{Sabotage, ms};
use crate::coordinator::advance::Step;
use crate::coordinator::copies::Copies;
use crate::coordinator::formation::{Formation, FormationEvent};
use crate::coordinator::progress::{Progress, StepLimit};
use crate::dispatcher::{Dispatcher, DispatcherEvent, MeshNeed, Need};
use crate::groups::Retry;
use crate::journal::Remembered;
use crate::manifest::Manifest;
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
    /// Where each rank says that it can come in.
    pub(super) proposed: BTreeMap<usize, u64>,
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
    pub(super) dispatcher: Dispatcher,
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

/// What any request needs that names no degrees, or was lost.
pub(super) const OPEN: MeshNeed = MeshNeed::Open { guided: true };

pub(super) fn need(first_step: u32) -> Need {
    Need { mesh: OPEN, bytes: 0, shape: Some(first_step.into()) }
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
        let devices = self.processes.devices();
        let next_request = remembered.requests.keys().last().map_or(1, |last| last + 1);
        self.desk = Some(Desk {
            number: self.desks,
            began: self.now,
            membership: Membership::new(&manifest),
            formation: Formation::new(devices, OPEN, remembered.epochs),
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
            let waits = pending.waits_since_ms.is_some();
            let waited = waits.then(|| pending.waited(self.now.as_millis() as u64));
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
        let node = node_of(&member).to_owned();
        if self.network.away.contains(&node) {
            return self.network.hold(&node, Wake::Said(member, incarnation, report));
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
            (Report::Proposed { epoch, run, after }, Member::Worker(device)) => {
                self.proposed(device, epoch, run, after);
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
}

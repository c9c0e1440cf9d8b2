//! The controller's part of runs: each walks through its own program, keeps checkpoints in the
//! product's own store, and tells the callers what the coordinator decides.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::frames::Frame;
use super::runs::model;
use super::walker::{Inbox, Next, Untaken, Walker};
use super::world::{Wake, World};
use super::{Sabotage, ms};
use crate::checkpoint::CheckpointStore;
use crate::coordinator::advance::Step;
use crate::coordinator::desk::{Beginning, Begun};
use crate::coordinator::progress::{Planned, Progress, StepLimit};
use crate::coordinator::requests::Request;
use crate::coordinator::run::{Picture, Verdict, tell};
use crate::generation::GenerateError;
use crate::groups::ReplicaMsg;
use crate::plan::Plan;
use crate::plan::message::MessageKind;
use crate::protocol::{DeviceId, RunSpec, Start};
use crate::request::{FloatTensor, Output};

/// What text, steps and decoding are planned to take.
const PLANNED: Planned = Planned { text: Some(ms(20)), step: Some(ms(20)), decode: Some(ms(20)) };
/// When a step counts as one of a device that hangs.
const STEP_LIMIT: StepLimit = StepLimit { floor: ms(3_000), factor: 5, longest: ms(60_000) };

/// The controller's part of a run.
pub(super) struct Task {
    epoch: u64,
    pub(super) plan: Arc<Plan>,
    walker: Walker,
    inbox: Inbox,
    checkpoints: Arc<CheckpointStore>,
    pictures: Vec<Picture>,
    verdict: oneshot::Receiver<Verdict>,
    done: bool,
}

impl World {
    pub(super) fn start_run(&mut self, run: u64, requests: &[u64], epoch: u64) -> bool {
        let (now, begins_anew) = (self.now, self.is(Sabotage::BeginAnew));
        let Some(coordinator) = &mut self.coordinator else { return false };
        let desk = &mut coordinator.desk;
        let Some(mesh) = coordinator.meshes.get(&epoch) else {
            let error = GenerateError::Lost("its mesh is gone".into());
            requests.iter().for_each(|&id| desk.fail(id, error.clone()));
            return false;
        };
        let (mesh_degrees, degrees) = (mesh.degrees, mesh.degrees.alone());
        let num_pipeline_patch = 2 * degrees.pipefusion_degree;
        let spec = |request: &Request| Ok(RunSpec { num_pipeline_patch, ..request.spec.clone() });
        let plan = |spec: &RunSpec| Plan::new(degrees, &model(), spec);
        let plan = match desk.plan_run(requests, spec, plan) {
            Ok((plan, _)) if begins_anew => {
                let spec = RunSpec { first_step: 0, ..plan.run.clone() };
                Arc::new(Plan::new(degrees, &model(), &spec).unwrap_or(plan))
            }
            Ok((plan, _)) => Arc::new(plan),
            Err(error) => {
                self.watch.violations.push(format!("no plan: {error}"));
                return false;
            }
        };
        let devices: Vec<DeviceId> =
            mesh.members.iter().map(|(device, _)| device.clone()).collect();
        let fresh = coordinator.fresh.clone();
        let checkpoints = Arc::new(desk.memory.store_for(requests, move |key| fresh.put(key)));
        let Begun { pictures, verdict, .. } = desk.begin(Beginning {
            run,
            requests,
            replica: epoch,
            place: (mesh_degrees, 0),
            devices,
            plan: Arc::clone(&plan),
            checkpoints: Arc::clone(&checkpoints),
            progress: Progress::new(STEP_LIMIT, PLANNED, now),
        });
        let first_step = plan.run.first_step;
        for id in requests {
            let reached = self.reached.get(id).copied().unwrap_or(0);
            self.watch.begins_at(*id, first_step, reached);
        }
        let start = Start {
            epoch,
            run,
            spec: plan.run.clone(),
            propose: false,
            plan_digest: 0,
            op_deadline_ms: 0,
            traceparent: None,
        };
        let walker = Walker::of_controller(Arc::clone(&plan));
        let (inbox, done) = (Inbox::new(), false);
        let task = Task { epoch, plan, walker, inbox, checkpoints, pictures, verdict, done };
        coordinator.tasks.insert(run, task);
        self.resumed += u64::from(first_step > 0);
        self.note(|| format!("run {run} of {requests:?} in epoch {epoch} from step {first_step}"));
        self.conduct_mesh(epoch, ReplicaMsg::Start(Arc::new(start)));
        self.walk_controller(run);
        true
    }

    /// Something arrives for the controller.
    pub(super) fn controller_gets(&mut self, life: u64, frame: Frame) {
        let Some(current) = &mut self.coordinator else { return };
        let members = current.meshes.get(&frame.epoch).map(|mesh| &mesh.members);
        let Some((device, number)) = members.and_then(|members| members.get(frame.from)) else {
            return;
        };
        if self.network.away.contains(&device.node) {
            let node = device.node.clone();
            return self.network.hold(&node, Wake::Arrived(frame));
        }
        let fits = current.number == life && *number == frame.life;
        let of = |task: &&mut Task| fits && task.epoch == frame.epoch;
        let Some(task) = current.tasks.get_mut(&frame.run).filter(of) else { return };
        if frame.message.kind == MessageKind::Checkpoint {
            // Nobody looks at what is in it.
            task.checkpoints.put(&task.plan, frame.from, &frame.message, &[]);
        }
        task.inbox.insert((frame.run, frame.from, frame.message.tag().0));
        self.walk_controller(frame.run);
        self.attend_to_all();
    }

    fn walk_controller(&mut self, run: u64) {
        loop {
            let now = self.now;
            let Some(coordinator) = &mut self.coordinator else { return };
            let Some(task) = coordinator.tasks.get_mut(&run).filter(|task| !task.done) else {
                return;
            };
            let none = BTreeSet::new();
            match task.walker.next(run, &mut task.inbox, &Untaken::new(), &none, now) {
                Next::Took(from, tag) => {
                    let (epoch, by) = (task.epoch, task.plan.controller());
                    let mesh = coordinator.meshes.get(&epoch);
                    let Some(members) = mesh.map(|mesh| Arc::clone(&mesh.members)) else { return };
                    self.taken(epoch, &members, (run, from, tag), by);
                }
                Next::Wait | Next::NoLink(_) => return,
                Next::Compute | Next::Tell(_) => {}
                Next::Done => {
                    task.done = true;
                    return self.post(Step::ControllerDone(run, Ok(())));
                }
                Next::Send(to, message) => {
                    let mesh = coordinator.meshes.get(&task.epoch);
                    let device = mesh.and_then(|mesh| Some(mesh.members.get(to)?.0.clone()));
                    let Some(device) = device else { return };
                    let (epoch, from) = (task.epoch, task.plan.controller());
                    let frame = Frame { epoch, run, from, life: 0, message, to: Ok(device) };
                    self.send(frame, None);
                }
            }
        }
    }

    /// What the coordinator has decided of runs is told, and their parts here end.
    pub(super) fn tend_tasks(&mut self) {
        let deliver_moved = self.is(Sabotage::DeliverMoved);
        let Some(coordinator) = &mut self.coordinator else { return };
        let mut over = Vec::new();
        for (&run, task) in &mut coordinator.tasks {
            let verdict = match task.verdict.try_recv() {
                Err(TryRecvError::Empty) => continue,
                // As the product takes it: nobody says any more what becomes of the run.
                Err(TryRecvError::Closed) => None,
                Ok(Verdict::Moved) if deliver_moved && task.done => {
                    Some(Verdict::Done(Box::default()))
                }
                Ok(verdict) => Some(verdict),
            };
            let picture = Output::Latents(FloatTensor { shape: Vec::new(), data: Vec::new() });
            let outputs = task.done.then(|| vec![picture; task.pictures.len()]);
            tell(&task.pictures, verdict, outputs);
            over.push((run, task.done));
        }
        for (run, done) in over {
            coordinator.tasks.remove(&run);
            if !done {
                coordinator.mailbox.push_back(Step::ControllerDone(run, Ok(())));
            }
        }
    }
}

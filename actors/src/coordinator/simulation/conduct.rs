//! Runs as the coordinator conducts them: started, followed by its own program, ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::desk::{ABORT_WITHIN, Run, STALLED_WITHIN, STEP_LIMIT, STEPS, model, spec};
use super::runs::{Fault, Frame, Start};
use super::walker::{Inbox, Next, Walker};
use super::world::{Order, Wake, World};
use super::{Sabotage, ms};
use crate::coordinator::advance::Step;
use crate::coordinator::progress::{Planned, Progress};
use crate::dispatcher::DispatcherEvent;
use crate::groups::Retry;
use crate::journal::Entry;
use crate::membership::{Member, MembershipEvent, Now};
use crate::plan::message::MessageKind;
use crate::plan::{Action, Plan};
use crate::protocol::DeviceId;

/// What text, steps and decoding are planned to take.
const PLANNED: Planned = Planned { text: Some(ms(20)), step: Some(ms(20)), decode: Some(ms(20)) };

impl World {
    pub(super) fn start_run(&mut self, run: u64, requests: Vec<u64>, epoch: u64) {
        let now = self.now;
        let Some(desk) = &mut self.desk else { return };
        let Some(mesh) = desk.meshes.get(&epoch) else { return };
        let steps = requests.iter().filter_map(|id| Some(desk.requests.get(id)?.steps)).min();
        let first_step = steps.unwrap_or(0);
        let patches = 2 * mesh.degrees.pipefusion_degree;
        let spec = spec(requests.len(), first_step, patches);
        let plan = match Plan::new(mesh.degrees.alone(), &model(), &spec) {
            Ok(plan) => Arc::new(plan),
            Err(error) => {
                return self.watch.violations.push(format!("no plan: {error}"));
            }
        };
        for id in &requests {
            if let Some(request) = desk.requests.get_mut(id) {
                request.run = Some(run);
                self.journal.push(Entry::Begun { request: *id });
            }
        }
        let members = Arc::clone(&mesh.members);
        let mut missing: BTreeMap<u16, usize> = BTreeMap::new();
        for rank in 0..members.len() {
            for action in plan.actions(rank) {
                if let Action::Send(_, message) = action
                    && message.kind == MessageKind::Checkpoint
                {
                    *missing.entry(message.step).or_default() += 1;
                }
            }
        }
        let controller = Walker::of_controller(Arc::clone(&plan));
        let of_run = Run {
            epoch,
            requests: requests.clone(),
            plan: Arc::clone(&plan),
            ended: BTreeSet::new(),
            fault: None,
            controller,
            controller_done: false,
            proposed: BTreeMap::new(),
            inbox: Inbox::new(),
            missing,
            kept: first_step,
            progress: Progress::new(STEP_LIMIT, PLANNED, now),
            stalled: None,
        };
        // Alone, it comes in behind what every rank has; otherwise the ranks say where.
        let at_work = |other: &Run| other.epoch == epoch && other.ended.len() < members.len();
        let propose = desk.runs.values().any(at_work);
        let of_run = desk.runs.entry(run).insert_entry(of_run).into_mut();
        of_run.progress.encoded(now, first_step < STEPS);
        if first_step > 0 {
            self.resumed += 1;
        }
        self.note(|| format!("run {run} of {requests:?} in epoch {epoch} from step {first_step}"));
        for (device, number) in members.iter() {
            let start = Start { epoch, run, plan: Arc::clone(&plan), propose };
            self.order(device, *number, Order::Start(start));
        }
        self.walk_controller(run);
    }

    /// Something arrives for the controller.
    pub(super) fn controller_gets(&mut self, desk: u64, frame: Frame) {
        let Some(current) = &mut self.desk else { return };
        let members = current.meshes.get(&frame.epoch).map(|mesh| &mesh.members);
        let from = members.and_then(|members| members.get(frame.from)).map(|(from, _)| from);
        if let Some(DeviceId { node, .. }) =
            from.filter(|from| self.network.away.contains(&from.node))
        {
            return self.network.hold(node, Wake::Arrived(frame));
        }
        let fits = current.number == desk
            && current.meshes.get(&frame.epoch).is_some_and(|mesh| {
                mesh.members.get(frame.from).is_some_and(|(_, life)| *life == frame.life)
            });
        let Some(run) =
            current.runs.get_mut(&frame.run).filter(|run| fits && run.epoch == frame.epoch)
        else {
            return;
        };
        let mut kept = None;
        if frame.kind == MessageKind::Checkpoint {
            let step = frame.step;
            let left = run.missing.entry(step).or_default();
            *left = left.saturating_sub(1);
            if *left == 0 && u32::from(step) + 1 > run.kept {
                run.kept = u32::from(step) + 1;
                run.progress.step_done(self.now, run.kept == STEPS);
                kept = Some((run.requests.clone(), run.kept, run.plan.mesh));
            }
        }
        run.inbox.insert((frame.run, frame.from, frame.tag));
        if let Some((requests, steps, mesh)) = kept {
            let members = current.meshes.get(&frame.epoch).map(|mesh| Arc::clone(&mesh.members));
            let ranks = members.iter().flat_map(|members| members.iter().enumerate());
            let last = ranks.filter(|(rank, _)| mesh.coordinates(*rank).stage + 1 == mesh.stages());
            let producers = last.map(|(_, (device, _))| device.node.clone()).collect();
            for request in requests {
                self.journal.push(Entry::Kept { request, step: steps, digest: 0 });
                self.hand_on(request, steps, &producers);
            }
        }
        self.walk_controller(frame.run);
    }

    pub(super) fn walk_controller(&mut self, number: u64) {
        loop {
            let now = self.now;
            let Some(desk) = &mut self.desk else { return };
            let Some(run) = desk.runs.get_mut(&number) else { return };
            match run.controller.next(number, &mut run.inbox, &BTreeSet::new(), now) {
                Next::Wait | Next::NoLink(_) => return,
                Next::Compute => {}
                Next::Done => {
                    run.controller_done = true;
                    return self.check_run(number);
                }
                Next::Send(to, message) => {
                    let members = desk.meshes.get(&run.epoch).map(|mesh| Arc::clone(&mesh.members));
                    let device = members.and_then(|members| Some(members.get(to)?.0.clone()));
                    let Some(device) = device else { return };
                    let frame = Frame {
                        epoch: run.epoch,
                        run: number,
                        from: run.plan.controller(),
                        life: 0,
                        tag: message.tag().0,
                        kind: message.kind,
                        step: message.step,
                        to: Ok(device),
                    };
                    self.send(frame, None);
                }
            }
        }
    }

    /// A rank says where a run can come in; once all have, it comes in after the latest of these.
    pub(super) fn proposed(&mut self, device: &DeviceId, epoch: u64, number: u64, after: u64) {
        let Some(desk) = &mut self.desk else { return };
        let Some(mesh) = desk.meshes.get(&epoch) else { return };
        let Some(rank) = mesh.members.iter().position(|(member, _)| member == device) else {
            return;
        };
        let Some(run) = desk.runs.get_mut(&number).filter(|run| run.epoch == epoch) else { return };
        run.proposed.insert(rank, after);
        if run.proposed.len() < mesh.members.len() || run.fault.is_some() {
            return;
        }
        let (points, members) = (std::mem::take(&mut run.proposed), Arc::clone(&mesh.members));
        let Some(&latest) = points.values().max() else { return };
        let apart = self.is(Sabotage::EnterApart);
        for ((device, life), own) in members.iter().zip(points.into_values()) {
            let after = if apart { own } else { latest };
            self.order(device, *life, Order::Enter { epoch, run: number, after });
        }
    }

    pub(super) fn rank_ended(
        &mut self,
        device: &DeviceId,
        epoch: u64,
        number: u64,
        outcome: Result<(), Fault>,
    ) {
        let Some(desk) = &mut self.desk else { return };
        let Some(mesh) = desk.meshes.get(&epoch) else { return };
        let Some(rank) = mesh.members.iter().position(|(member, _)| member == device) else {
            return;
        };
        let Some(run) = desk.runs.get_mut(&number).filter(|run| run.epoch == epoch) else { return };
        run.ended.insert(rank);
        if let Err(fault) = outcome {
            let first = run.fault.is_none();
            // What a link says explains what "aborted" does not.
            let lost = fault.peer.and_then(|peer| Some(mesh.members.get(peer)?.0.clone()));
            if first || fault.peer.is_some() {
                run.fault = Some(fault);
            }
            if first && !self.is(Sabotage::LeaveWaiting) {
                self.stop_run(number, epoch);
            }
            if let Some(to) = lost {
                self.member(MembershipEvent::LinkLost { by: device.clone(), to });
            }
        }
        self.check_run(number);
    }

    /// Tells the ranks of a run to end it.
    pub(super) fn stop_run(&mut self, run: u64, epoch: u64) {
        self.stop_within(run, epoch, ABORT_WITHIN);
    }

    fn stop_within(&mut self, run: u64, epoch: u64, within: Now) {
        let Some(desk) = &mut self.desk else { return };
        if let Some(run) = desk.runs.get_mut(&run) {
            run.fault.get_or_insert(Fault { cause: "aborted".into(), peer: None });
        }
        let desk_number = desk.number;
        let Some(mesh) = desk.meshes.get(&epoch) else { return };
        let members = Arc::clone(&mesh.members);
        for (device, number) in members.iter() {
            self.order(device, *number, Order::Abort(run));
        }
        self.at(within, Wake::AbortDeadline { epoch, run, desk: desk_number });
    }

    /// Looks which runs do not go on, and has their ranks stopped.
    pub(super) fn watch_progress(&mut self) {
        let now = self.now;
        if self.is(Sabotage::IgnoreStalls) {
            return;
        }
        let Some(desk) = &mut self.desk else { return };
        let mut stalled = Vec::new();
        for (&number, run) in &mut desk.runs {
            let ending = run.fault.is_some() || run.controller_done || run.stalled.is_some();
            if let (false, Some(limit)) = (ending, run.progress.overdue(now, Now::ZERO)) {
                run.stalled = Some(format!("no step within {limit:?}"));
                stalled.push((number, run.epoch));
            }
        }
        for (run, epoch) in stalled {
            self.note(|| format!("run {run} does not go on"));
            self.stop_within(run, epoch, STALLED_WITHIN);
        }
    }

    /// A device that hangs is ended by its agent, which starts it again.
    pub(super) fn recycle(&mut self, device: DeviceId) {
        if !self.network.away.contains(&device.node) {
            self.stalls += 1;
            self.kill(&Member::Worker(device));
        }
    }

    pub(super) fn abort_deadline(&mut self, epoch: u64, run: u64, desk: u64) {
        let Some(current) = self.desk.as_ref().filter(|current| current.number == desk) else {
            return;
        };
        let Some(run) = current.runs.get(&run).filter(|run| run.epoch == epoch) else { return };
        let members = current.meshes.get(&epoch).map(|mesh| Arc::clone(&mesh.members));
        let ranks = members.iter().flat_map(|members| members.iter().enumerate());
        let stuck = ranks.filter(|(rank, _)| !run.ended.contains(rank));
        let stuck: Vec<DeviceId> = stuck.map(|(_, (device, _))| device.clone()).collect();
        for device in stuck {
            self.member(MembershipEvent::Hung { device, milliseconds: 0 });
        }
        self.lose_mesh(epoch, "a rank did not stop", Retry::WhenReady);
    }

    /// Ends a run whose parts have all ended.
    pub(super) fn check_run(&mut self, number: u64) {
        let Some(desk) = &mut self.desk else { return };
        let Some(run) = desk.runs.get(&number) else { return };
        let ranks = desk.meshes.get(&run.epoch).map_or(0, |mesh| mesh.members.len());
        if run.ended.len() < ranks || !(run.controller_done || run.fault.is_some()) {
            return;
        }
        let (epoch, fault) = (run.epoch, run.fault.clone());
        if let Some(cause) = run.stalled.clone() {
            return self.lose_mesh(epoch, &cause, Retry::WhenReady);
        }
        if let Some(Fault { cause, peer: Some(_) }) = fault {
            return self.lose_mesh(epoch, &cause, Retry::WhenReady);
        }
        let Some(run) = desk.runs.remove(&number) else { return };
        for id in run.requests {
            let Some(desk) = &self.desk else { return };
            if desk.requests.get(&id).is_some_and(|request| request.run == Some(number)) {
                let outcome = fault.as_ref().map_or(Ok(()), |fault| Err(fault.cause.clone()));
                self.end_request(id, outcome);
            }
        }
        self.advance(Step::Dispatcher(DispatcherEvent::RunEnded { run: number }));
    }
}

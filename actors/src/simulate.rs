//! Runs every rank's program in virtual time over the cost model.
//!
//! A discrete-event simulation of the same [`Plan`] that ranks execute: compute takes what
//! [`crate::cost::phase`] says, a send costs its sender a moment and then moves by itself, a
//! receive (posted ahead, as the executor does) waits until its frame is there. Owns virtual time.
//! Does not own costs, nor the choice between meshes. Pure: the same plan and
//! cluster give the same seconds.

mod gantt;
mod network;
mod program;
mod report;

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use ditmesh_model::spec::description::Description;

pub use gantt::svg;
use network::Network;
use program::{Timed, timed};
pub use report::{RankTimes, Simulation, Span, SpanKind};

use crate::cost::cluster::Cluster;
use crate::plan::Plan;
use crate::request::Dtype;

/// Spans kept for a Gantt chart; later ones are not drawn.
const SPANS_MAX: usize = 200_000;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The model it is of.
    pub model: &'a Description,
    /// Where it runs.
    pub cluster: &'a Cluster,
    /// Precision of the weights.
    pub dtype: Dtype,
    /// Whether a joint text stream runs again with every patch (as xDiT's FLUX does) rather than
    /// with the first patch of a step only.
    pub text_with_every_patch: bool,
    /// Whether spans are kept for a Gantt chart.
    pub record: bool,
}

impl<'a> Setting<'a> {
    /// `plan` as this engine runs it.
    pub fn new(plan: &'a Plan, model: &'a Description, cluster: &'a Cluster, dtype: Dtype) -> Self {
        Self { plan, model, cluster, dtype, text_with_every_patch: false, record: false }
    }
}

/// A member whose next action is due.
struct Due {
    time: f64,
    member: usize,
}

impl Ord for Due {
    /// The earliest is the greatest, for a heap that pops it first; members in order at one time.
    fn cmp(&self, other: &Self) -> Ordering {
        other.time.total_cmp(&self.time).then(other.member.cmp(&self.member))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

/// Name of a frame: sender, receiver, tag.
type Frame = (usize, usize, u64);

struct Machine<'a> {
    network: Network,
    programs: Vec<Box<dyn Iterator<Item = Timed> + 'a>>,
    /// What a blocked member goes on with.
    pending: Vec<Option<Timed>>,
    arrivals: HashMap<Frame, f64>,
    waiting: HashMap<Frame, (usize, f64)>,
    due: BinaryHeap<Due>,
    copy_s_per_byte: Vec<f64>,
    record: bool,
    result: Simulation,
}

/// Simulates the whole run.
pub fn simulate(setting: &Setting<'_>) -> Simulation {
    let plan = setting.plan;
    let members = plan.controller() + 1;
    let last_step = plan.steps().saturating_sub(1);
    let copies = setting.cluster.devices.iter().map(|d| 1.0 / d.profile.memory_bytes_per_s);
    let mut machine = Machine {
        network: Network::new(setting.cluster, members),
        programs: (0..members).map(|member| timed(setting, member)).collect(),
        pending: vec![None; members],
        arrivals: HashMap::new(),
        waiting: HashMap::new(),
        due: (0..members).map(|member| Due { time: 0.0, member }).collect(),
        copy_s_per_byte: copies.take(members - 1).chain([0.0]).collect(),
        record: setting.record,
        result: Simulation::new(members - 1, plan.steps()),
    };
    while let Some(due) = machine.due.pop() {
        machine.advance(due, last_step);
    }
    machine.result
}

impl Machine<'_> {
    /// Runs a member until another one is due first, it waits, or it is done.
    fn advance(&mut self, due: Due, last_step: usize) {
        let Due { mut time, member } = due;
        loop {
            if self.due.peek().is_some_and(|next| next.time < time) {
                return self.due.push(Due { time, member });
            }
            let action = self.pending[member].take().or_else(|| self.programs[member].next());
            let Some(action) = action else { break };
            self.result.actions += 1;
            match action {
                Timed::Compute(seconds, kind) => {
                    self.spend(member, time, time + seconds, kind);
                    time += seconds;
                }
                Timed::Send { to, tag, bytes, step } => {
                    if step == last_step {
                        self.result.count(member, to, bytes, self.network.crosses(member, to));
                    }
                    time = self.send(member, to, tag, bytes, time);
                }
                Timed::Recv { from, tag } => {
                    let frame = (from, member, tag);
                    let Some(arrival) = self.arrivals.remove(&frame) else {
                        self.waiting.insert(frame, (member, time));
                        return;
                    };
                    self.spend(member, time, arrival.max(time), SpanKind::Wait);
                    time = arrival.max(time);
                }
                Timed::StepDone(step) => self.result.step_done(step, time),
            }
        }
        self.result.seconds = self.result.seconds.max(time);
    }

    fn send(&mut self, from: usize, to: usize, tag: u64, bytes: u64, time: f64) -> f64 {
        let cost =
            self.network.link(from, to).message_s + bytes as f64 * self.copy_s_per_byte[from];
        let left = time + cost;
        self.spend(from, time, left, SpanKind::Send);
        let arrival = self.network.send(from, to, bytes, left);
        let frame = (from, to, tag);
        match self.waiting.remove(&frame) {
            Some((member, since)) => {
                self.spend(member, since, arrival.max(since), SpanKind::Wait);
                self.due.push(Due { time: arrival.max(since), member });
            }
            None => {
                self.arrivals.insert(frame, arrival);
            }
        }
        left
    }

    fn spend(&mut self, member: usize, start: f64, end: f64, kind: SpanKind) {
        let Some(times) = self.result.ranks.get_mut(member) else { return };
        times.add(kind, end - start);
        if self.record && end > start {
            self.result.draw(Span { rank: member, start, end, kind }, SPANS_MAX);
        }
    }
}

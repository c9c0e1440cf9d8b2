//! Virtual time: the queue of what happens next, the dice, the log, and the loop over it all.
//!
//! Owns the order of events: by time, then by the order in which they were scheduled.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::clients::Wait;
use super::coordinator::{Coordinator, Session};
use super::faults::Fault;
use super::frames::Frame;
use super::invariants::Watch;
use super::processes::{Network, Processes};
use super::runs::Report;
use super::{Sabotage, ms};
use crate::checkpoint::Checkpoint;
use crate::coordinator::mesh_plan::MeshPlans;
use crate::generation::{GenerationHandle, UpdateSink};
use crate::groups::ReplicaMsg;
use crate::journal::Remembered;
use crate::membership::{Incarnation, Member, Now};
use crate::protocol::{DeviceId, FromCoordinator};
use crate::request::{Degrees, GenerateRequest};

/// Faults end here.
pub(super) const FAULTS_END: Now = ms(12_000);
/// Everything has to be done by then.
const END: Now = ms(120_000);
/// Events of a simulation, at most: more is a livelock.
const EVENTS_MAX: u64 = 2_000_000;
/// Requests of a simulation.
const REQUESTS: u64 = 8;

/// Degrees of manifests: cfg, pipefusion, ulysses and data.
const MESHES: [[u32; 4]; 5] =
    [[1, 3, 2, 1], [1, 2, 2, 1], [2, 2, 1, 1], [1, 2, 1, 2], [1, 1, 2, 2]];
/// Degrees that requests name.
const NAMED: [[u32; 4]; 3] = [[1, 2, 1, 1], [1, 1, 2, 1], [2, 1, 1, 1]];

/// What happens at a moment.
pub(super) enum Wake {
    /// The coordinator's clock.
    Tick,
    /// A member's process sends a sign of life.
    Heartbeat(Member, u64),
    /// A process tries to open a session.
    Connect(Member, u64),
    /// What a member says arrives at the coordinator.
    Said(Member, Incarnation, Report),
    /// What the coordinator says arrives at a worker.
    Ordered(DeviceId, Session, Order),
    /// What the coordinator of this number says arrives at an agent.
    AgentOrdered(String, u64, FromCoordinator),
    /// A worker has loaded its part of a mesh.
    Loaded(DeviceId, u64, u64),
    /// A frame arrives at a rank, or at the controller.
    Arrived(Frame),
    /// A rank has computed.
    Computed {
        device: DeviceId,
        life: u64,
        epoch: u64,
    },
    /// A rank hears that a frame of its was taken.
    Taken {
        device: DeviceId,
        life: u64,
        epoch: u64,
    },
    /// A rank notices that its link to a peer is gone.
    LinkLost {
        device: DeviceId,
        life: u64,
        epoch: u64,
        peer: usize,
    },
    /// The planner has an answer.
    Planned(u64, u64, MeshPlans),
    /// The supervisors of a mesh hear something, in this life of the coordinator.
    Conduct {
        life: u64,
        epoch: u64,
        message: ReplicaMsg,
    },
    /// A request is on the coordinator's disk.
    Written {
        life: u64,
        id: u64,
        request: Box<GenerateRequest>,
        sink: UpdateSink,
    },
    /// It is noticed that a client's connection is gone.
    Hangup(GenerationHandle),
    /// A client asks, or asks again.
    Ask(u64),
    /// A client gives up.
    Cancel(u64),
    /// A result reaches its client.
    Answer {
        client: u64,
        life: u64,
        request: u64,
        outcome: Result<(), String>,
    },
    Fault(Fault),
    /// Something ends that a fault began.
    Mend(Fault),
}

/// From coordinator to worker.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// With what stands for addresses.
    Form(super::runs::Form),
    /// With the plan that the rank would make.
    Start(super::runs::Start),
    Message(FromCoordinator),
    /// The session is over.
    Closed,
}

/// What a simulation came to.
pub(super) struct Ending {
    pub(super) violations: Vec<String>,
    pub(super) log: Vec<String>,
    pub(super) faults: u64,
    pub(super) requests: u64,
    pub(super) resumed: u64,
    pub(super) restarts: u64,
    pub(super) recalls: u64,
    pub(super) stalls: u64,
    pub(super) expired: u64,
    pub(super) lost: u64,
}

/// SplitMix64.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % sides.max(1)
    }

    /// Milliseconds from `low` to `high`.
    pub(super) fn between(&mut self, low: u64, high: u64) -> Now {
        // Microseconds, so that two things seldom happen at one moment.
        Now::from_micros(1000 * low + self.roll(1000 * (high - low) + 1))
    }
}

fn degrees([cfg_degree, pipefusion_degree, ulysses_degree, data_degree]: [u32; 4]) -> Degrees {
    Degrees { cfg_degree, pipefusion_degree, ulysses_degree, data_degree, ..Degrees::default() }
}

/// Everything there is.
pub(super) struct World {
    pub(super) now: Now,
    scheduled: u64,
    queue: BTreeMap<(Now, u64), Wake>,
    pub(super) dice: Dice,
    pub(super) log: Vec<String>,
    pub(super) sabotage: Option<Sabotage>,
    pub(super) watch: Watch,
    pub(super) network: Network,
    /// The mesh of the manifest, which gives way where devices are missing.
    pub(super) fixed: Degrees,
    pub(super) processes: Processes,
    /// The coordinator, while its process lives.
    pub(super) coordinator: Option<Coordinator>,
    /// Lives of the coordinator so far.
    pub(super) lives: u64,
    /// What the coordinator's journal says.
    pub(super) remembered: Remembered,
    /// Newest checkpoints on its disk, by request.
    pub(super) checkpoints: BTreeMap<u64, Arc<Checkpoint>>,
    /// Steps that requests have reached and go on from.
    pub(super) reached: BTreeMap<u64, u32>,
    /// Requests with deadlines that wait.
    pub(super) waits: BTreeMap<u64, Wait>,
    /// Of each request how many steps it had when it was lost, and how often it was since.
    pub(super) losses: BTreeMap<u64, (usize, u32)>,
    /// Where each rank said that a run can come in.
    pub(super) points: BTreeMap<(u64, u32), u64>,
    /// How long clients let their requests wait, in seconds; others wait for as long as it takes.
    pub(super) deadlines: BTreeMap<u64, u32>,
    /// Degrees that clients name; they have deadlines, because cut links may leave none for these.
    pub(super) named: BTreeMap<u64, Degrees>,
    pub(super) faults: u64,
    pub(super) resumed: u64,
    /// Copies of checkpoints that came back.
    pub(super) recalls: u64,
    /// Workers that hung or were silent, and were ended by force.
    pub(super) stalls: u64,
}

impl World {
    pub(super) fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut dice = Dice(seed);
        let (devices, nodes) = (2 + dice.roll(4), 2 + dice.roll(3));
        let fixed = degrees(MESHES[dice.roll(MESHES.len() as u64) as usize]);
        let mut world = Self {
            now: Now::ZERO,
            scheduled: 0,
            queue: BTreeMap::new(),
            log: Vec::new(),
            sabotage,
            watch: Watch::default(),
            network: Network::default(),
            fixed,
            processes: Processes::of(devices, nodes),
            coordinator: None,
            lives: 0,
            remembered: Remembered::default(),
            checkpoints: BTreeMap::new(),
            reached: BTreeMap::new(),
            waits: BTreeMap::new(),
            losses: BTreeMap::new(),
            points: BTreeMap::new(),
            deadlines: BTreeMap::new(),
            named: BTreeMap::new(),
            faults: 0,
            resumed: 0,
            recalls: 0,
            stalls: 0,
            dice,
        };
        world.start_coordinator();
        for node in world.processes.nodes() {
            let after = world.dice.between(1, 300);
            world.at(after, Wake::Mend(Fault::KillAgent(node)));
        }
        for client in 0..REQUESTS {
            let after = world.dice.between(100, 14_000);
            world.at(after, Wake::Ask(client));
            if world.dice.roll(4) == 0 {
                let seconds = 1 + world.dice.roll(8) as u32;
                world.deadlines.insert(client, seconds);
                world.watch.may_expire(client);
                if world.dice.roll(2) == 0 {
                    let index = world.dice.roll(NAMED.len() as u64) as usize;
                    world.named.insert(client, degrees(NAMED[index]));
                }
            }
            if world.dice.roll(8) == 0 {
                let patience = world.dice.between(20, 3_000);
                world.at(after + patience, Wake::Cancel(client));
            }
        }
        world.at(ms(50), Wake::Tick);
        world.schedule_fault();
        world
    }

    /// Schedules something `after` from now.
    pub(super) fn at(&mut self, after: Now, wake: Wake) {
        self.scheduled += 1;
        self.queue.insert((self.now + after, self.scheduled), wake);
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        self.log.push(format!("{:>10.3} {}", self.now.as_secs_f64() * 1e3, what()));
    }

    pub(super) fn is(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    pub(super) fn run(mut self) -> Ending {
        let mut events = 0;
        while let Some(((when, _), wake)) = self.queue.pop_first() {
            self.now = when;
            events += 1;
            if when > END || events > EVENTS_MAX || self.is_over() {
                break;
            }
            self.wake(wake);
            self.check_waits();
        }
        self.watch.check_end(self.now, REQUESTS);
        if events > EVENTS_MAX {
            self.watch.violations.push(format!("livelock: {events} events by {:?}", self.now));
        }
        Ending {
            expired: self.watch.expired(),
            lost: self.watch.fruitless(),
            violations: self.watch.violations,
            log: self.log,
            faults: self.faults,
            requests: REQUESTS,
            resumed: self.resumed,
            restarts: self.lives - 1,
            recalls: self.recalls,
            stalls: self.stalls,
        }
    }

    /// Whether faults are over and every client has its answer.
    fn is_over(&self) -> bool {
        self.now > FAULTS_END && self.watch.answered() == REQUESTS
    }

    fn wake(&mut self, wake: Wake) {
        match wake {
            Wake::Tick => self.tick(),
            Wake::Heartbeat(member, life) => self.heartbeat(&member, life),
            Wake::Connect(member, life) => self.connect(&member, life),
            Wake::Said(member, incarnation, report) => self.said(member, incarnation, report),
            Wake::Ordered(device, session, order) => self.ordered(&device, session, order),
            Wake::AgentOrdered(node, life, message) => self.agent_ordered(node, life, message),
            Wake::Loaded(device, life, epoch) => self.loaded(&device, life, epoch),
            Wake::Arrived(frame) => self.arrived(frame),
            Wake::Computed { device, life, epoch } => self.computed(&device, life, epoch),
            Wake::Taken { device, life, epoch } => self.hears_taken(&device, life, epoch),
            Wake::LinkLost { device, life, epoch, peer } => {
                self.link_lost(&device, life, epoch, peer);
            }
            Wake::Planned(life, number, plans) => self.planned(life, number, plans),
            Wake::Conduct { life, epoch, message } => self.conducted_late(life, epoch, message),
            Wake::Written { life, id, request, sink } => self.written(life, id, *request, sink),
            Wake::Hangup(handle) => {
                drop(handle);
                self.attend_to_all();
            }
            Wake::Ask(client) => self.ask(client),
            Wake::Cancel(client) => self.cancel(client),
            Wake::Answer { client, life, request, outcome } => {
                self.answer(client, life, request, outcome);
            }
            Wake::Fault(fault) => self.fault(fault),
            Wake::Mend(fault) => self.mend(fault),
        }
    }
}

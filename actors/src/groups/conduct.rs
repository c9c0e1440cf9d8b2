//! What the root of a mesh's tree decides: when its ranks are told to start, to enter and to stop,
//! and when the mesh is lost.
//!
//! A pure engine: what [`DataReplica`](super::DataReplica) is sent goes in, commands come out; the
//! simulation of the coordinator runs the same one. Owns which runs are under way and whether they
//! were told to stop. Does not own actors, sessions or timers.
//!
//! Invariants: a run is told to stop once; the end of a run is told before the loss that it means;
//! nothing is decided after the mesh was lost or dissolved.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{ChildReport, MeshLoss, Order, ReplicaMsg, ReplicaReport, Report};
use crate::protocol::{DeviceId, RankOutcome, Start};

/// Longest time for all ranks to end an aborted run.
pub(crate) const ABORT_DEADLINE: Duration = Duration::from_secs(10);

/// The same of a run that does not go on: who waits stops at once, and whoever computes was given
/// time.
pub(crate) const STALLED_DEADLINE: Duration = Duration::from_secs(2);

/// What to do.
#[derive(Debug)]
pub(crate) enum Conducted {
    /// To all ranks.
    Order(Order),
    /// To the coordinator.
    Tell(ReplicaReport),
    /// Say this again after a while.
    After(Duration, ReplicaMsg),
    /// The mesh has ended: the survivors are told why, and then the tree ends.
    Dissolve(String),
}

/// The conduct of one mesh.
#[derive(Debug)]
pub(crate) struct Conduct {
    epoch: u64,
    /// By rank.
    devices: BTreeMap<u32, DeviceId>,
    form_deadline: Duration,
    formed: bool,
    ended: bool,
    /// The runs, and whether each was told to stop.
    runs: BTreeMap<u64, bool>,
    /// Runs that do not go on, and why that is thought.
    stalled: BTreeMap<u64, String>,
}

type Commands = Vec<Conducted>;

impl Conduct {
    /// Of a mesh of these devices, by rank.
    pub(crate) fn new(
        epoch: u64,
        devices: BTreeMap<u32, DeviceId>,
        form_deadline: Duration,
    ) -> Self {
        Self {
            epoch,
            devices,
            form_deadline,
            formed: false,
            ended: false,
            runs: BTreeMap::new(),
            stalled: BTreeMap::new(),
        }
    }

    /// What is to be said when the ranks have been told to form.
    pub(crate) fn form_deadline(&self) -> (Duration, ReplicaMsg) {
        (self.form_deadline, ReplicaMsg::FormDeadline)
    }

    /// Takes one message.
    pub(crate) fn handle(&mut self, message: ReplicaMsg) -> Commands {
        if self.ended {
            return Vec::new();
        }
        match message {
            ReplicaMsg::Start(start) => {
                // Alone, it comes in behind what every rank has; otherwise the ranks say where.
                let propose = !self.runs.is_empty();
                self.runs.insert(start.run, false);
                let start = Start { propose, ..(*start).clone() };
                vec![Conducted::Order(Order::Start(Arc::new(start)))]
            }
            ReplicaMsg::Abort { run, cause } => self.abort(run, cause, ABORT_DEADLINE),
            ReplicaMsg::Stalled { run, cause } if self.runs.contains_key(&run) => {
                self.stalled.insert(run, cause.clone());
                self.abort(run, cause, STALLED_DEADLINE)
            }
            // It has ended this very moment; that the mesh is lost is expected all the same.
            ReplicaMsg::Stalled { cause, .. } => self.lose(MeshLoss::Stalled { cause }),
            ReplicaMsg::Dissolve { cause } => {
                self.ended = true;
                vec![Conducted::Dissolve(cause)]
            }
            ReplicaMsg::ControllerFailed { cause } => self.lose(MeshLoss::Controller { cause }),
            ReplicaMsg::Child(ChildReport { report, .. }) => self.hear(report),
            ReplicaMsg::Failed(loss) => self.lose(loss),
            ReplicaMsg::FormDeadline if !self.formed => {
                let milliseconds = self.form_deadline.as_millis() as u64;
                self.lose(MeshLoss::FormTimedOut { devices: self.one_of(), milliseconds })
            }
            ReplicaMsg::AbortDeadline { run, milliseconds }
                if self.runs.get(&run) == Some(&true) =>
            {
                self.lose(MeshLoss::Stuck { devices: self.one_of(), run, milliseconds })
            }
            ReplicaMsg::FormDeadline | ReplicaMsg::AbortDeadline { .. } => Vec::new(),
        }
    }

    fn hear(&mut self, report: Report) -> Commands {
        let epoch = self.epoch;
        match report {
            Report::Formed(ranks) => {
                self.formed = true;
                tell(ReplicaReport::Formed { epoch, ranks })
            }
            // One that is stopped meanwhile comes in nowhere.
            Report::Proposed { run, after } if self.is_under_way(run) => {
                vec![Conducted::Order(Order::Enter { run, after })]
            }
            Report::Progress { run, event } => tell(ReplicaReport::Progress { run, event }),
            Report::Failing { run, rank, cause, peer } if self.is_under_way(run) => {
                let why = format!("rank {rank} failed: {cause}");
                let mut commands = tell(ReplicaReport::Failing { run, rank, cause, peer });
                commands.extend(self.abort(run, why, ABORT_DEADLINE));
                commands
            }
            Report::Ended { run, outcomes } if self.runs.remove(&run).is_some() => {
                let stalled = self.stalled.remove(&run).map(|cause| MeshLoss::Stalled { cause });
                let broken = self.broken_link(&outcomes).or(stalled);
                let mut commands = tell(ReplicaReport::Ended { run, outcomes });
                commands.extend(broken.map(|loss| self.lose(loss)).unwrap_or_default());
                commands
            }
            // The end of a run of an older mesh on the same device says nothing of this one.
            Report::Proposed { .. } | Report::Failing { .. } | Report::Ended { .. } => Vec::new(),
        }
    }

    /// Whether a run is neither over nor told to stop.
    fn is_under_way(&self, run: u64) -> bool {
        self.runs.get(&run) == Some(&false)
    }

    fn abort(&mut self, run: u64, cause: String, within: Duration) -> Commands {
        match self.runs.get_mut(&run) {
            Some(stopping) if !*stopping => *stopping = true,
            _ => return Vec::new(),
        }
        let milliseconds = within.as_millis() as u64;
        let deadline = ReplicaMsg::AbortDeadline { run, milliseconds };
        vec![Conducted::Order(Order::Abort { run, cause }), Conducted::After(within, deadline)]
    }

    /// The first link that a rank says is broken: such a mesh is of no more use.
    fn broken_link(&self, outcomes: &[(u32, RankOutcome)]) -> Option<MeshLoss> {
        outcomes.iter().find_map(|(rank, outcome)| match outcome {
            RankOutcome::Failed { cause, peer: Some(peer) } => Some(MeshLoss::Link {
                rank: *rank,
                device: self.device(*rank)?.clone(),
                peer: match self.device(*peer) {
                    Some(device) => format!("device {device} (rank {peer})"),
                    None => "the coordinator".into(),
                },
                to: self.device(*peer).cloned(),
                cause: cause.clone(),
            }),
            _ => None,
        })
    }

    fn device(&self, rank: u32) -> Option<&DeviceId> {
        self.devices.get(&rank)
    }

    fn one_of(&self) -> String {
        let names: Vec<String> = self.devices.values().map(ToString::to_string).collect();
        format!("one of {}", names.join(", "))
    }

    /// Ends the mesh badly: the survivors and the coordinator hear why.
    fn lose(&mut self, cause: MeshLoss) -> Commands {
        self.ended = true;
        let why = cause.to_string();
        let mut commands = tell(ReplicaReport::Lost { epoch: self.epoch, cause });
        commands.push(Conducted::Dissolve(why));
        commands
    }
}

fn tell(report: ReplicaReport) -> Commands {
    vec![Conducted::Tell(report)]
}

//! The root of the tree: one whole mesh that takes one request at a time.
//!
//! Owns the deadlines of forming and of stopping a run, and the end of the mesh: it is the only
//! one that tells the survivors to dissolve, because the groups below may be gone by then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, DerivedActorRef, SupervisionEvent};

use super::group::Part;
use super::{CfgGroup, ChildReport, GroupArgs, MeshLoss, Order, ReplicaReport, Report, Seat};
use crate::protocol::{Form, FromCoordinator, RankOutcome, Start};

/// Longest time for all ranks to end an aborted run.
pub(crate) const ABORT_DEADLINE: Duration = Duration::from_secs(10);

/// The same of a run that does not go on: who waits stops at once, and whoever computes was given
/// time.
pub(crate) const STALLED_DEADLINE: Duration = Duration::from_secs(2);

/// Supervises the [`CfgGroup`] of one mesh.
pub(crate) struct DataReplica;

/// What a replica is made of.
pub(crate) struct ReplicaArgs {
    /// For all ranks; each gets its own number.
    pub(crate) form: Form,
    pub(crate) seats: Vec<Seat>,
    /// Transformer blocks of the model.
    pub(crate) blocks: u32,
    pub(crate) coordinator: DerivedActorRef<ReplicaReport>,
}

/// What a replica is sent.
#[derive(Debug)]
pub(crate) enum ReplicaMsg {
    /// Run a request.
    Start(Arc<Start>),
    /// Stop a run.
    Abort {
        run: u64,
        cause: String,
    },
    /// A run does not go on: stop it, and end the mesh.
    Stalled {
        run: u64,
        cause: String,
    },
    /// End the mesh; nothing is reported.
    Dissolve {
        cause: String,
    },
    /// The controller could not join.
    ControllerFailed {
        cause: String,
    },
    Child(ChildReport),
    FormDeadline,
    AbortDeadline {
        run: u64,
        milliseconds: u64,
    },
}

impl From<ChildReport> for ReplicaMsg {
    fn from(report: ChildReport) -> Self {
        Self::Child(report)
    }
}

impl TryFrom<ReplicaMsg> for ChildReport {
    type Error = ();

    fn try_from(message: ReplicaMsg) -> Result<Self, ()> {
        match message {
            ReplicaMsg::Child(report) => Ok(report),
            _ => Err(()),
        }
    }
}

/// A replica at work.
pub(crate) struct State {
    form: Arc<Form>,
    seats: Vec<Seat>,
    group: DerivedActorRef<Order>,
    coordinator: DerivedActorRef<ReplicaReport>,
    formed: bool,
    /// The runs, and whether each was told to stop.
    runs: BTreeMap<u64, bool>,
    /// Runs that do not go on, and why that is thought.
    stalled: BTreeMap<u64, String>,
}

impl Actor for DataReplica {
    type Msg = ReplicaMsg;
    type State = State;
    type Arguments = ReplicaArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<ReplicaMsg>,
        args: ReplicaArgs,
    ) -> Result<State, ActorProcessingErr> {
        let group = GroupArgs {
            child: 0,
            seats: args.seats.clone(),
            blocks: args.blocks,
            epoch: args.form.epoch,
            parent: myself.get_derived(),
            coordinator: args.coordinator.clone(),
        };
        let group = <CfgGroup as Part>::spawn(group, myself.get_cell()).await?;
        Ok(State {
            form: Arc::new(args.form),
            seats: args.seats,
            group,
            coordinator: args.coordinator,
            formed: false,
            runs: BTreeMap::new(),
            stalled: BTreeMap::new(),
        })
    }

    async fn post_start(
        &self,
        myself: ActorRef<ReplicaMsg>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.order(Order::Form(state.form.clone()));
        let deadline = Duration::from_millis(state.form.deadline_ms.into());
        myself.send_after(deadline, || ReplicaMsg::FormDeadline);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<ReplicaMsg>,
        message: ReplicaMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ReplicaMsg::Start(start) => {
                // Alone, it comes in behind what every rank has; otherwise the ranks say where.
                let propose = !state.runs.is_empty();
                state.runs.insert(start.run, false);
                state.order(Order::Start(Arc::new(Start { propose, ..(*start).clone() })));
            }
            ReplicaMsg::Abort { run, cause } => state.abort(&myself, run, cause, ABORT_DEADLINE),
            ReplicaMsg::Stalled { run, cause } if state.runs.contains_key(&run) => {
                state.stalled.insert(run, cause.clone());
                state.abort(&myself, run, cause, STALLED_DEADLINE);
            }
            // It has ended this very moment; that the mesh is lost is expected all the same.
            ReplicaMsg::Stalled { cause, .. } => state.lose(&myself, MeshLoss::Stalled { cause }),
            ReplicaMsg::Dissolve { cause } => {
                state.tell_to_dissolve(&cause);
                myself.stop(Some(cause));
            }
            ReplicaMsg::ControllerFailed { cause } => {
                state.lose(&myself, MeshLoss::Controller { cause });
            }
            ReplicaMsg::Child(ChildReport { report, .. }) => state.hear(&myself, report),
            ReplicaMsg::FormDeadline if !state.formed => {
                let milliseconds = state.form.deadline_ms.into();
                let devices = state.devices();
                state.lose(&myself, MeshLoss::FormTimedOut { devices, milliseconds });
            }
            ReplicaMsg::AbortDeadline { run, milliseconds }
                if state.runs.get(&run) == Some(&true) =>
            {
                let devices = state.devices();
                state.lose(&myself, MeshLoss::Stuck { devices, run, milliseconds });
            }
            ReplicaMsg::FormDeadline | ReplicaMsg::AbortDeadline { .. } => {}
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<ReplicaMsg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let Err(failure) = super::group::fail_with_part(event) {
            state.lose(&myself, MeshLoss::from_failure(failure));
        }
        Ok(())
    }
}

impl State {
    fn hear(&mut self, myself: &ActorRef<ReplicaMsg>, report: Report) {
        let epoch = self.form.epoch;
        match report {
            Report::Formed(ranks) => {
                self.formed = true;
                self.tell(ReplicaReport::Formed { epoch, ranks });
            }
            Report::Proposed { run, after } => {
                // One that is stopped meanwhile comes in nowhere.
                if self.runs.get(&run) == Some(&false) {
                    self.order(Order::Enter { run, after });
                }
            }
            Report::Progress { run, event } => self.tell(ReplicaReport::Progress { run, event }),
            Report::Failing { run, rank, cause, peer } => {
                if self.runs.get(&run) == Some(&false) {
                    let why = format!("rank {rank} failed: {cause}");
                    self.tell(ReplicaReport::Failing { run, rank, cause, peer });
                    self.abort(myself, run, why, ABORT_DEADLINE);
                }
            }
            // The end of a run of an older mesh on the same device says nothing of this one.
            Report::Ended { run, .. } if !self.runs.contains_key(&run) => {}
            Report::Ended { run, outcomes } => {
                self.runs.remove(&run);
                let stalled = self.stalled.remove(&run).map(|cause| MeshLoss::Stalled { cause });
                let broken = self.broken_link(&outcomes).or(stalled);
                self.tell(ReplicaReport::Ended { run, outcomes });
                if let Some(loss) = broken {
                    self.lose(myself, loss);
                }
            }
        }
    }

    fn abort(&mut self, myself: &ActorRef<ReplicaMsg>, run: u64, cause: String, within: Duration) {
        match self.runs.get_mut(&run) {
            Some(stopping) if !*stopping => *stopping = true,
            _ => return,
        }
        self.order(Order::Abort { run, cause });
        let milliseconds = within.as_millis() as u64;
        myself.send_after(within, move || ReplicaMsg::AbortDeadline { run, milliseconds });
    }

    /// The first link that a rank says is broken: such a mesh is of no more use.
    fn broken_link(&self, outcomes: &[(u32, RankOutcome)]) -> Option<MeshLoss> {
        outcomes.iter().find_map(|(rank, outcome)| match outcome {
            RankOutcome::Failed { cause, peer: Some(peer) } => Some(MeshLoss::Link {
                rank: *rank,
                device: self.seat(*rank)?.device.clone(),
                peer: match self.seat(*peer) {
                    Some(seat) => format!("device {} (rank {peer})", seat.device),
                    None => "the coordinator".into(),
                },
                to: self.seat(*peer).map(|seat| seat.device.clone()),
                cause: cause.clone(),
            }),
            _ => None,
        })
    }

    fn seat(&self, rank: u32) -> Option<&Seat> {
        self.seats.iter().find(|seat| seat.rank == rank)
    }

    fn devices(&self) -> String {
        let names: Vec<String> = self.seats.iter().map(|seat| seat.device.to_string()).collect();
        format!("one of {}", names.join(", "))
    }

    /// Ends the mesh badly: the survivors and the coordinator hear why.
    fn lose(&self, myself: &ActorRef<ReplicaMsg>, cause: MeshLoss) {
        tracing::warn!(epoch = self.form.epoch, %cause, "mesh lost");
        self.tell_to_dissolve(&cause.to_string());
        myself.stop(Some(cause.to_string()));
        self.tell(ReplicaReport::Lost { epoch: self.form.epoch, cause });
    }

    fn tell_to_dissolve(&self, cause: &str) {
        for seat in &self.seats {
            let (epoch, cause) = (self.form.epoch, cause.to_string());
            seat.session.send(FromCoordinator::Dissolve { epoch, cause });
        }
    }

    fn order(&self, order: Order) {
        // A group that is gone has failed; its supervision event says why.
        let _ = self.group.send_message(order);
    }

    fn tell(&self, report: ReplicaReport) {
        // A coordinator that is gone takes this replica down with it.
        let _ = self.coordinator.send_message(report);
    }
}

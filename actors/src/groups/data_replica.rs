//! The root of the tree: one whole mesh that takes one request at a time.
//!
//! Carries out what [`Conduct`] decides: orders down the tree, reports to the coordinator, timers,
//! and the end of the mesh. It is the only one that tells the survivors to dissolve, because the
//! groups below may be gone by then.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, DerivedActorRef, SupervisionEvent};

use super::conduct::{Conduct, Conducted};
use super::group::Part;
use super::{CfgGroup, ChildReport, GroupArgs, MeshLoss, Order, ReplicaReport, Seat};
use crate::protocol::{Form, FromCoordinator, Start};

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
    /// The tree below is gone.
    Failed(MeshLoss),
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
    conduct: Conduct,
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
        let devices = args.seats.iter().map(|seat| (seat.rank, seat.device.clone())).collect();
        let deadline = Duration::from_millis(args.form.deadline_ms.into());
        Ok(State {
            conduct: Conduct::new(args.form.epoch, devices, deadline),
            form: Arc::new(args.form),
            seats: args.seats,
            group,
            coordinator: args.coordinator,
        })
    }

    async fn post_start(
        &self,
        myself: ActorRef<ReplicaMsg>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.order(Order::Form(state.form.clone()));
        let (deadline, message) = state.conduct.form_deadline();
        myself.send_after(deadline, || message);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<ReplicaMsg>,
        message: ReplicaMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.conduct(&myself, message);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<ReplicaMsg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let Err(failure) = super::group::fail_with_part(event) {
            state.conduct(&myself, ReplicaMsg::Failed(MeshLoss::from_failure(failure)));
        }
        Ok(())
    }
}

impl State {
    fn conduct(&mut self, myself: &ActorRef<ReplicaMsg>, message: ReplicaMsg) {
        for command in self.conduct.handle(message) {
            match command {
                Conducted::Order(order) => self.order(order),
                Conducted::Tell(report) => {
                    if let ReplicaReport::Lost { epoch, cause } = &report {
                        tracing::warn!(epoch, %cause, "mesh lost");
                    }
                    // A coordinator that is gone takes this replica down with it.
                    let _ = self.coordinator.send_message(report);
                }
                Conducted::After(wait, message) => drop(myself.send_after(wait, || message)),
                Conducted::Dissolve(cause) => {
                    self.tell_to_dissolve(&cause);
                    myself.stop(Some(cause));
                }
            }
        }
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
}

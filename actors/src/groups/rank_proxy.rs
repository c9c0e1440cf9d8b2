//! The local stand-in of one remote rank.
//!
//! Turns orders into messages of the worker's session and the worker's messages into reports.
//! Fails with a typed cause when the worker cannot form or membership says that its device is
//! gone. Keeps no state of a run beyond its number.

use ractor::{
    Actor, ActorCell, ActorProcessingErr, ActorRef, DerivedActorRef, SpawnErr, SupervisionEvent,
};

use super::group::Part;
use super::{ChildReport, GroupArgs, MeshLoss, Order, ReplicaReport, Report, Seat};
use crate::membership::Loss;
use crate::protocol::ToCoordinator;

/// Stands for one rank.
pub(crate) struct RankProxy;

/// What a proxy is sent.
#[derive(Debug)]
pub(crate) enum RankMsg {
    Order(Order),
    /// A message of the rank's worker.
    Worker(ToCoordinator),
    /// Its device is gone.
    Lost(Loss),
}

impl From<Order> for RankMsg {
    fn from(order: Order) -> Self {
        Self::Order(order)
    }
}

impl TryFrom<RankMsg> for Order {
    type Error = ();

    fn try_from(message: RankMsg) -> Result<Self, ()> {
        match message {
            RankMsg::Order(order) => Ok(order),
            _ => Err(()),
        }
    }
}

impl Part for RankProxy {
    async fn spawn(
        args: GroupArgs,
        supervisor: ActorCell,
    ) -> Result<DerivedActorRef<Order>, SpawnErr> {
        let (actor, _) = Self::spawn_linked(None, Self, args, supervisor).await?;
        Ok(actor.get_derived())
    }
}

/// A proxy at work.
pub(crate) struct State {
    child: usize,
    epoch: u64,
    seat: Seat,
    parent: DerivedActorRef<ChildReport>,
}

impl Actor for RankProxy {
    type Msg = RankMsg;
    type State = State;
    type Arguments = GroupArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<RankMsg>,
        args: GroupArgs,
    ) -> Result<State, ActorProcessingErr> {
        let seat = args.seats.into_iter().next().ok_or("a proxy without a rank")?;
        let (epoch, device) = (args.epoch, seat.device.clone());
        args.coordinator
            .send_message(ReplicaReport::Seated { epoch, device, proxy: myself })
            .map_err(|_| "the coordinator has ended")?;
        Ok(State { child: args.child, epoch, seat, parent: args.parent })
    }

    async fn handle(
        &self,
        _myself: ActorRef<RankMsg>,
        message: RankMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RankMsg::Order(order) => state.order(order),
            RankMsg::Worker(message) => state.hear(message)?,
            RankMsg::Lost(loss) => {
                let Seat { rank, device, .. } = state.seat.clone();
                return Err(MeshLoss::Device { rank, device, loss }.into());
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<RankMsg>,
        _event: SupervisionEvent,
        _state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        // It supervises nobody.
        Ok(())
    }
}

impl State {
    fn order(&self, order: Order) {
        self.seat.session.send(order.for_rank(self.seat.rank));
    }

    fn hear(&self, message: ToCoordinator) -> Result<(), MeshLoss> {
        let Seat { rank, device, .. } = &self.seat;
        let reports = Report::of_rank(*rank, device, self.epoch, message)?;
        reports.into_iter().for_each(|report| self.report(report));
        Ok(())
    }

    fn report(&self, report: Report) {
        // A parent that is gone takes this proxy down with it.
        let _ = self.parent.send_message(ChildReport { child: self.child, report });
    }
}

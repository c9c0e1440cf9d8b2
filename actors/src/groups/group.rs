//! What all levels of the tree have in common: spawn the parts, hand orders down, merge reports on
//! their way up, fail when a part fails.
//!
//! Owns the generic actor [`Group`] and the merging. What is particular to a level (how its ranks
//! are split, what they must agree on) is its [`Level`], in a file of its own.

use std::collections::BTreeMap;
use std::future::Future;
use std::marker::PhantomData;

use ractor::{
    Actor, ActorCell, ActorProcessingErr, ActorRef, DerivedActorRef, SpawnErr, SupervisionEvent,
};

use super::{ChildReport, GroupArgs, MeshLoss, Order, RankFormed, Report, Seat};
use crate::protocol::RankOutcome;

/// What is particular to a level of the tree.
pub(crate) trait Level: Send + Sync + 'static {
    /// The level below.
    type Part: Part;

    /// Deals the ranks out to the level below.
    fn split(seats: Vec<Seat>) -> Vec<Vec<Seat>>;

    /// Checks what the parts have formed against each other; says what disagrees.
    fn check(parts: &[Vec<RankFormed>], blocks: u32) -> Result<(), String>;
}

/// An actor that can stand below another one in the tree.
pub(crate) trait Part: Send + Sync + 'static {
    /// Starts it under `supervisor`.
    fn spawn(
        args: GroupArgs,
        supervisor: ActorCell,
    ) -> impl Future<Output = Result<DerivedActorRef<Order>, SpawnErr>> + Send;
}

/// One level of the tree.
pub(crate) struct Group<L>(PhantomData<L>);

impl<L: Level> Part for Group<L> {
    async fn spawn(
        args: GroupArgs,
        supervisor: ActorCell,
    ) -> Result<DerivedActorRef<Order>, SpawnErr> {
        let (actor, _) = Self::spawn_linked(None, Self(PhantomData), args, supervisor).await?;
        Ok(actor.get_derived())
    }
}

/// What a group is sent.
#[derive(Debug)]
pub(crate) enum GroupMsg {
    Order(Order),
    Child(ChildReport),
}

impl From<Order> for GroupMsg {
    fn from(order: Order) -> Self {
        Self::Order(order)
    }
}

impl TryFrom<GroupMsg> for Order {
    type Error = ();

    fn try_from(message: GroupMsg) -> Result<Self, ()> {
        match message {
            GroupMsg::Order(order) => Ok(order),
            GroupMsg::Child(_) => Err(()),
        }
    }
}

impl From<ChildReport> for GroupMsg {
    fn from(report: ChildReport) -> Self {
        Self::Child(report)
    }
}

impl TryFrom<GroupMsg> for ChildReport {
    type Error = ();

    fn try_from(message: GroupMsg) -> Result<Self, ()> {
        match message {
            GroupMsg::Child(report) => Ok(report),
            GroupMsg::Order(_) => Err(()),
        }
    }
}

/// A group at work.
pub(crate) struct State {
    child: usize,
    blocks: u32,
    parent: DerivedActorRef<ChildReport>,
    parts: Vec<DerivedActorRef<Order>>,
    merge: Merge,
}

impl<L: Level> Actor for Group<L> {
    type Msg = GroupMsg;
    type State = State;
    type Arguments = GroupArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<GroupMsg>,
        args: GroupArgs,
    ) -> Result<State, ActorProcessingErr> {
        let mut parts = Vec::new();
        for (child, seats) in L::split(args.seats.clone()).into_iter().enumerate() {
            let part = GroupArgs { child, seats, parent: myself.get_derived(), ..args.clone() };
            parts.push(L::Part::spawn(part, myself.get_cell()).await?);
        }
        let merge = Merge::new(parts.len());
        Ok(State { child: args.child, blocks: args.blocks, parent: args.parent, parts, merge })
    }

    async fn handle(
        &self,
        _myself: ActorRef<GroupMsg>,
        message: GroupMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            GroupMsg::Order(order) => {
                for part in &state.parts {
                    // A part that is gone has failed, and this group with it.
                    let _ = part.send_message(order.clone());
                }
            }
            GroupMsg::Child(ChildReport { child, report }) => {
                if let Report::Formed(ranks) = report {
                    let Some(parts) = state.merge.formed(child, ranks) else { return Ok(()) };
                    L::check(&parts, state.blocks)
                        .map_err(|cause| MeshLoss::Disagreement { cause })?;
                    state.report(Report::Formed(parts.concat()));
                } else if let Some(report) = state.merge.merge(child, report) {
                    state.report(report);
                }
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<GroupMsg>,
        event: SupervisionEvent,
        _state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        fail_with_part(event)
    }
}

impl State {
    fn report(&self, report: Report) {
        // A parent that is gone takes this group down with it.
        let _ = self.parent.send_message(ChildReport { child: self.child, report });
    }
}

/// The one rule of supervision in the tree: whoever loses a part fails with the part's cause.
pub(super) fn fail_with_part(event: SupervisionEvent) -> Result<(), ActorProcessingErr> {
    match event {
        SupervisionEvent::ActorFailed(_, error) => Err(MeshLoss::from_failure(error).into()),
        SupervisionEvent::ActorTerminated(_, _, reason) => {
            let cause = reason.unwrap_or_else(|| "it ended".into());
            Err(MeshLoss::Actor { cause }.into())
        }
        _ => Ok(()),
    }
}

/// Waits for a word from every child.
#[derive(Debug)]
pub(crate) struct Merge {
    children: usize,
    formed: BTreeMap<usize, Vec<RankFormed>>,
    proposed: BTreeMap<u64, BTreeMap<usize, u64>>,
    ended: BTreeMap<u64, BTreeMap<usize, Vec<(u32, RankOutcome)>>>,
}

impl Merge {
    pub(crate) fn new(children: usize) -> Self {
        Self {
            children,
            formed: BTreeMap::new(),
            proposed: BTreeMap::new(),
            ended: BTreeMap::new(),
        }
    }

    /// All children's formed ranks, with the last child's word.
    pub(crate) fn formed(
        &mut self,
        child: usize,
        ranks: Vec<RankFormed>,
    ) -> Option<Vec<Vec<RankFormed>>> {
        self.formed.insert(child, ranks);
        let complete = self.formed.len() == self.children;
        complete.then(|| std::mem::take(&mut self.formed).into_values().collect())
    }

    /// The latest point of all children, with the last child's word.
    fn proposed(&mut self, child: usize, run: u64, after: u64) -> Option<Report> {
        let proposed = self.proposed.entry(run).or_default();
        proposed.insert(child, after);
        if proposed.len() < self.children {
            return None;
        }
        let after = self.proposed.remove(&run)?.into_values().max()?;
        Some(Report::Proposed { run, after })
    }

    /// What to report upwards for a child's report, if anything yet.
    pub(crate) fn merge(&mut self, child: usize, report: Report) -> Option<Report> {
        if let Report::Proposed { run, after } = report {
            return self.proposed(child, run, after);
        }
        let Report::Ended { run, outcomes } = report else { return Some(report) };
        self.proposed.remove(&run);
        let ended = self.ended.entry(run).or_default();
        ended.insert(child, outcomes);
        if ended.len() < self.children {
            return None;
        }
        let outcomes = self.ended.remove(&run)?.into_values().flatten().collect();
        Some(Report::Ended { run, outcomes })
    }
}

//! The supervision tree of one running replica, beside the coordinator:
//! [`DataReplica`] > [`CfgGroup`] > [`PipefusionGroup`] > [`SpGroup`] > [`RankProxy`].
//!
//! Owns the messages between the levels. Orders go down, reports come up and are merged on the
//! way; what the root makes of them is [`conduct`]'s, which is pure. Does not plan, does not restart anybody and does not know sessions beyond sending.
//!
//! Invariant: there is one way a mesh ends badly: a [`RankProxy`] fails with a [`MeshLoss`], every
//! level above fails with the same cause, and [`DataReplica`] tells the survivors and the
//! coordinator.

pub(crate) mod cfg_group;
pub(crate) mod conduct;
pub(crate) mod data_replica;
pub(crate) mod group;
pub(crate) mod mesh_loss;
pub(crate) mod pipefusion_group;
pub(crate) mod rank_proxy;
pub(crate) mod sp_group;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

pub(crate) use cfg_group::CfgGroup;
pub(crate) use data_replica::{DataReplica, ReplicaArgs, ReplicaMsg};
pub(crate) use mesh_loss::{MeshLoss, Retry};
pub(crate) use pipefusion_group::PipefusionGroup;
use ractor::DerivedActorRef;
pub(crate) use rank_proxy::{RankMsg, RankProxy};
pub(crate) use sp_group::SpGroup;

use crate::protocol::{
    DeviceId, Form, FromCoordinator, LinkCarrier, RankOutcome, Start, ToCoordinator,
};
use crate::request::Event;
use crate::session::SessionHandle;

/// One place in a mesh and who sits there.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) rank: u32,
    /// Guidance branch.
    pub(crate) cfg: usize,
    /// Pipeline stage.
    pub(crate) stage: usize,
    pub(crate) device: DeviceId,
    pub(crate) session: SessionHandle<FromCoordinator>,
}

/// What goes down the tree.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Join the mesh; each proxy fills in its own rank.
    Form(Arc<Form>),
    Start(Arc<Start>),
    Enter {
        run: u64,
        after: u64,
    },
    Abort {
        run: u64,
        cause: String,
    },
}

impl Order {
    /// As the worker of a rank is told.
    pub(crate) fn for_rank(self, rank: u32) -> FromCoordinator {
        match self {
            Self::Form(form) => FromCoordinator::Form(Box::new(Form { rank, ..(*form).clone() })),
            Self::Start(start) => FromCoordinator::Start(Box::new((*start).clone())),
            Self::Enter { run, after } => FromCoordinator::Enter { run, after },
            Self::Abort { run, cause } => FromCoordinator::Abort { run, cause },
        }
    }
}

/// A rank that has loaded its partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RankFormed {
    pub(crate) rank: u32,
    pub(crate) blocks: Range<u32>,
    pub(crate) weight_bytes_read: u64,
    pub(crate) carriers: Vec<LinkCarrier>,
}

/// What comes up the tree; each level merges those of its children.
#[derive(Clone, Debug)]
pub(crate) enum Report {
    /// All ranks below are formed.
    Formed(Vec<RankFormed>),
    /// All ranks below can take a proposed run in after this many units.
    Proposed {
        run: u64,
        after: u64,
    },
    Progress {
        run: u64,
        event: Event,
    },
    /// A rank below failed; the others are still at it.
    Failing {
        run: u64,
        rank: u32,
        cause: String,
        peer: Option<u32>,
    },
    /// All ranks below have ended the run.
    Ended {
        run: u64,
        outcomes: Vec<(u32, RankOutcome)>,
    },
}

impl Report {
    /// What a message of the worker of `rank` means for the mesh of `epoch`, or why the mesh is
    /// lost with it. A message of another epoch is late and means nothing.
    pub(crate) fn of_rank(
        rank: u32,
        device: &DeviceId,
        epoch: u64,
        message: ToCoordinator,
    ) -> Result<Vec<Self>, MeshLoss> {
        Ok(match message {
            ToCoordinator::Formed { epoch: of, blocks, weight_bytes_read, carriers }
                if of == epoch =>
            {
                let blocks = blocks.0..blocks.1;
                vec![Self::Formed(vec![RankFormed { rank, blocks, weight_bytes_read, carriers }])]
            }
            ToCoordinator::FormFailed { epoch: of, fault, cause } if of == epoch => {
                return Err(MeshLoss::FormFailed { rank, device: device.clone(), fault, cause });
            }
            ToCoordinator::Proposed { run, after } => vec![Self::Proposed { run, after }],
            ToCoordinator::Progress { run, event } => vec![Self::Progress { run, event }],
            ToCoordinator::RunEnded { run, outcome, .. } => {
                let failing = match &outcome {
                    RankOutcome::Failed { cause, peer } => {
                        Some(Self::Failing { run, rank, cause: cause.clone(), peer: *peer })
                    }
                    _ => None,
                };
                let ended = Self::Ended { run, outcomes: vec![(rank, outcome)] };
                failing.into_iter().chain([ended]).collect()
            }
            _ => Vec::new(),
        })
    }
}

/// A report and which child it is from.
#[derive(Clone, Debug)]
pub(crate) struct ChildReport {
    pub(crate) child: usize,
    pub(crate) report: Report,
}

/// What a replica tells the coordinator.
#[derive(Debug)]
pub(crate) enum ReplicaReport {
    /// Where reports of this device's worker go from now on.
    Seated {
        epoch: u64,
        device: DeviceId,
        proxy: ractor::ActorRef<RankMsg>,
    },
    Formed {
        epoch: u64,
        ranks: Vec<RankFormed>,
    },
    Progress {
        run: u64,
        event: Event,
    },
    /// A rank failed; all are told to stop.
    Failing {
        run: u64,
        rank: u32,
        cause: String,
        peer: Option<u32>,
    },
    /// All ranks have ended the run.
    Ended {
        run: u64,
        outcomes: Vec<(u32, RankOutcome)>,
    },
    /// The mesh is gone.
    Lost {
        epoch: u64,
        cause: MeshLoss,
    },
}

/// What every actor of the tree is given.
#[derive(Clone)]
pub(crate) struct GroupArgs {
    /// Position among its siblings.
    pub(crate) child: usize,
    /// Its ranks.
    pub(crate) seats: Vec<Seat>,
    /// Transformer blocks of the model.
    pub(crate) blocks: u32,
    pub(crate) epoch: u64,
    pub(crate) parent: DerivedActorRef<ChildReport>,
    pub(crate) coordinator: DerivedActorRef<ReplicaReport>,
}

/// Seats in consecutive runs of equal `key`, in order.
fn split_by(seats: Vec<Seat>, key: impl Fn(&Seat) -> usize) -> Vec<Vec<Seat>> {
    let mut parts: Vec<Vec<Seat>> = Vec::new();
    for seat in seats {
        match parts.last_mut() {
            Some(part) if part.first().is_some_and(|first| key(first) == key(&seat)) => {
                part.push(seat);
            }
            _ => parts.push(vec![seat]),
        }
    }
    parts
}

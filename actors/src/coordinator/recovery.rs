//! Requests that outlive their mesh: what one keeps when a device is lost, and how it goes on.
//!
//! Owns a request's newest checkpoint, the account of its losses, and when to give it up. Which
//! mesh comes next is formation's, when it runs there the dispatcher's.
//!
//! Invariants: a checkpoint never gives way to an older one; a request that is lost
//! [`FRUITLESS_LOSSES_MAX`] times without a step between ends with the last loss, so that one that
//! kills its devices does not do so for ever.

use std::sync::Arc;
use std::time::Instant;

use super::State;
use super::desk::Desk;
use super::replicas::Replica;
use super::requests::Request;
use super::run::Verdict;
use super::switch::Prospect;
use crate::checkpoint::Checkpoint;
use crate::dispatcher::{MeshNeed, Need, ReplicaId, RequestId, RunNumber};
use crate::groups::{MeshLoss, Retry};
use crate::plan::{Plan, batch};
use crate::protocol::RunSpec;
use crate::request::{Event, Resumption};

/// Losses in a row, without a step of progress, after which a request ends.
pub(super) const FRUITLESS_LOSSES_MAX: u32 = 3;

/// A loss that no run has made good yet.
struct Loss {
    lost: String,
    cause: String,
    at_step: u32,
    moment: Instant,
    /// Nothing was lost: a better mesh takes over.
    moved: bool,
}

/// What a request carries from mesh to mesh.
#[derive(Default)]
pub(super) struct Journey {
    pub(super) checkpoint: Option<Arc<Checkpoint>>,
    /// When its first run began.
    pub(super) since: Option<Instant>,
    pub(super) resumptions: Vec<Resumption>,
    loss: Option<Loss>,
    fruitless: u32,
}

impl Journey {
    /// Steps that the checkpoint holds.
    pub(super) fn steps(&self) -> u32 {
        self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step as u32 + 1)
    }

    /// Of a request that outlived its coordinator.
    pub(super) fn after_restart(checkpoint: Option<Checkpoint>, cause: &str) -> Self {
        let mut journey = Self::default();
        journey.keep(checkpoint);
        journey.lose("the coordinator", cause, journey.steps() + 1);
        journey.fruitless = 0;
        journey
    }

    /// Of a request whose checkpoint came back from the node that held a copy: the coordinator knew
    /// an `earlier` one, or none.
    pub(super) fn recalled(earlier: Self, checkpoint: Checkpoint, node: &str) -> Self {
        let held = format!("node {node} held a copy of the checkpoint");
        let (cause, moment) = match &earlier.loss {
            Some(loss) => (format!("{}; {held}", loss.cause), Some(loss.moment)),
            None => (held, None),
        };
        let mut journey = Self::after_restart(Some(checkpoint), &cause);
        if let (Some(moment), Some(loss)) = (moment, &mut journey.loss) {
            loss.moment = moment;
        }
        Self { since: earlier.since, resumptions: earlier.resumptions, ..journey }
    }

    /// Whether it was lost and nothing runs again yet.
    pub(super) fn is_under_way(&self) -> bool {
        self.loss.is_some()
    }

    /// Takes what the lost run had kept.
    fn keep(&mut self, checkpoint: Option<Checkpoint>) {
        if let Some(newer) = checkpoint.filter(|newer| newer.step as u32 >= self.steps()) {
            self.checkpoint = Some(Arc::new(newer));
            self.fruitless = 0;
        }
    }

    /// Notes a loss; false when the request has been lost too often.
    fn lose(&mut self, lost: &str, cause: &str, at_step: u32) -> bool {
        self.fruitless += 1;
        let (lost, cause) = (lost.to_string(), cause.to_string());
        // A loss before anything ran again is part of the one before.
        let moment = self.loss.take().map_or_else(Instant::now, |loss| loss.moment);
        self.loss = Some(Loss { lost, cause, at_step, moment, moved: false });
        self.fruitless < FRUITLESS_LOSSES_MAX
    }

    /// Notes that it goes on elsewhere of the coordinator's own will.
    fn give_way(&mut self, lost: &str, cause: &str, at_step: u32) {
        let fruitless = self.fruitless;
        self.lose(lost, cause, at_step);
        self.fruitless = fruitless;
        if let Some(loss) = &mut self.loss {
            loss.moved = true;
        }
    }

    /// A run starts; what to tell the caller when it makes a loss good.
    pub(super) fn start(&mut self, plan: &Plan, devices: usize) -> Option<Event> {
        self.since = self.since.or_else(|| Some(Instant::now()));
        let Loss { lost, cause, at_step, moment, moved } = self.loss.take()?;
        let resumption = Resumption {
            lost,
            cause,
            moved,
            // A checkpoint may be quicker than the news of its step.
            lost_at_step: at_step.max(plan.run.first_step + 1),
            resumed_at_step: plan.run.first_step,
            devices: devices as u32,
            extra_sync_steps: plan.extra_sync_steps(),
            seconds: moment.elapsed().as_secs_f64(),
        };
        tracing::warn!(%resumption, cause = resumption.cause, "a request goes on");
        self.resumptions.push(resumption.clone());
        Some(Event::Resumed(resumption))
    }
}

/// What a request that was lost needs: degrees give way to whoever is left.
pub(super) fn open_mesh(spec: &RunSpec) -> MeshNeed {
    MeshNeed::Open { guided: spec.is_guided() }
}

impl Desk {
    /// The mesh `epoch` is lost: ends its runs here and says which of their requests go on, and
    /// what they need from now on. Degrees give way to those of whatever mesh there will be.
    pub(super) fn set_aside(
        &mut self,
        epoch: ReplicaId,
        loss: &MeshLoss,
    ) -> Vec<(RequestId, Need)> {
        let (who, cause) = (loss.who(), loss.to_string());
        let mut going_on = Vec::new();
        let lost = self.runs.iter().filter(|(_, run)| run.replica == epoch);
        let lost: Vec<RunNumber> = lost.map(|(&number, _)| number).collect();
        for number in lost {
            let Some(mut run) = self.runs.remove(&number) else { continue };
            run.decide(Verdict::Moved);
            let newest = run.newest_checkpoint();
            for (index, id) in run.drawn().iter().enumerate() {
                let Some(request) = self.requests.get_mut(id) else { continue };
                if request.run != Some(number) {
                    continue;
                }
                request.run = None;
                request.journey.keep(newest.as_ref().and_then(|newest| newest.of_image(index)));
                let at_step = run.step_under_way();
                let goes_on = match loss {
                    MeshLoss::GaveWay { .. } => {
                        request.journey.give_way(&who, &cause, at_step);
                        true
                    }
                    // The same would happen again.
                    _ if loss.retry() == Retry::Never => false,
                    _ => request.journey.lose(&who, &cause, at_step),
                };
                if goes_on {
                    going_on.push(*id);
                }
            }
        }
        going_on.into_iter().filter_map(|id| Some((id, self.need_of(id)?))).collect()
    }

    /// What a request that was lost needs to go on.
    pub(super) fn need_of(&self, id: RequestId) -> Option<Need> {
        let request = self.requests.get(&id)?;
        let mesh = open_mesh(&request.spec);
        let first_step = request.journey.steps();
        let shape = batch::shape(&RunSpec { first_step, ..request.spec.clone() });
        Some(Need { mesh, bytes: request.bytes, shape })
    }

    /// Where a run of these requests goes on; `None` when it begins with the first step.
    pub(super) fn resume_of(&self, requests: &[RequestId]) -> Option<Arc<Checkpoint>> {
        let requests = requests.iter().filter_map(|id| self.requests.get(id));
        let parts: Option<Vec<_>> = requests.map(|r| r.journey.checkpoint.clone()).collect();
        Checkpoint::join(&parts?)
    }
}

impl State {
    /// Whether all that runs on a mesh, which gives way to the one that was formed last, is worth
    /// moving there at once. A request that names its degrees stays.
    pub(super) fn is_worth_moving(&self, epoch: u64) -> bool {
        let better =
            self.replicas.iter().rfind(|(other, replica)| **other != epoch && replica.is_formed());
        let times = |replica: Option<&Replica>| replica.and_then(|replica| replica.step);
        let (Some(here), Some(there)) =
            (times(self.replicas.get(&epoch)), times(better.map(|(_, replica)| replica)))
        else {
            return false;
        };
        let mut runs = self.desk.runs.values().filter(|run| run.replica == epoch).peekable();
        let is_open = |id: &RequestId| self.desk.requests.get(id).is_some_and(Request::is_open);
        runs.peek().is_some()
            && runs.all(|run| {
                let (steps, done, kept) = run.account();
                let prospect = Prospect { steps, done, kept, here, there };
                prospect.pays() && run.drawn().iter().all(is_open)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::FloatTensor;

    fn checkpoint(step: usize) -> Option<Checkpoint> {
        let state = FloatTensor { shape: vec![1, 1], data: vec![step as f32] };
        Some(Checkpoint { step, images: 1, state })
    }

    #[test]
    fn losses_without_a_step_between_end_a_request_and_progress_forgives_them() {
        let mut journey = Journey::default();
        for _ in 1..FRUITLESS_LOSSES_MAX {
            journey.keep(None);
            assert!(journey.lose("device b/0", "it ended", 1));
        }
        journey.keep(checkpoint(4));
        for _ in 1..FRUITLESS_LOSSES_MAX {
            assert!(journey.lose("device b/0", "it ended", 6));
            journey.keep(None);
        }
        assert_eq!(journey.steps(), 5);
        assert!(!journey.lose("device b/0", "it ended", 6), "it kills its devices");
    }

    #[test]
    fn an_older_checkpoint_is_no_progress() {
        let mut journey = Journey::default();
        journey.keep(checkpoint(4));
        journey.keep(checkpoint(2));
        assert_eq!(journey.steps(), 5);
    }

    #[test]
    fn a_request_that_outlived_its_coordinator_says_so_once_it_runs() {
        let journey = Journey::after_restart(checkpoint(9), "it was restarted");
        assert!(journey.is_under_way());
        let loss = journey.loss.expect("it is told");
        assert_eq!((loss.lost.as_str(), loss.at_step), ("the coordinator", 11));
    }

    #[test]
    fn a_copy_that_came_back_takes_the_place_of_an_older_checkpoint_or_of_none() {
        let restarted = Journey::after_restart(checkpoint(4), "it was restarted");
        for earlier in [restarted, Journey::default()] {
            let copy = checkpoint(9).expect("one");
            let journey = Journey::recalled(earlier, copy, "b");
            assert_eq!(journey.steps(), 10);
            let loss = journey.loss.expect("it is told");
            assert!(loss.cause.contains("node b held a copy"), "{}", loss.cause);
            assert_eq!(loss.at_step, 11);
        }
    }
}

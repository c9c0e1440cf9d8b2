//! What becomes of a mesh and of its runs: from what its supervisors report to its end.

use super::{Hands, Step, Turns};
use crate::coordinator::desk::Settled;
use crate::coordinator::formation::FormationEvent;
use crate::coordinator::run::ControllerFault;
use crate::dispatcher::{DispatcherEvent, ReplicaId, RunNumber};
use crate::generation::GenerateError;
use crate::groups::{MeshLoss, ReplicaMsg, ReplicaReport};
use crate::membership::MembershipEvent;

impl Turns {
    pub(super) fn mesh_reports(&mut self, hands: &mut impl Hands, report: ReplicaReport) {
        match report {
            // Whose proxies and links these are, the hands know.
            ReplicaReport::Seated { .. } | ReplicaReport::Formed { .. } => {}
            ReplicaReport::Progress { run, event } => {
                let now = hands.now();
                hands.desk().progress(now, run, &event);
            }
            ReplicaReport::Failing { run, rank, cause, peer } => {
                hands.desk().rank_failed(run, rank, &cause, peer);
            }
            ReplicaReport::Ended { run, outcomes } => {
                hands.desk().ranks_ended(run, outcomes);
                self.settle(hands, run);
            }
            ReplicaReport::Lost { epoch, cause } => self.lose_mesh(hands, epoch, &cause),
        }
    }

    /// When the controller's part failed the ranks are stopped, and what they say decides.
    pub(super) fn controller_done(
        &mut self,
        hands: &mut impl Hands,
        run: RunNumber,
        outcome: Result<(), ControllerFault>,
    ) {
        let failure =
            outcome.as_ref().err().map(|fault| format!("the coordinator failed: {fault}"));
        let Some(replica) = hands.desk().controller_ended(run, outcome) else { return };
        if let Some(cause) = failure {
            hands.conduct(replica, ReplicaMsg::Abort { run, cause });
        }
        self.settle(hands, run);
    }

    fn settle(&mut self, hands: &mut impl Hands, run: RunNumber) {
        let now = hands.now();
        match hands.desk().settle(now, run) {
            Some(Settled::Over) => self.then_dispatcher(DispatcherEvent::RunEnded { run }),
            Some(Settled::Broken { replica, cause }) => {
                hands.conduct(replica, ReplicaMsg::ControllerFailed { cause });
            }
            Some(Settled::Lost) | None => {}
        }
    }

    /// Runs that do not go on are stopped, and their meshes given up.
    pub(super) fn stop_stalled(&mut self, hands: &mut impl Hands) {
        let now = hands.now();
        for (run, replica, cause) in hands.desk().stalls(now) {
            hands.conduct(replica, ReplicaMsg::Stalled { run, cause });
        }
    }

    /// A mesh has ended badly: what ran there goes on elsewhere, and everybody hears why.
    fn lose_mesh(&mut self, hands: &mut impl Hands, replica: ReplicaId, loss: &MeshLoss) {
        let stuck = hands.desk().stuck(loss);
        let loss = loss.naming(&stuck);
        let cause = loss.to_string();
        let devices = hands.forget_mesh(replica, &cause);
        let going_on = hands.desk().set_aside(replica, &loss);
        let error = loss.to_error();
        self.then_dispatcher(DispatcherEvent::ReplicaLost { replica, going_on, error });
        // Formation hears of it when it knows which links and devices are to blame.
        let (retry, unfit) = (loss.retry(), loss.unfit());
        let lost = FormationEvent::ReplicaLost { replica, cause, retry, unfit };
        let hung = stuck.into_iter().filter_map(|device| match loss {
            MeshLoss::Stuck { milliseconds, .. } => {
                Some(MembershipEvent::Hung { device, milliseconds })
            }
            _ => None,
        });
        let told = loss.about_links(&devices).into_iter().chain(hung).map(Step::Membership);
        self.later.extend(told.chain([Step::Formation(lost)]));
    }

    /// A mesh makes room for another one: it is idle, or its runs are moved, or it is broken and
    /// its loss about to be told.
    pub(super) fn give_way(&mut self, hands: &mut impl Hands, replica: ReplicaId, cause: String) {
        hands.conduct(replica, ReplicaMsg::Dissolve { cause: cause.clone() });
        hands.forget_mesh(replica, &cause);
        let going_on = hands.desk().set_aside(replica, &MeshLoss::GaveWay { cause: cause.clone() });
        let error = GenerateError::Lost(cause);
        self.then_dispatcher(DispatcherEvent::ReplicaLost { replica, going_on, error });
    }
}

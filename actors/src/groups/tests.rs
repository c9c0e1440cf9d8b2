//! The tree of group actors, with sessions that lead into the test.

use std::collections::BTreeMap;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::membership::Loss;
use crate::plan::mesh::DeviceMesh;
use crate::protocol::{FormFault, RunSpec, ToCoordinator};
use crate::request::{Degrees, Dtype, RankReport, TextEncoderPolicy};
use crate::session::SessionEnds;
use crate::session::handle::Outgoing;

const PATIENCE: Duration = Duration::from_secs(10);
const BLOCKS: u32 = 4;
const EPOCH: u64 = 3;

/// Takes the place of the coordinator.
struct Listener;

impl Actor for Listener {
    type Msg = ReplicaReport;
    type State = mpsc::UnboundedSender<ReplicaReport>;
    type Arguments = mpsc::UnboundedSender<ReplicaReport>;

    async fn pre_start(
        &self,
        _myself: ActorRef<ReplicaReport>,
        told: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(told)
    }

    async fn handle(
        &self,
        _myself: ActorRef<ReplicaReport>,
        report: ReplicaReport,
        told: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        Ok(told.send(report)?)
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<ReplicaReport>,
        _event: SupervisionEvent,
        _told: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

struct Fixture {
    replica: ActorRef<ReplicaMsg>,
    reports: mpsc::UnboundedReceiver<ReplicaReport>,
    sessions: Vec<SessionEnds<FromCoordinator>>,
    proxies: BTreeMap<u32, ActorRef<RankMsg>>,
}

fn degrees() -> Degrees {
    Degrees { cfg_degree: 2, pipefusion_degree: 2, ulysses_degree: 2, ..Degrees::default() }
}

fn device(index: u32) -> DeviceId {
    DeviceId { node: "a".into(), index }
}

/// A replica of eight ranks whose workers are the test.
async fn replica(deadline_ms: u32) -> Fixture {
    let (told, reports) = mpsc::unbounded_channel();
    let (listener, _) = Listener::spawn(None, Listener, told).await.expect("a listener");
    let mesh = DeviceMesh::new(degrees());
    let (mut seats, mut sessions) = (Vec::new(), Vec::new());
    for rank in 0..mesh.world_size() {
        let (session, ends) = SessionHandle::new();
        let at = mesh.coordinates(rank);
        let (rank, device) = (rank as u32, device(rank as u32));
        seats.push(Seat { rank, cfg: at.cfg, stage: at.stage, device, session });
        sessions.push(ends);
    }
    let form = Form {
        epoch: EPOCH,
        rank: 0,
        stage_ends: vec![1, 2],
        degrees: degrees(),
        model: "model".into(),
        model_id: 1,
        dtype: Dtype::F32,
        text_encoder: TextEncoderPolicy::Release,
        members: Vec::new(),
        deadline_ms,
        beside: false,
        measure: Vec::new(),
    };
    let args = ReplicaArgs { form, seats, blocks: BLOCKS, coordinator: listener.get_derived() };
    let spawned = DataReplica::spawn_linked(None, DataReplica, args, listener.get_cell()).await;
    let (replica, _) = spawned.expect("a replica");
    let mut fixture = Fixture { replica, reports, sessions, proxies: BTreeMap::new() };
    for _ in 0..fixture.sessions.len() {
        let ReplicaReport::Seated { device, proxy, .. } = fixture.report().await else {
            panic!("first the seats");
        };
        fixture.proxies.insert(device.index, proxy);
    }
    fixture
}

impl Fixture {
    async fn report(&mut self) -> ReplicaReport {
        timeout(PATIENCE, self.reports.recv()).await.expect("in time").expect("a report")
    }

    async fn order(&mut self, rank: usize) -> FromCoordinator {
        let next = timeout(PATIENCE, self.sessions[rank].queue.recv()).await.expect("in time");
        match next.expect("an order") {
            Outgoing::Message(message) => message,
            Outgoing::Blob(_) => panic!("no blobs here"),
        }
    }

    fn say(&self, rank: u32, message: ToCoordinator) {
        self.proxies[&rank].cast(RankMsg::Worker(message)).expect("a proxy");
    }

    /// All ranks join, each with the blocks of its stage.
    async fn form(&mut self) {
        for rank in 0..8 {
            let FromCoordinator::Form(form) = self.order(rank).await else { panic!("a form") };
            assert_eq!((form.rank, form.epoch), (rank as u32, EPOCH));
            let stage = DeviceMesh::new(degrees()).coordinates(rank).stage as u32;
            let (epoch, blocks) = (EPOCH, (stage * 2, stage * 2 + 2));
            let carriers = Vec::new();
            let formed = ToCoordinator::Formed { epoch, blocks, weight_bytes_read: 9, carriers };
            self.say(rank as u32, formed);
        }
        let ReplicaReport::Formed { ranks, .. } = self.report().await else { panic!("formed") };
        let order: Vec<u32> = ranks.iter().map(|rank| rank.rank).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(ranks[2].blocks, 2..4);
    }

    async fn start(&mut self, run: u64) {
        let start = Start {
            epoch: EPOCH,
            run,
            spec: RunSpec {
                images: vec![crate::protocol::ImageSpec::default()],
                height: 64,
                width: 64,
                num_inference_steps: 2,
                guidance_scale: 4.5,
                num_pipeline_patch: 2,
                sync_steps: 1,
                ..RunSpec::default()
            },
            propose: false,
            plan_digest: 0,
            op_deadline_ms: 1000,
            traceparent: None,
        };
        self.replica.cast(ReplicaMsg::Start(Arc::new(start))).expect("a replica");
        for rank in 0..8 {
            assert!(matches!(self.order(rank).await, FromCoordinator::Start(_)));
        }
    }

    fn end(&self, rank: u32, run: u64, outcome: RankOutcome) {
        self.say(rank, ToCoordinator::RunEnded { run, rank, outcome });
    }

    async fn expect_dissolved(&mut self, ranks: std::ops::Range<usize>, cause: &str) {
        for rank in ranks {
            loop {
                match self.order(rank).await {
                    FromCoordinator::Dissolve { epoch: EPOCH, cause: told } => {
                        assert!(told.contains(cause), "{told}");
                        break;
                    }
                    FromCoordinator::Form(_) | FromCoordinator::Abort { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

fn done(rank: u32) -> RankOutcome {
    RankOutcome::Done(Box::new(RankReport { rank, ..RankReport::default() }))
}

#[tokio::test]
async fn a_mesh_forms_runs_and_merges_what_its_ranks_say() {
    let mut fixture = replica(10_000).await;
    fixture.form().await;
    fixture.start(5).await;
    fixture.say(6, ToCoordinator::Progress { run: 5, event: Event::Step { step: 1, of: 2 } });
    assert!(matches!(fixture.report().await, ReplicaReport::Progress { run: 5, .. }));
    for rank in (0..8).rev() {
        fixture.end(rank, 5, done(rank));
    }
    let ReplicaReport::Ended { run: 5, outcomes } = fixture.report().await else { panic!("ended") };
    assert_eq!(outcomes.len(), 8);
}

#[tokio::test]
async fn a_lost_device_fails_the_whole_tree_with_its_cause() {
    let mut fixture = replica(10_000).await;
    fixture.form().await;
    let loss = Loss::Exited { status: "signal: 9 (SIGKILL)".into() };
    fixture.proxies[&5].cast(RankMsg::Lost(loss.clone())).expect("a proxy");
    let ReplicaReport::Lost { epoch: EPOCH, cause } = fixture.report().await else {
        panic!("lost")
    };
    assert_eq!(cause, MeshLoss::Device { rank: 5, device: device(5), loss });
    assert_eq!(cause.retry(), Retry::WhenReady);
    fixture.expect_dissolved(0..8, "device a/5 (rank 5) was lost").await;
}

#[tokio::test]
async fn a_rank_that_cannot_form_ends_the_mesh_for_good() {
    let mut fixture = replica(10_000).await;
    let cause = "missing tensor x".to_string();
    let fault = FormFault::Loading;
    fixture.say(3, ToCoordinator::FormFailed { epoch: EPOCH, fault, cause });
    let ReplicaReport::Lost { cause, .. } = fixture.report().await else { panic!("lost") };
    assert!(cause.to_string().contains("a/3") && cause.to_string().contains("missing tensor x"));
    assert_eq!(cause.retry(), Retry::Never);
}

#[tokio::test]
async fn ranks_that_hold_the_wrong_blocks_are_noticed() {
    let mut fixture = replica(10_000).await;
    for rank in 0..8 {
        let blocks = (0, BLOCKS);
        let carriers = Vec::new();
        let formed = ToCoordinator::Formed { epoch: EPOCH, blocks, weight_bytes_read: 0, carriers };
        fixture.say(rank, formed);
    }
    let ReplicaReport::Lost { cause, .. } = fixture.report().await else { panic!("lost") };
    assert!(matches!(&cause, MeshLoss::Disagreement { cause } if cause.contains("stage 1")));
}

#[tokio::test]
async fn news_of_an_older_epoch_is_dropped() {
    let mut fixture = replica(10_000).await;
    fixture.say(
        0,
        ToCoordinator::FormFailed {
            epoch: EPOCH - 1,
            fault: FormFault::Links { unanswered: None },
            cause: "late".into(),
        },
    );
    fixture.form().await;
}

#[tokio::test]
async fn forming_has_a_deadline() {
    let mut fixture = replica(20).await;
    let ReplicaReport::Lost { cause, .. } = fixture.report().await else { panic!("lost") };
    assert!(matches!(cause, MeshLoss::FormTimedOut { milliseconds: 20, .. }));
}

#[tokio::test]
async fn one_failed_rank_stops_the_others_and_the_mesh_stays() {
    let mut fixture = replica(10_000).await;
    fixture.form().await;
    fixture.start(5).await;
    let cause = "not a number".to_string();
    fixture.end(2, 5, RankOutcome::Failed { cause, peer: None });
    assert!(matches!(fixture.report().await, ReplicaReport::Failing { rank: 2, .. }));
    for rank in 0..8 {
        assert!(matches!(fixture.order(rank).await, FromCoordinator::Abort { run: 5, .. }));
    }
    for rank in (0..8).filter(|&rank| rank != 2) {
        fixture.end(rank, 5, RankOutcome::Aborted);
    }
    assert!(matches!(fixture.report().await, ReplicaReport::Ended { run: 5, .. }));
    fixture.start(6).await;
}

#[tokio::test]
async fn a_broken_link_ends_the_mesh_once_all_ranks_have_stopped() {
    let mut fixture = replica(10_000).await;
    fixture.form().await;
    fixture.start(5).await;
    let cause = "lost peer 7".to_string();
    fixture.end(1, 5, RankOutcome::Failed { cause, peer: Some(7) });
    assert!(matches!(fixture.report().await, ReplicaReport::Failing { peer: Some(7), .. }));
    for rank in (0..8).filter(|&rank| rank != 1) {
        fixture.end(rank, 5, RankOutcome::Aborted);
    }
    assert!(matches!(fixture.report().await, ReplicaReport::Ended { .. }));
    let ReplicaReport::Lost { cause, .. } = fixture.report().await else { panic!("lost") };
    assert_eq!(cause.retry(), Retry::WhenReady);
    let text = cause.to_string();
    assert!(text.contains("a/1") && text.contains("a/7"), "{text}");
    fixture.expect_dissolved(0..8, "lost its link").await;
}

/// A run that does not go on: whoever does not stop is known by that, and nobody waits long for it.
#[tokio::test]
async fn a_stalled_run_ends_the_mesh_whether_its_ranks_stop_or_not() {
    for stuck in [None, Some(3)] {
        let mut fixture = replica(10_000).await;
        fixture.form().await;
        fixture.start(5).await;
        let cause = "step 4 took longer than 10 s".to_string();
        fixture.replica.cast(ReplicaMsg::Stalled { run: 5, cause }).expect("a replica");
        for rank in 0..8 {
            assert!(matches!(fixture.order(rank).await, FromCoordinator::Abort { run: 5, .. }));
            if stuck != Some(rank) {
                fixture.end(rank as u32, 5, RankOutcome::Aborted);
            }
        }
        let mut report = fixture.report().await;
        if stuck.is_none() {
            assert!(matches!(report, ReplicaReport::Ended { run: 5, .. }));
            report = fixture.report().await;
        }
        let ReplicaReport::Lost { cause, .. } = report else { panic!("lost") };
        assert_eq!(cause.retry(), Retry::WhenReady);
        match stuck {
            None => {
                assert!(matches!(&cause, MeshLoss::Stalled { cause } if cause.contains("10 s")))
            }
            Some(rank) => {
                let named = cause.naming(&[device(rank as u32)]);
                assert_eq!(named.who(), "device a/3");
                assert_eq!(named.to_string(), "device a/3 did not stop run 5 within 2000 ms");
            }
        }
    }
}

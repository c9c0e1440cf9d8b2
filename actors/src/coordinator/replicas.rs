//! Running meshes: their trees of group actors and the controller's own links.
//!
//! Owns the table of replicas. A replica takes requests once its tree and the controller are both
//! in the mesh.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_model::spec::ModelSpec;
use ditmesh_transport::link::Transport;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef};
use tokio::task::JoinHandle;

use super::advance::Step;
use super::formation::{FormOrder, Formation, FormationEvent};
use super::mesh_plan::{MeshPlans, Question};
use super::model::Model;
use super::switch::StepTimes;
use super::{CoordinatorMsg, State};
use crate::dispatcher::MeshNeed;
use crate::generation::GenerateError;
use crate::groups::{
    DataReplica, MeshLoss, RankFormed, RankMsg, ReplicaArgs, ReplicaMsg, ReplicaReport, Seat,
};
use crate::membership::{Loss, Member};
use crate::plan::Plan;
use crate::plan::layout::Layout;
use crate::plan::mesh::DeviceMesh;
use crate::protocol::{DeviceId, Form, Member as MeshMember};
use crate::request::Degrees;
use crate::weights::store::ModelStore;
use crate::worker::forming::member_form;

/// How long devices of the manifest that have not come are waited for, from the start.
const SETTLE: Duration = Duration::from_secs(5);

/// One mesh.
pub(super) struct Replica {
    /// Position among the replicas.
    pub(super) data: u32,
    /// Degrees of the whole mesh.
    pub(super) mesh: Degrees,
    /// Degrees of this replica alone: `data_degree` is 1.
    pub(super) degrees: Degrees,
    /// Blocks of each stage.
    pub(super) layout: Layout,
    /// Of requests that leave it open, where the plan has an opinion.
    pub(super) num_pipeline_patch: Option<u32>,
    /// What a step is planned to take.
    pub(super) step: Option<StepTimes>,
    /// By rank.
    pub(super) devices: Vec<DeviceId>,
    pub(super) actor: ActorRef<ReplicaMsg>,
    pub(super) ranks: Option<Vec<RankFormed>>,
    pub(super) transport: Option<Arc<dyn Transport>>,
    joining: JoinHandle<()>,
}

impl Replica {
    pub(super) fn is_formed(&self) -> bool {
        self.ranks.is_some() && self.transport.is_some()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.joining.abort();
    }
}

impl State {
    /// The model was looked up: from now on meshes can be formed.
    pub(super) async fn model_known(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        model: Result<Model, GenerateError>,
    ) {
        match &model {
            Ok(model) => {
                tracing::info!(model = model.name, blocks = model.spec.blocks, "model found");
                let store = ModelStore::new(model.folder.clone(), model.spec.id.0);
                self.fabric.offer_blobs(Arc::new(store));
                // Who was declared gone is not waited for.
                let there = |device: &&DeviceId| !self.desk.memory.forced.contains(&device.node);
                let devices = model.devices.iter().filter(there).cloned().collect();
                self.absent = "waiting for devices".into();
                let first = MeshNeed::Open { guided: true };
                self.desk.formation = Some(Formation::new(devices, first, self.desk.memory.epochs));
                self.settles = Some(self.now() + SETTLE);
            }
            Err(error) => {
                tracing::warn!(%error, "no model");
                self.absent = error.to_string();
            }
        }
        if let Ok(model) = &model {
            for node in &self.joins.joined {
                model.take_in(node);
            }
        }
        self.model = Some(model.map(Arc::new));
        self.reckon_with_all_speeds();
        for device in self.desk.membership.ready_devices() {
            if let Some(epoch) = self.newest_epoch(&device) {
                self.form(myself, FormationEvent::DeviceReady { device, epoch }).await;
            }
        }
        for (id, request, sink) in std::mem::take(&mut self.early) {
            self.submit(myself, id, request, sink).await;
        }
    }

    /// Newest epoch that a device has been in, if it serves the model.
    pub(super) fn newest_epoch(&self, device: &DeviceId) -> Option<u64> {
        let Some(Ok(model)) = &self.model else { return None };
        model.is_served_by(&device.node).then(|| self.last_epoch(device))
    }

    /// Devices that have not come by now are waited for no longer.
    pub(super) async fn stop_awaiting(&mut self, myself: &ActorRef<CoordinatorMsg>) {
        if self.settles.is_some_and(|settles| settles <= self.now()) {
            self.settles = None;
            self.form(myself, FormationEvent::Settled).await;
        }
    }

    /// Looks for the best meshes of these devices, off the mailbox.
    pub(super) fn plan_meshes(&self, myself: &ActorRef<CoordinatorMsg>, question: Question) {
        let Some(Ok(model)) = &self.model else { return };
        let (model, coordinator) = (model.clone(), myself.clone());
        let cuts = self.desk.membership.cuts();
        tokio::task::spawn_blocking(move || {
            let plans = Box::new(MeshPlans::of(&model, &question, &cuts));
            // A coordinator that has ended forms no mesh.
            let _ = coordinator.cast(CoordinatorMsg::Planned(question.number, plans));
        });
    }

    /// Orders devices, by rank, into a mesh.
    pub(super) async fn form_replica(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        order: FormOrder,
    ) {
        let Some(Ok(model)) = &self.model else { return };
        let FormOrder { replica: epoch, data, devices, num_pipeline_patch, step, beside, .. } =
            order;
        let (mesh, degrees) = (order.degrees, order.degrees.alone());
        tracing::info!(epoch, %degrees, beside, "forming a mesh");
        self.desk.memory.reserve_epoch(epoch);
        let layout = model.layout(degrees, &devices);
        let order = self.form_order(model, epoch, degrees, &layout, &devices);
        let linked = linked(degrees, &model.spec);
        // What runs beside would be disturbed, and disturb.
        let measure = match beside {
            true => Vec::new(),
            false => self.links.wanted(self.now(), &devices, &linked),
        };
        let form = Form { beside, measure, ..order };
        let args = ReplicaArgs {
            seats: self.seats(degrees, &devices),
            blocks: model.spec.blocks as u32,
            coordinator: myself.get_derived(),
            form: form.clone(),
        };
        let joining = tokio::spawn(self.join_mesh(myself.clone(), model, form));
        match DataReplica::spawn_linked(None, DataReplica, args, myself.get_cell()).await {
            Ok((actor, _)) => {
                self.replica_actors.insert(actor.get_id(), epoch);
                let replica = Replica {
                    data,
                    mesh,
                    degrees,
                    layout,
                    num_pipeline_patch,
                    step,
                    devices,
                    actor,
                    ranks: None,
                    transport: None,
                    joining,
                };
                self.replicas.insert(epoch, replica);
            }
            Err(error) => {
                joining.abort();
                let cause = MeshLoss::Actor { cause: error.to_string() };
                let lost = ReplicaReport::Lost { epoch, cause };
                // To this actor itself: it cannot have ended.
                let _ = myself.cast(CoordinatorMsg::Replica(lost));
            }
        }
    }

    fn form_order(
        &self,
        model: &Model,
        epoch: u64,
        degrees: Degrees,
        layout: &Layout,
        devices: &[DeviceId],
    ) -> Form {
        let mut members: Vec<MeshMember> = devices
            .iter()
            .enumerate()
            .map(|(rank, device)| MeshMember {
                rank: rank as u32,
                node: device.node.clone(),
                fabric_address: self.desk.membership.address(device).to_string(),
            })
            .collect();
        members.push(MeshMember {
            rank: devices.len() as u32,
            node: self.manifest.coordinator_node().to_string(),
            fabric_address: self.fabric.address().to_string(),
        });
        Form {
            epoch,
            rank: 0,
            degrees,
            stage_ends: layout.ends(),
            model: model.folder.display().to_string(),
            model_id: model.spec.id.0,
            dtype: model.dtype,
            text_encoder: model.text_encoder,
            members,
            deadline_ms: self.manifest.health.form_deadline_ms,
            beside: false,
            measure: Vec::new(),
        }
    }

    fn seats(&self, degrees: Degrees, devices: &[DeviceId]) -> Vec<Seat> {
        let mesh = DeviceMesh::new(degrees);
        let seat = |(rank, device): (usize, &DeviceId)| {
            let at = mesh.coordinates(rank);
            let session = self.sessions.get(&Member::Worker(device.clone()))?.handle.clone();
            let (rank, device) = (rank as u32, device.clone());
            Some(Seat { rank, cfg: at.cfg, stage: at.stage, device, session })
        };
        devices.iter().enumerate().filter_map(seat).collect()
    }

    /// Brings the controller's own links up.
    fn join_mesh(
        &self,
        myself: ActorRef<CoordinatorMsg>,
        model: &Model,
        form: Form,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (fabric, cluster) = (self.fabric.clone(), self.manifest.cluster.name.clone());
        let deadline = Instant::now() + Duration::from_millis(form.deadline_ms.into());
        let controller = Form { rank: form.degrees.world_size() as u32, ..form };
        let mesh = Plan::widest(controller.degrees, &model.spec)
            .map_err(|error| error.to_string())
            .and_then(|plan| {
                let peers = plan.peers(controller.rank as usize);
                member_form(&controller, &peers, cluster, deadline)
            });
        async move {
            let outcome = match mesh {
                Ok(mesh) => fabric.form(mesh).await.map_err(|error| error.to_string()),
                Err(cause) => Err(cause),
            };
            // A coordinator that has ended joins nothing.
            let _ = myself.cast(CoordinatorMsg::ControllerJoined(controller.epoch, outcome));
        }
    }

    pub(super) async fn controller_joined(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        epoch: u64,
        outcome: Result<Arc<dyn Transport>, String>,
    ) {
        let Some(replica) = self.replicas.get_mut(&epoch) else { return };
        match outcome {
            Ok(transport) => {
                replica.transport = Some(transport);
                self.check_formed(myself, epoch).await;
            }
            Err(cause) => {
                // An actor that has ended has said why.
                let _ = replica.actor.cast(ReplicaMsg::ControllerFailed { cause });
            }
        }
    }

    async fn check_formed(&mut self, myself: &ActorRef<CoordinatorMsg>, epoch: u64) {
        if self.replicas.get(&epoch).is_some_and(Replica::is_formed) {
            tracing::info!(epoch, "mesh formed");
            self.form(myself, FormationEvent::Formed(epoch)).await;
        }
    }

    /// A replica's tree reports.
    pub(super) async fn replica_says(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        report: ReplicaReport,
    ) {
        match report {
            ReplicaReport::Seated { epoch, device, proxy } => {
                // Lost between the order and the seat: nobody else would tell the proxy.
                if self.replicas.contains_key(&epoch) && !self.desk.membership.is_ready(&device) {
                    let reason = self.desk.membership.describe(&Member::Worker(device));
                    let _ = proxy.cast(RankMsg::Lost(Loss::Closed { reason }));
                } else {
                    self.proxies.insert((device, epoch), proxy);
                }
            }
            ReplicaReport::Formed { epoch, ranks } => {
                if let Some(replica) = self.replicas.get_mut(&epoch) {
                    let devices = replica.devices.clone();
                    replica.ranks = Some(ranks.clone());
                    self.learn_links(&devices, &ranks);
                    self.check_formed(myself, epoch).await;
                }
            }
            report => self.advance(myself, Step::Mesh(report)).await,
        }
    }

    /// Forgets a replica that is over; its devices by rank.
    pub(super) fn forget_replica(&mut self, epoch: u64, cause: &str) -> Vec<DeviceId> {
        self.proxies.retain(|(_, seated), _| *seated != epoch);
        let Some(mut replica) = self.replicas.remove(&epoch) else { return Vec::new() };
        self.replica_actors.remove(&replica.actor.get_id());
        if let Some(transport) = &replica.transport {
            transport.close(cause);
        }
        std::mem::take(&mut replica.devices)
    }

    /// Says something to the supervisors of a replica.
    pub(super) fn conduct(&self, epoch: u64, message: ReplicaMsg) {
        if let Some(replica) = self.replicas.get(&epoch) {
            // An actor that has ended has reported its mesh lost, or dissolved it.
            let _ = replica.actor.cast(message);
        }
    }

    /// A device is gone: the proxies that stand for it fail, and take their meshes along.
    pub(super) fn unseat(&mut self, device: &DeviceId, loss: &Loss) {
        self.proxies.retain(|(seated, _), proxy| {
            let is_its = seated == device;
            if is_its {
                // A proxy that has failed already has taken its mesh along.
                let _ = proxy.cast(RankMsg::Lost(loss.clone()));
            }
            !is_its
        });
    }

    /// A child that is no session failed without a word of its own.
    pub(super) async fn child_failed(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        actor: ActorId,
        error: ActorProcessingErr,
    ) {
        tracing::error!(%error, "an actor failed");
        if let Some(epoch) = self.replica_actors.get(&actor).copied() {
            let cause = MeshLoss::Actor { cause: error.to_string() };
            self.advance(myself, Step::Mesh(ReplicaReport::Lost { epoch, cause })).await;
        }
    }
}

/// The pairs of ranks of one replica that some run on these degrees links, the lower one first.
pub(super) fn linked(degrees: Degrees, spec: &ModelSpec) -> Vec<(u32, u32)> {
    let Ok(plan) = Plan::widest(degrees, spec) else { return Vec::new() };
    let world = plan.mesh.world_size();
    let of = |a: usize| {
        let peers = plan.peers(a).into_iter().filter(move |&b| a < b && b < world);
        peers.map(move |b| (a as u32, b as u32))
    };
    (0..world).flat_map(of).collect()
}

//! How a worker comes into a mesh: weights, links, their measurement.
//!
//! Owns the tasks that form meshes, off the mailbox, and what they report. Invariant: a mesh that
//! is not wanted any more when it is formed is closed and not told of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_transport::fabric::{Fabric, MeshForm, PeerAddress};
use ditmesh_transport::ids::{Epoch, PeerId};
use ditmesh_transport::{Transport, TransportError};

use super::compute::{Load, Loaded};
use super::{Mesh, State, WorkerConfig, WorkerMsg, measure};
use crate::plan::Plan;
use crate::protocol::{Form, FormFault, LinkCarrier, LinkMeasured, ToCoordinator};
use crate::weights::{Fetchers, Place};

/// What links sustain, by the member at the other end.
type Measured = BTreeMap<u32, LinkMeasured>;

/// A mesh that this worker is part of.
type Joined = (Loaded, Arc<dyn Transport>, Measured);

/// The outcome of forming.
#[doc(hidden)]
pub struct FormDone {
    form: Form,
    outcome: Result<Joined, (FormFault, String)>,
}

impl std::fmt::Debug for FormDone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FormDone({}, {})", self.form.epoch, self.outcome.is_ok())
    }
}

impl State {
    /// Loads the partition and brings up the links at the same time, off the mailbox.
    pub(super) async fn form(&mut self, form: Form) {
        if form.epoch <= self.newest_epoch {
            let cause = format!("epoch {} is not after {}", form.epoch, self.newest_epoch);
            let (epoch, fault) = (form.epoch, FormFault::Loading);
            return self.report(ToCoordinator::FormFailed { epoch, fault, cause }).await;
        }
        if !form.beside {
            self.leave_all("a newer mesh is formed").await;
        }
        let epoch = form.epoch;
        self.newest_epoch = epoch;
        let deadline = Instant::now() + Duration::from_millis(u64::from(form.deadline_ms));
        let present: Vec<Loaded> = self.meshes.values().map(|mesh| mesh.loaded.clone()).collect();
        let loader = self.compute.loader();
        let (fabric, config) = (Arc::clone(&self.fabric), self.config.clone());
        let (fetchers, myself) = (self.fetchers.clone(), self.myself.clone());
        let forming = tokio::spawn(async move {
            let outcome = async {
                let faulty = |cause| (FormFault::Loading, cause);
                let place = find_model(&form, &config, &fabric, fetchers).await.map_err(faulty)?;
                let load = Load::of(&form, place.clone());
                let loaded = loader.load(load, present, deadline).await.map_err(faulty)?;
                place.offer(form.model_id, fabric.as_ref());
                let cluster = config.cluster;
                let mesh = mesh_form(&form, &loaded, cluster, deadline).map_err(faulty)?;
                let transport = fabric.form(mesh).await;
                let transport = transport.map_err(|error| (unlinked(&error), error.to_string()))?;
                let (pairs, rank) = (form.measure.clone(), form.rank);
                let measuring =
                    measure::links(Arc::clone(&transport), epoch, rank, pairs, deadline);
                Ok((loaded, transport, measuring.await))
            };
            let outcome = outcome.await;
            let _ = myself.cast(WorkerMsg::FormDone(FormDone { form, outcome }));
        });
        self.forming.insert(epoch, forming.abort_handle());
    }

    /// Gives up a mesh that is being formed: its dials end, its lanes close.
    pub(super) fn stop_forming(&mut self, epoch: u64) {
        if let Some(forming) = self.forming.remove(&epoch) {
            forming.abort();
        }
    }

    pub(super) async fn formed(&mut self, done: FormDone) {
        let FormDone { form, outcome } = done;
        let epoch = form.epoch;
        let wanted = self.forming.remove(&epoch).is_some();
        match outcome {
            Ok((_, transport, _)) if !wanted => transport.close("the mesh is not wanted any more"),
            Ok((loaded, transport, measured)) => {
                let report = ToCoordinator::Formed {
                    epoch,
                    blocks: (loaded.parts.blocks.start as u32, loaded.parts.blocks.end as u32),
                    weight_bytes_read: loaded.model.bytes_read(),
                    carriers: carriers(&*transport, form.members.len(), &measured),
                };
                if form.beside {
                    self.compute.hold(loaded.clone());
                }
                let rank = form.rank as usize;
                let (agenda, runs) = (Arc::default(), BTreeMap::new());
                let mesh = Mesh { rank, form, loaded, transport, agenda, runs };
                self.meshes.insert(epoch, mesh);
                self.report(report).await;
            }
            Err(_) if !wanted => {}
            Err((fault, cause)) => {
                self.report(ToCoordinator::FormFailed { epoch, fault, cause }).await;
            }
        }
    }

    /// Measures a link beside whatever else is done. A mesh that is gone measures nothing.
    pub(super) fn measure(&self, epoch: u64, number: u64, pair: (u32, u32)) {
        let Some(mesh) = self.meshes.get(&epoch) else { return };
        let (transport, rank) = (Arc::clone(&mesh.transport), mesh.form.rank);
        let reports = self.reports.clone();
        tokio::spawn(async move {
            let figures = measure::again(transport, epoch, rank, number, pair).await;
            if rank == pair.0 {
                // A worker that has ended is reported by its end.
                let _ = reports.send(ToCoordinator::LinkMeasuredAgain { number, figures }).await;
            }
        });
    }
}

/// Where this host has the model of `form`, off this thread: it may ask peers.
async fn find_model(
    form: &Form,
    config: &WorkerConfig,
    fabric: &Arc<dyn Fabric>,
    known: Fetchers,
) -> Result<Place, String> {
    let (form, device, fabric) = (form.clone(), config.device.clone(), Arc::clone(fabric));
    let runtime = tokio::runtime::Handle::current();
    let finding =
        tokio::task::spawn_blocking(move || Place::find(&form, &device, &fabric, &runtime, &known));
    let found = finding.await.map_err(|error| format!("looking for the model: {error}"))?;
    found.map_err(|error| error.to_string())
}

/// What carries the frames of each link of a mesh of `members`, and what was measured.
fn carriers(transport: &dyn Transport, members: usize, measured: &Measured) -> Vec<LinkCarrier> {
    let links = (0..members as u32).filter_map(|peer| {
        let carrier = transport.link(PeerId(peer)).ok()?.carrier();
        let (transport, measured) = (carrier.name.to_owned(), measured.get(&peer).copied());
        Some(LinkCarrier { peer, transport, why: carrier.why, measured })
    });
    links.collect()
}

/// Links only to the members that some run on these degrees can talk to.
fn mesh_form(
    form: &Form,
    loaded: &Loaded,
    cluster: String,
    deadline: Instant,
) -> Result<MeshForm, String> {
    let widest =
        Plan::widest(form.degrees, &loaded.model.spec).map_err(|error| error.to_string())?;
    member_form(form, &widest.peers(form.rank as usize), cluster, deadline)
}

/// What it means for the mesh that its links could not be had.
fn unlinked(error: &TransportError) -> FormFault {
    let unanswered = match error {
        TransportError::Unanswered { peer, .. } => Some(peer.0),
        _ => None,
    };
    FormFault::Links { unanswered }
}

/// The mesh as the fabric of member `form.rank` is told: its `peers` and their addresses.
pub(crate) fn member_form(
    form: &Form,
    peers: &[usize],
    cluster: String,
    deadline: Instant,
) -> Result<MeshForm, String> {
    let mut addresses = Vec::with_capacity(peers.len());
    for &peer in peers {
        let member = form.members.get(peer).ok_or(format!("the mesh has no member {peer}"))?;
        let address = member
            .fabric_address
            .parse()
            .map_err(|error| format!("address {:?}: {error}", member.fabric_address))?;
        let (id, name) = (PeerId(member.rank), member.node.clone());
        addresses.push(PeerAddress { id, name, address });
    }
    let (epoch, local) = (Epoch(form.epoch), PeerId(form.rank));
    Ok(MeshForm { cluster, epoch, local, peers: addresses, deadline })
}

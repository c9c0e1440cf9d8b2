//! Forming one mesh: both lanes to every peer.
//!
//! Owns the collecting of lanes, dialled to higher peers and admitted from lower ones. Invariant:
//! either every link is there, or every lane is dropped and the error says who is missing.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout_at;

use super::admission::{Admission, Knock};
use super::dial::dial;
use super::greeting::LaneStream;
use super::link::QuicLink;
use crate::endpoint::{QuicEndpoint, close_code};
use crate::error::TransportError;
use crate::fabric::{FabricAddress, MeshForm, PeerAddress};
use crate::frame::hello::Lane;
use crate::ids::PeerId;

/// What forming needs from its fabric.
#[derive(Clone)]
pub(super) struct Former {
    pub(super) admission: Arc<Admission>,
    pub(super) control: Arc<QuicEndpoint>,
    pub(super) bulk: Arc<QuicEndpoint>,
}

pub(super) type Links = BTreeMap<PeerId, Arc<QuicLink>>;
type Dialled = (PeerId, Lane, Result<LaneStream, TransportError>);

impl Former {
    /// Runs on the control endpoint's thread.
    pub(super) async fn form(
        self,
        form: MeshForm,
        knocking: mpsc::Receiver<Knock>,
    ) -> Result<Links, TransportError> {
        let mut lanes = Lanes::of(&form.peers);
        let mut dialling = self.dial_all(&form)?;
        let collecting = collect(&mut lanes, &mut dialling, knocking);
        let collected = timeout_at(form.deadline.into(), collecting).await;
        let missing = |_| Err(lanes.missing(&form, self.admission.last_refusal()));
        if let Err(error) = collected.unwrap_or_else(missing) {
            lanes.close("the mesh could not be formed");
            return Err(error);
        }
        let share = self.bulk.receive_window_bytes()
            / u32::try_from(form.peers.len()).unwrap_or(u32::MAX).max(1);
        let links = lanes.complete.into_iter().map(|(peer, (control, bulk))| {
            let link = QuicLink::start(peer, form.epoch, control, bulk, &self.bulk, share);
            (peer, link)
        });
        Ok(links.collect())
    }

    fn dial_all(&self, form: &MeshForm) -> Result<Dialling, TransportError> {
        let mut dialling = Dialling::default();
        for peer in form.peers.iter().filter(|peer| peer.id > form.local) {
            let (control, bulk) = addresses(peer)?;
            for (lane, endpoint, address) in
                [(Lane::Control, &self.control, control), (Lane::Bulk, &self.bulk, bulk)]
            {
                let hello = self.admission.speaker().hello(form.epoch, form.local, peer.id, lane);
                let (dialer, name, id) = (endpoint.dialer(), peer.name.clone(), peer.id);
                let lane_dial = dial(dialer, address, name, hello, form.deadline);
                let task = endpoint.spawn(lane_dial);
                dialling.aborts.push(task.abort_handle());
                dialling.tasks.spawn(async move {
                    let stopped = |_| Err(TransportError::closed("the fabric"));
                    (id, lane, task.await.unwrap_or_else(stopped))
                });
            }
        }
        Ok(dialling)
    }
}

/// Dials under way; dropping them ends them.
#[derive(Default)]
struct Dialling {
    tasks: JoinSet<Dialled>,
    aborts: Vec<AbortHandle>,
}

impl Drop for Dialling {
    fn drop(&mut self) {
        for abort in &self.aborts {
            abort.abort();
        }
    }
}

async fn collect(
    lanes: &mut Lanes,
    dialling: &mut Dialling,
    mut knocking: mpsc::Receiver<Knock>,
) -> Result<(), TransportError> {
    while !lanes.open.is_empty() {
        tokio::select! {
            Some(dialled) = dialling.tasks.join_next() => {
                let (peer, lane, stream) =
                    dialled.map_err(|_| TransportError::closed("the fabric"))?;
                lanes.add(peer, lane, stream?);
            }
            Some(knock) = knocking.recv() => lanes.add(knock.from, knock.lane, knock.stream),
            else => return Err(TransportError::closed("the fabric")),
        }
    }
    Ok(())
}

struct Lanes {
    open: HashMap<PeerId, (Option<LaneStream>, Option<LaneStream>)>,
    complete: BTreeMap<PeerId, (LaneStream, LaneStream)>,
}

impl Lanes {
    fn of(peers: &[PeerAddress]) -> Self {
        let open = peers.iter().map(|peer| (peer.id, (None, None))).collect();
        Self { open, complete: BTreeMap::new() }
    }

    /// A live lane stays, and the new one is dropped and thereby closed; a dead one is replaced
    /// (its caller gave up and dialled again).
    fn add(&mut self, peer: PeerId, lane: Lane, stream: LaneStream) {
        let Some((control, bulk)) = self.open.get_mut(&peer) else { return };
        let place = match lane {
            Lane::Control => &mut *control,
            Lane::Bulk => &mut *bulk,
        };
        if place.as_ref().is_none_or(|held| held.connection.close_reason().is_some()) {
            *place = Some(stream);
        }
        if control.is_some()
            && bulk.is_some()
            && let Some((Some(control), Some(bulk))) = self.open.remove(&peer)
        {
            self.complete.insert(peer, (control, bulk));
        }
    }

    fn close(self, cause: &str) {
        let open = self.open.into_values().flat_map(|(control, bulk)| [control, bulk]);
        let complete = self.complete.into_values().flat_map(|(a, b)| [Some(a), Some(b)]);
        for lane in open.chain(complete).flatten() {
            lane.connection.close(close_code::DONE, cause.as_bytes());
        }
    }

    fn missing(&self, form: &MeshForm, last_refusal: Option<String>) -> TransportError {
        let missing = form.peers.iter().filter(|peer| self.open.contains_key(&peer.id));
        let text = |of: fn(&PeerAddress) -> String, missing: Vec<&PeerAddress>| {
            missing.into_iter().map(of).collect::<Vec<_>>().join(", ")
        };
        let missing: Vec<_> = missing.collect();
        let mut cause = format!("did not join epoch {} before the deadline", form.epoch);
        if let Some(refusal) = last_refusal {
            cause.push_str("; the last caller refused here was ");
            cause.push_str(&refusal);
        }
        TransportError::Connect {
            peer: text(|peer| format!("peer {} ({})", peer.id, peer.name), missing.clone()),
            address: text(|peer| peer.address.to_string(), missing),
            cause,
        }
    }
}

fn addresses(peer: &PeerAddress) -> Result<(SocketAddr, SocketAddr), TransportError> {
    match peer.address {
        FabricAddress::Quic { control, bulk } => Ok((control, bulk)),
        other @ FabricAddress::InProcess(_) => Err(TransportError::Connect {
            peer: format!("peer {} ({})", peer.id, peer.name),
            address: other.to_string(),
            cause: "it does not listen on QUIC".to_owned(),
        }),
    }
}

//! Forming one mesh: all lanes to every peer.
//!
//! Owns the collecting of lanes, dialled to higher peers and admitted from lower ones. Invariant:
//! either every link is there, or every lane is dropped and the error says who is missing.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout_at;

use super::admission::{Admission, Knock};
use super::dial::dial_member;
use super::greeting::LaneStream;
use super::link::QuicLink;
use crate::endpoint::{QuicEndpoint, close_code};
use crate::error::TransportError;
use crate::fabric::{FabricAddress, LaneAddresses, MeshForm, PeerAddress};
use crate::frame::hello::Lane;
use crate::ids::PeerId;

/// What forming needs from its fabric.
#[derive(Clone)]
pub(super) struct Former {
    pub(super) admission: Arc<Admission>,
    pub(super) control: Arc<QuicEndpoint>,
    /// One per lane.
    pub(super) bulk: Vec<Arc<QuicEndpoint>>,
    /// How long a peer may leave a dial unanswered.
    pub(super) patience: Duration,
}

pub(super) type Links = BTreeMap<PeerId, Arc<QuicLink>>;
type Dialled = (PeerId, Lane, Result<LaneStream, TransportError>);

impl Former {
    /// Bulk connections per pair of peers, where the peer has as many.
    pub(super) fn lanes(&self) -> u32 {
        u32::try_from(self.bulk.len()).unwrap_or(u32::MAX)
    }

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
        let peers = u32::try_from(form.peers.len()).unwrap_or(u32::MAX).max(1);
        let links = lanes.complete.into_iter().map(|(peer, (control, bulk))| {
            let lanes = bulk.into_iter().zip(self.bulk.iter().map(Arc::as_ref)).collect();
            let control = (control, self.control.as_ref());
            let link = QuicLink::start(peer, form.epoch, control, lanes, peers);
            (peer, link)
        });
        Ok(links.collect())
    }

    fn dial_all(&self, form: &MeshForm) -> Result<Dialling, TransportError> {
        let mut dialling = Dialling::default();
        for peer in form.peers.iter().filter(|peer| peer.id > form.local) {
            let (control, bulk) = addresses(peer)?;
            let of = u8::try_from(bulk.as_slice().len().min(self.bulk.len())).unwrap_or(1);
            let lanes = (0..of).map(|index| Lane::Bulk { index, of });
            let bulk = lanes.zip(&self.bulk).zip(bulk.as_slice());
            let bulk = bulk.map(|((lane, endpoint), address)| (lane, endpoint, *address));
            let control = (Lane::Control, &self.control, control);
            for (lane, endpoint, address) in std::iter::once(control).chain(bulk) {
                let hello = self.admission.speaker().hello(form.epoch, form.local, peer.id, lane);
                let (dialer, name, id) = (endpoint.dialer(), peer.name.clone(), peer.id);
                let until = (self.patience, form.deadline);
                let lane_dial = dial_member(dialer, address, name, hello, until);
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
    open: HashMap<PeerId, OpenLink>,
    complete: BTreeMap<PeerId, (LaneStream, Vec<LaneStream>)>,
}

/// The lanes of one link, as they come.
#[derive(Default)]
struct OpenLink {
    control: Option<LaneStream>,
    /// As many places as the dialling side has lanes; none before its first bulk lane is here.
    bulk: Vec<Option<LaneStream>>,
}

impl Lanes {
    fn of(peers: &[PeerAddress]) -> Self {
        let open = peers.iter().map(|peer| (peer.id, OpenLink::default())).collect();
        Self { open, complete: BTreeMap::new() }
    }

    /// A live lane stays, and the new one is dropped and thereby closed; a dead one is replaced
    /// (its caller gave up and dialled again).
    fn add(&mut self, peer: PeerId, lane: Lane, stream: LaneStream) {
        let Some(link) = self.open.get_mut(&peer) else { return };
        let Some(place) = link.place(lane) else { return };
        if place.as_ref().is_none_or(|held| held.connection.close_reason().is_some()) {
            *place = Some(stream);
        }
        if link.is_complete()
            && let Some(OpenLink { control: Some(control), bulk }) = self.open.remove(&peer)
        {
            self.complete.insert(peer, (control, bulk.into_iter().flatten().collect()));
        }
    }

    fn close(self, cause: &str) {
        let open = self.open.into_values();
        let open = open.flat_map(|link| link.bulk.into_iter().chain([link.control]).flatten());
        let complete = self.complete.into_values();
        let complete = complete.flat_map(|(control, bulk)| bulk.into_iter().chain([control]));
        for lane in open.chain(complete) {
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

impl OpenLink {
    /// Where a lane belongs; a caller that comes back with another number of lanes starts anew.
    fn place(&mut self, lane: Lane) -> Option<&mut Option<LaneStream>> {
        match lane {
            Lane::Control => Some(&mut self.control),
            // Of no mesh; never admitted to one.
            Lane::Blobs => None,
            Lane::Bulk { index, of } => {
                if self.bulk.len() != usize::from(of) {
                    self.bulk.clear();
                    self.bulk.resize_with(usize::from(of), || None);
                }
                self.bulk.get_mut(usize::from(index))
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.control.is_some() && !self.bulk.is_empty() && self.bulk.iter().all(Option::is_some)
    }
}

fn addresses(peer: &PeerAddress) -> Result<(SocketAddr, LaneAddresses), TransportError> {
    match peer.address {
        FabricAddress::Quic { control, bulk } => Ok((control, bulk)),
        other @ FabricAddress::InProcess(_) => Err(TransportError::Connect {
            peer: format!("peer {} ({})", peer.id, peer.name),
            address: other.to_string(),
            cause: "it does not listen on QUIC".to_owned(),
        }),
    }
}

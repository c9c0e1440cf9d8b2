//! Putting the frames of a formed QUIC link on UCX, if that is what both ends choose.
//!
//! Owns the conversation: offers over the link's control connection, then probes over UCX. Does not
//! own the choice ([`super::choice`]). Invariants: until both ends have heard each other over UCX
//! the link has no lane; a lane that is not used is closed.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use tokio::time::timeout_at;

use super::choice::{Chosen, LaneChoice, choose, device_words, is_direct};
use super::commands::Command;
use super::context::Path;
use super::fabric::UcxLanes;
use super::host::fingerprint;
use super::lane::{LaneId, UcxLane};
use crate::completion::{Awaited, completion};
use crate::error::TransportError;
use crate::frame::{DeviceOffer, LaneOffer, Nonce};
use crate::link::Link;
use crate::link::lane::{Carrier, FrameLane, FrameSink};
use crate::quic::{QuicLink, Upgrade, UpgradeTo, Upgrading};

impl Upgrade for UcxLanes {
    fn admit(&self, to: &UpgradeTo) -> Result<(), TransportError> {
        match self.wanted(to) {
            (LaneChoice::Ucx, false) if !self.config.trusted_network => {
                Err(TransportError::UntrustedNetwork { peer: to.to_string() })
            }
            _ => Ok(()),
        }
    }

    fn upgrade<'a>(&'a self, link: Arc<QuicLink>, to: UpgradeTo) -> Upgrading<'a> {
        Box::pin(async move {
            let peer = to.to_string();
            let late = || TransportError::deadline(format!("{peer} to choose a transport"));
            let upgraded = timeout_at(to.deadline.into(), self.converse(&link, &to)).await;
            let upgraded = upgraded.unwrap_or_else(|_| Err(late()));
            // The reason for a link's end says more than what was cut short by it.
            upgraded.map_err(|error| match (link.closed(), error) {
                (Some(cause), TransportError::Closed { .. }) => {
                    TransportError::peer_lost(link.peer(), cause)
                }
                (_, error) => error,
            })
        })
    }

    fn stop(&self) {
        self.stop_thread();
    }
}

impl UcxLanes {
    /// What this end wants towards a peer, and whether that is on this host.
    fn wanted(&self, to: &UpgradeTo) -> (LaneChoice, bool) {
        let same_host = Self::same_host(to.ours, to.theirs);
        let choice = if same_host { self.config.same_host } else { self.config.other_host };
        (choice, same_host)
    }

    async fn converse(&self, link: &Arc<QuicLink>, to: &UpgradeTo) -> Result<(), TransportError> {
        let (choice, same_host) = self.wanted(to);
        let mut lane = Opening { lanes: self, id: self.next_lane(), used: false };
        let offer = self.offer(link, &lane, choice, same_host).await?;
        link.offer(offer.clone());
        let theirs = link.offered().await?;
        theirs.check()?;
        let carrier = match choose(&offer, &theirs) {
            Ok(Chosen::Quic(why)) => {
                link.stay(why);
                return Ok(());
            }
            Ok(Chosen::Ucx(why)) => {
                let name = if same_host { "ucx-shm" } else { "ucx-net" };
                let device = device_words(&offer.device, &theirs.device);
                Carrier { name, why: format!("{why}, UCX {}{device}", super::version()?) }
            }
            Err(error) => {
                link.close(&error.to_string());
                return Err(error);
            }
        };
        let (reached, reaching) = completion(Awaited::Other("the peer to be reached over UCX"));
        self.driver.commands().push(Command::Connect {
            lane: lane.id,
            address: theirs.address,
            nonce: theirs.nonce,
            reached,
        });
        reaching.await?;
        let driver = Arc::clone(&self.driver);
        lane.used = true;
        let device_memory = is_direct(&offer.device, &theirs.device);
        let ridden = UcxLane { id: lane.id, driver, carrier, device_memory };
        link.ride(Arc::new(ridden) as Arc<dyn FrameLane>);
        Ok(())
    }

    /// What this end offers; with a worker unless it wants none.
    async fn offer(
        &self,
        link: &Arc<QuicLink>,
        lane: &Opening<'_>,
        choice: LaneChoice,
        same_host: bool,
    ) -> Result<LaneOffer, TransportError> {
        let nonce = nonce()?;
        let mut offer = LaneOffer {
            nonce,
            host: fingerprint(),
            same_host,
            choice: choice.code(),
            address: Vec::new(),
            cause: String::new(),
            device: DeviceOffer::NoDevice,
        };
        let wanted = match choice {
            LaneChoice::Quic => false,
            LaneChoice::Ucx => true,
            LaneChoice::Auto => same_host,
        };
        if !wanted {
            offer.cause = "it was not asked for".to_owned();
            return Ok(offer);
        }
        let path = if same_host { Path::SharedMemory } else { Path::Network };
        let (reply, opened) = completion(Awaited::Other("a worker of UCX"));
        let sink = Arc::clone(link) as Arc<dyn FrameSink>;
        self.driver.commands().push(Command::Open { lane: lane.id, path, nonce, sink, reply });
        match opened.await {
            Ok(opened) => (offer.address, offer.device) = (opened.address, opened.device),
            Err(error) => offer.cause = error.to_string(),
        }
        Ok(offer)
    }
}

/// A lane on its way; closed unless the link takes it.
struct Opening<'a> {
    lanes: &'a UcxLanes,
    id: LaneId,
    used: bool,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.used {
            self.lanes.driver.commands().push(Command::Close { lane: self.id });
        }
    }
}

fn nonce() -> Result<Nonce, TransportError> {
    let mut nonce = Nonce::default();
    let filled = default_provider().secure_random.fill(&mut nonce);
    filled.map_err(|_| TransportError::closed("the system's source of randomness"))?;
    Ok(nonce)
}

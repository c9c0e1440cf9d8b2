//! The door: accepts channels and hears who is there.
//!
//! Owns the accept loop and the bound on handshakes at a time. Whoever passes is handed to the
//! coordinator, which asks membership.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_transport::control::{ControlChannel, ControlEndpoint};
use ractor::ActorRef;
use tokio::sync::Semaphore;

use super::CoordinatorMsg;
use crate::session::handshake;

/// Longest time for a hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// Handshakes at a time; more wait in the endpoint.
const HANDSHAKES_MAX: usize = 64;

/// Accepts channels until the endpoint or the coordinator is closed.
pub(super) async fn accept_all(
    endpoint: Arc<ControlEndpoint>,
    cluster: String,
    coordinator: ActorRef<CoordinatorMsg>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok(channel) = endpoint.accept().await else { return };
        let (cluster, coordinator) = (cluster.clone(), coordinator.clone());
        tokio::spawn(async move {
            admit(channel, cluster, coordinator).await;
            drop(place);
        });
    }
}

/// Hands on the questions of machines that join, until the endpoint is closed.
pub(super) async fn hear_joiners(
    endpoint: &ControlEndpoint,
    coordinator: &ActorRef<CoordinatorMsg>,
) {
    while let Ok(joining) = endpoint.next_joining().await {
        if coordinator.cast(CoordinatorMsg::Joining(joining)).is_err() {
            return;
        }
    }
}

/// Hears one hello and hands it on.
pub(super) async fn admit(
    mut channel: ControlChannel,
    cluster: String,
    coordinator: ActorRef<CoordinatorMsg>,
) {
    let deadline = Instant::now() + HELLO_DEADLINE;
    match handshake::hear_hello(&mut channel, &cluster, deadline).await {
        // A coordinator that has ended drops the channel, which tells the peer.
        Ok(hello) => drop(coordinator.cast(CoordinatorMsg::Arrived(Box::new(hello), channel))),
        Err(error) => {
            tracing::warn!(peer = %channel.peer(), %error, "handshake refused");
            // A coordinator that has ended counts nobody any more.
            let _ = coordinator.cast(CoordinatorMsg::TurnedAway);
        }
    }
}

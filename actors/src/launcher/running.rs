//! Looking at a cluster from outside: is it ready, and if not, why.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::LaunchError;
use crate::client::{ClientError, ClusterClient};
use crate::manifest::Manifest;
use crate::status::ClusterStatus;

/// Between looks.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// A failure to form that lasts this long is not repaired by a restarted worker.
const FAILURE_LASTS: Duration = Duration::from_secs(2);

/// A worker that is dead for this long has died too often.
const DEATH_LASTS: Duration = Duration::from_secs(8);

/// Waits until the mesh of `manifest` is formed.
///
/// # Errors
/// [`LaunchError::NotReady`] with the reason, when forming fails or takes too long.
pub(super) async fn wait_ready(
    manifest: &Manifest,
    patience: Duration,
) -> Result<ClusterStatus, LaunchError> {
    let deadline = Instant::now() + patience;
    let (mut failing, mut dying) = (Lasting::default(), Lasting::default());
    loop {
        let reason = match look(manifest).await {
            Ok(status) if status.mesh.is_some() => return Ok(status),
            Ok(status) => {
                let dead = dead_device(&status);
                let is_lasting = failing.see(status.mesh_failed) > FAILURE_LASTS
                    || dying.see(dead.is_some()) > DEATH_LASTS;
                let absent = status.mesh_absent.unwrap_or_default();
                let reason = match dead {
                    Some(dead) => format!("{absent}; {dead}"),
                    None => absent,
                };
                if is_lasting {
                    return Err(LaunchError::NotReady(reason));
                }
                reason
            }
            Err(error @ (ClientError::Certificate { .. } | ClientError::Refused { .. })) => {
                return Err(LaunchError::NotReady(error.to_string()));
            }
            Err(error) => error.to_string(),
        };
        if Instant::now() > deadline {
            let seconds = patience.as_secs();
            return Err(LaunchError::NotReady(format!("{reason} (after {seconds} s)")));
        }
        sleep(LOOK_PAUSE).await;
    }
}

/// Since when something holds without a break.
#[derive(Default)]
struct Lasting(Option<Instant>);

impl Lasting {
    /// Notes whether it holds now; for how long it has.
    fn see(&mut self, holds: bool) -> Duration {
        if !holds {
            self.0 = None;
        }
        match (holds, self.0) {
            (true, None) => {
                self.0 = Some(Instant::now());
                Duration::ZERO
            }
            (true, Some(since)) => since.elapsed(),
            (false, _) => Duration::ZERO,
        }
    }
}

/// The first device whose worker is dead, with the reason.
fn dead_device(status: &ClusterStatus) -> Option<String> {
    status.nodes.iter().find_map(|node| {
        let dead = node.devices.iter().find(|device| device.state.starts_with("dead"))?;
        Some(format!("device {}/{} is {}", node.name, dead.index, dead.state))
    })
}

/// One look: connects, asks, leaves.
async fn look(manifest: &Manifest) -> Result<ClusterStatus, ClientError> {
    let (cluster, manifest) = (manifest.cluster.name.clone(), manifest.clone());
    let asked =
        tokio::task::spawn_blocking(move || ClusterClient::connect(&manifest)?.blocking_status());
    asked.await.unwrap_or_else(|error| Err(ClientError::Lost { cluster, cause: error.to_string() }))
}

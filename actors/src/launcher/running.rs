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

/// Waits until the mesh of `manifest` is formed.
///
/// # Errors
/// [`LaunchError::NotReady`] with the reason, when forming fails or takes too long.
pub(super) async fn wait_ready(manifest: &Manifest) -> Result<ClusterStatus, LaunchError> {
    let patience = Duration::from_millis(manifest.launcher.ready_deadline_ms.into());
    let deadline = Instant::now() + patience;
    let mut failed_since = None;
    loop {
        let reason = match look(manifest).await {
            Ok(status) if status.mesh.is_some() => return Ok(status),
            Ok(status) => {
                let reason = status.mesh_absent.unwrap_or_default();
                match (status.mesh_failed, failed_since) {
                    (false, _) => failed_since = None,
                    (true, None) => failed_since = Some(Instant::now()),
                    (true, Some(since)) if since.elapsed() > FAILURE_LASTS => {
                        return Err(LaunchError::NotReady(reason));
                    }
                    (true, Some(_)) => {}
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

/// One look: connects, asks, leaves.
async fn look(manifest: &Manifest) -> Result<ClusterStatus, ClientError> {
    let (cluster, manifest) = (manifest.cluster.name.clone(), manifest.clone());
    let asked =
        tokio::task::spawn_blocking(move || ClusterClient::connect(&manifest)?.blocking_status());
    asked.await.unwrap_or_else(|error| Err(ClientError::Lost { cluster, cause: error.to_string() }))
}

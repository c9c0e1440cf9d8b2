//! The coordinator inside the agent of its node.
//!
//! Owns starting it, publishing its address, and stopping it.

use std::io;
use std::sync::Arc;

use ditmesh_transport::control::ControlEndpoint;
use tokio::task::JoinHandle;

use super::data_plane::DataPlane;
use super::node_agent::unix_ms;
use crate::coordinator::{CoordinatorArgs, CoordinatorHandle, Door};
use crate::journal::keeper::Journal;
use crate::launcher::record::{ProcessRecord, Published, Role, RunFolder};
use crate::manifest::Manifest;
use crate::membership::Incarnation;

/// A coordinator and its door.
pub(crate) struct HostedCoordinator {
    handle: CoordinatorHandle,
    accepting: JoinHandle<()>,
    record: Published,
}

impl HostedCoordinator {
    /// Starts it on `endpoint`; its data plane takes the place after the node's devices.
    ///
    /// # Errors
    /// In words.
    pub(crate) async fn start(
        manifest: &Manifest,
        plane: &DataPlane,
        place: usize,
        endpoint: Arc<ControlEndpoint>,
        folder: &RunFolder,
    ) -> Result<Self, String> {
        let fabric = plane.fabric(place, Incarnation::at(unix_ms()).0, None);
        let fabric = fabric.map_err(|error| error.to_string())?;
        let address = endpoint.local_address().to_string();
        let manifest = Arc::new(manifest.clone());
        let name = manifest.coordinator_node().to_string();
        let door = Some(Door { endpoint: endpoint.clone(), folder: folder.path().to_path_buf() });
        let path = folder.path().join("coordinator");
        let journal = match Journal::open(&path) {
            Ok(journal) => Some(journal),
            // Two coordinators of one state would give the same epochs to different meshes.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                return Err(format!("the journal in {}: {error}", path.display()));
            }
            Err(error) => {
                let path = path.display();
                tracing::error!(%path, %error, "no journal: a restart will remember nothing");
                None
            }
        };
        let args = CoordinatorArgs { manifest, fabric, address: address.clone(), journal, door };
        let handle = CoordinatorHandle::start(args).await?;
        let accepting = handle.listen(endpoint);
        let record = ProcessRecord {
            address: Some(address),
            ..ProcessRecord::of_self(Role::Coordinator, &name)
        };
        let record = folder.publish(record).map_err(|error| {
            let path = folder.path().display();
            format!("cannot publish the coordinator's address in {path}: {error}")
        })?;
        Ok(Self { handle, accepting, record })
    }

    /// The way to it in this process.
    pub(crate) fn handle(&self) -> CoordinatorHandle {
        self.handle.clone()
    }

    /// Ends it: requests fail, sessions close, the address is withdrawn.
    pub(crate) async fn stop(self) {
        drop(self.record);
        self.accepting.abort();
        self.handle.stop().await;
    }
}

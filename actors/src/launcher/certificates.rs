//! The certificates of a local cluster: made by `up` when they are missing.
//!
//! Invariant: in a folder that the manifest names itself nothing is made; what is there stays.

use std::path::{Path, PathBuf};

use ditmesh_transport::identity::{ClusterCa, Identity, IdentityError, Role};

use super::LaunchError;
use crate::agent::certs_dir;
use crate::client::CLIENT_NAME;
use crate::manifest::Manifest;

/// Makes sure that every process of the cluster has a certificate; where they are.
pub(super) fn ensure(manifest: &Manifest) -> Result<PathBuf, LaunchError> {
    let dir = certs_dir(manifest);
    let nodes = manifest.nodes.iter().map(|node| (Role::Node, node.name.as_str()));
    let wanted: Vec<(Role, &str)> = nodes.chain([(Role::Client, CLIENT_NAME)]).collect();
    let failed = |error: IdentityError| LaunchError::File {
        path: dir.display().to_string(),
        cause: error.to_string(),
    };
    if manifest.security.certs_dir.is_some() {
        for (role, name) in wanted {
            Identity::load(&dir, role, name).map_err(failed)?;
        }
        return Ok(dir);
    }
    let (authority, is_new) = authority(manifest, &dir)?;
    for (role, name) in wanted {
        let usable = || match Identity::load(&dir, role, name) {
            Ok(identity) => Ok(identity.subject().cluster == manifest.cluster.name),
            Err(IdentityError::Missing { .. }) => Ok(false),
            Err(error) => Err(failed(error)),
        };
        if is_new || !usable()? {
            let identity = authority.issue(role, name).map_err(failed)?;
            identity.save(&dir).map_err(failed)?;
        }
    }
    Ok(dir)
}

/// The cluster's authority, and whether it was made now.
fn authority(manifest: &Manifest, dir: &Path) -> Result<(ClusterCa, bool), LaunchError> {
    let cluster = &manifest.cluster.name;
    let failed = |cause: String| LaunchError::File { path: dir.display().to_string(), cause };
    match ClusterCa::load(dir) {
        Ok(authority) if authority.cluster() == cluster => Ok((authority, false)),
        Ok(authority) => Err(failed(format!(
            "the certificates there are of cluster \"{}\", the manifest names \"{cluster}\"; give \
             each cluster a state_dir of its own",
            authority.cluster()
        ))),
        Err(IdentityError::Missing { .. }) => {
            let authority =
                ClusterCa::generate(cluster).map_err(|error| failed(error.to_string()))?;
            authority.save(dir).map_err(|error| failed(error.to_string()))?;
            Ok((authority, true))
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

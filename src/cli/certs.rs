//! `certs`: the certificates of a cluster whose nodes are not all on this host.
//!
//! Owns which certificates a manifest needs. Invariant: what is there stays, unless forced; the
//! authority's key never leaves the folder.

use std::path::{Path, PathBuf};

use ditmesh::{Manifest, manifest};
use ditmesh_actors::client::CLIENT_NAME;
use ditmesh_transport::identity::{ClusterCa, Identity, Role};

use super::args::CertsArgs;
use super::failure::Failure;
use super::terminal::Terminal;

/// Makes what is missing and says what was made.
pub(crate) fn run(args: &CertsArgs, terminal: &Terminal) -> Result<(), Failure> {
    let manifest = manifest::parse::load(args.manifest.path())?;
    let dir = certs_dir(&manifest);
    std::fs::create_dir_all(&dir).map_err(|error| Failure::write(&dir, &error))?;
    let (authority, is_new) = authority(&manifest, &dir, args.force)?;
    let (mut made, mut kept) = (usize::from(is_new), usize::from(!is_new));
    let nodes = manifest.nodes.iter().map(|node| (Role::Node, node.name.as_str()));
    for (role, name) in nodes.chain([(Role::Client, CLIENT_NAME)]) {
        if !is_new && Identity::load(&dir, role, name).is_ok() {
            kept += 1;
            continue;
        }
        authority.issue(role, name)?.save(&dir)?;
        made += 1;
    }
    terminal.note(&format!(
        "{made} certificates made, {kept} kept; copy ca.pem, node-NAME.pem and node-NAME.key.pem \
         to node NAME; ca.key.pem stays here"
    ));
    terminal.result(&dir.display().to_string())
}

pub(crate) fn certs_dir(manifest: &Manifest) -> PathBuf {
    let own = || manifest.cluster.state_dir.join("certs");
    manifest.security.certs_dir.clone().unwrap_or_else(own)
}

/// The cluster's authority, and whether it was made now.
fn authority(manifest: &Manifest, dir: &Path, force: bool) -> Result<(ClusterCa, bool), Failure> {
    let cluster = &manifest.cluster.name;
    if force || !dir.join("ca.pem").exists() {
        let authority = ClusterCa::generate(cluster)?;
        authority.save(dir)?;
        return Ok((authority, true));
    }
    let authority = ClusterCa::load(dir)?;
    if authority.cluster() != cluster {
        let (found, dir) = (authority.cluster(), dir.display());
        return Err(Failure::failed(format!(
            "the authority in {dir} is of cluster {found}, and the manifest names {cluster}; use \
             another folder, or --force to replace it"
        )));
    }
    Ok((authority, false))
}

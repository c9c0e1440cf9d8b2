//! An agent that nobody holds by its stdin: started by `srun`, in a pod, or by hand, one per host.
//!
//! Owns how its orders come about: the manifest is read here, the place in it is [`RankFacts`]',
//! the certificate lies in the manifest's folder. Ends by SIGTERM or SIGINT, or with the cluster.

use std::net::IpAddr;

use ditmesh_transport::identity::{Identity, Role as Certificate};

use super::bootstrap::AgentBootstrap;
use super::credentials::Credentials;
use super::data_plane::resolve;
use super::keeper::Keeper;
use super::{AgentError, certs_dir, run, start_error};
use crate::launcher::lock::Lock;
use crate::launcher::record::RunFolder;
use crate::manifest::Manifest;
use crate::rank_facts::RankFacts;

/// Lives as the agent of one node of `manifest` until it is told to end. Blocks this thread.
///
/// # Errors
/// When it could not start, or the coordinator will not have it.
pub fn run_standalone(mut manifest: Manifest, facts: &RankFacts) -> Result<(), AgentError> {
    facts.place(&mut manifest);
    let Some(node) = facts.node(&manifest) else {
        return Err(start_error("?", &"its place is past the manifest's last node"));
    };
    let name = node.name.clone();
    let failed = |cause: &dyn std::fmt::Display| start_error(&name, cause);
    let address = resolve(&node.address).map_err(|cause| failed(&cause))?;
    check_reachable(facts, address).map_err(|cause| failed(&cause))?;
    let identity = Identity::load(&certs_dir(&manifest), Certificate::Node, &name)
        .map_err(|error| failed(&error))?;
    let folder = RunFolder::of(&manifest);
    // With it, `up` on the same manifest sees that the cluster runs.
    let lock = match facts.coordinator {
        Some(_) => None,
        None => Some(lock(&folder).map_err(|cause| failed(&cause))?),
    };
    tracing::info!(node = name, %address, coordinator = ?facts.coordinator, by = facts.source, "agent starts");
    let orders = AgentBootstrap {
        control_port: node.control_port,
        coordinator: facts.coordinator.clone(),
        credentials: Credentials::of(&identity),
        run_dir: Some(folder.path().to_path_buf()),
        lease_ms: None,
        node: name.clone(),
        manifest,
    };
    let outcome = run(&orders, Keeper::System);
    drop(lock);
    outcome
}

fn lock(folder: &RunFolder) -> Result<Lock, String> {
    let path = folder.path().display();
    match Lock::try_take(folder) {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => Err(format!(
            "this cluster runs already: somebody holds {path}/lock; give each running cluster a \
             state_dir of its own"
        )),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

/// A host whose own name means loopback (Debian writes that into /etc/hosts) would listen where
/// nobody else can reach it.
fn check_reachable(facts: &RankFacts, own: IpAddr) -> Result<(), String> {
    if !own.is_loopback() {
        return Ok(());
    }
    let named = facts.addresses.iter().flatten().map(String::as_str);
    let dialled = facts.coordinator.iter().filter_map(|address| Some(address.rsplit_once(':')?.0));
    let mut others = named.chain(dialled).filter_map(|host| resolve(host).ok());
    match others.find(|address| !address.is_loopback()) {
        Some(other) => Err(format!(
            "its address is {own} on this host, which other nodes ({other}) cannot reach; give \
             --address with the one they can"
        )),
        None => Ok(()),
    }
}

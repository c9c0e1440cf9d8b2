//! An agent on a machine that joins a running cluster: asks to be let in with a token, then lives
//! as the agent of the node that it has become.
//!
//! Owns what of it stays on this machine: certificate and key, and the orders with which it starts
//! again without a token. The private key is made here and never leaves.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ditmesh_transport::identity::{Identity, IdentityError, Role};
use ditmesh_transport::join::{self, JOIN_DEADLINE, JoinKey, JoinToken, TokenError};
use serde::{Deserialize, Serialize};

use super::bootstrap::AgentBootstrap;
use super::credentials::Credentials;
use super::keeper::Keeper;
use super::{AgentError, run};
use crate::launcher::lock::Lock;
use crate::launcher::record::RunFolder;
use crate::manifest::{CoordinatorSection, Manifest, NodeSection};
use crate::protocol::SCHEMA;
use crate::protocol::join::{Admission, JoinAnswer, JoinQuestion};
use crate::session::handshake::BUILD;

/// Longest time to be let in: the coordinator may be busy, or starting.
const ADMISSION_DEADLINE: Duration = Duration::from_secs(3 * JOIN_DEADLINE.as_secs());

/// A machine that joins.
#[derive(Clone, Debug)]
pub struct JoinOrders {
    /// `HOST:PORT` of the coordinator.
    pub coordinator: String,
    /// The token's text; without one the machine must have joined before.
    pub token: Option<String>,
    /// Name, address and devices; an empty address is found out.
    pub node: NodeSection,
    /// Folder for certificate and runtime files.
    pub state_dir: PathBuf,
}

/// Why a machine did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token's text is none.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The coordinator cannot be reached, or somebody else is there.
    #[error("cannot ask the coordinator at {address}: {cause}")]
    Unreachable {
        /// Its address.
        address: String,
        /// What went wrong.
        cause: String,
    },
    /// It does not let this machine in.
    #[error("the coordinator does not let this machine in: {0}")]
    Refused(String),
    /// Files of this machine.
    #[error("{path}: {cause}")]
    File {
        /// Which.
        path: String,
        /// What went wrong.
        cause: String,
    },
    /// The certificate cannot be made or used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Threads or the system failed it.
    #[error("{0}")]
    System(String),
    /// It joined, and its agent ended badly.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// What stays on the machine.
#[derive(Debug, Serialize, Deserialize)]
struct Joined {
    coordinator: String,
    node: String,
    manifest: Manifest,
}

/// Joins and lives as the agent of this node until a signal makes it leave or the cluster ends.
/// `joined` is told the node's name once it is let in. Blocks this thread.
///
/// # Errors
/// [`JoinError`].
pub fn run_joined(orders: &JoinOrders, joined: &mut dyn FnMut(&str)) -> Result<(), JoinError> {
    let path = orders.state_dir.join("join.json");
    let certs = orders.state_dir.join("certs");
    let (joining, identity) = match &orders.token {
        Some(token) => {
            let (joining, identity) = ask(orders, &JoinToken::parse(token)?)?;
            identity.save(&certs)?;
            write(&path, &joining)?;
            (joining, identity)
        }
        None => {
            let kept: Joined = read(&path)?;
            let identity = Identity::load(&certs, Role::Node, &kept.node)?;
            let coordinator = orders.coordinator.clone();
            (Joined { coordinator, ..kept }, identity)
        }
    };
    joined(&joining.node);
    let Joined { coordinator, node, manifest } = joining;
    let folder = RunFolder::of(&manifest);
    let busy = |cause: String| JoinError::File { path: folder.path().display().to_string(), cause };
    let lock = Lock::try_take(&folder).map_err(|error| busy(error.to_string()))?;
    let Some(_lock) = lock else {
        return Err(busy("an agent of this machine runs already".into()));
    };
    let section = manifest.nodes.iter().find(|section| section.name == node);
    let orders = AgentBootstrap {
        control_port: section.map_or(0, |section| section.control_port),
        coordinator: Some(coordinator),
        credentials: Credentials::of(&identity),
        run_dir: Some(folder.path().to_path_buf()),
        lease_ms: None,
        node,
        manifest,
    };
    let outcome = run(&orders, Keeper::System);
    if let Err(error) = folder.remove() {
        tracing::warn!(%error, "the run folder stays");
    }
    Ok(outcome?)
}

/// Asks to be let in; what the machine is then.
fn ask(orders: &JoinOrders, token: &JoinToken) -> Result<(Joined, Identity), JoinError> {
    let unreachable =
        |cause: String| JoinError::Unreachable { address: orders.coordinator.clone(), cause };
    let address = look_up(&orders.coordinator).map_err(unreachable)?;
    let mut node = orders.node.clone();
    if node.address.is_empty() {
        node.address = own_address(address).map_err(|e| unreachable(e.to_string()))?.to_string();
    }
    let key = JoinKey::generate()?;
    let question = JoinQuestion {
        schema: SCHEMA,
        build: BUILD.into(),
        token: token.id(),
        secret: token.secret(),
        node: node.clone(),
        key: key.public(),
    };
    let question = serde_json::to_vec(&question).map_err(|e| JoinError::System(e.to_string()))?;
    let answer = exchange(address, token, &question).map_err(unreachable)?;
    let answer = serde_json::from_slice(&answer).map_err(|e| unreachable(e.to_string()))?;
    let admission = match answer {
        JoinAnswer::Admitted(admission) => *admission,
        JoinAnswer::Refused(cause) => return Err(JoinError::Refused(cause)),
    };
    let Admission { certificate, authority, manifest } = admission;
    let identity = key.identity(certificate, authority)?;
    let name = identity.subject().name.clone();
    if name != node.name {
        let asked = node.name;
        return Err(JoinError::Refused(format!("its certificate is for {name}, not {asked}")));
    }
    let manifest = here(manifest, &name, token, &orders.state_dir);
    Ok((Joined { coordinator: orders.coordinator.clone(), node: name, manifest }, identity))
}

/// The cluster's manifest as this machine uses it: its own node, and its own folders.
fn here(mut manifest: Manifest, name: &str, token: &JoinToken, state_dir: &Path) -> Manifest {
    manifest.nodes.retain(|node| node.name == name);
    manifest.coordinator = Some(CoordinatorSection { node: token.coordinator().into() });
    manifest.cluster.state_dir = state_dir.to_path_buf();
    manifest.security.certs_dir = None;
    manifest
}

fn exchange(address: SocketAddr, token: &JoinToken, question: &[u8]) -> Result<Vec<u8>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let answer =
        runtime.block_on(join::ask(address, token, question, Instant::now() + ADMISSION_DEADLINE));
    runtime.shutdown_background();
    answer.map_err(|error| error.to_string())
}

fn look_up(name: &str) -> Result<SocketAddr, String> {
    let mut found = std::net::ToSocketAddrs::to_socket_addrs(name).map_err(|e| e.to_string())?;
    found.next().ok_or_else(|| "its name has no address".into())
}

/// The address by which this machine reaches the coordinator, and so is reached by the others.
fn own_address(coordinator: SocketAddr) -> std::io::Result<IpAddr> {
    let any = if coordinator.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    // Sends nothing: the system looks up the way.
    socket.connect(coordinator)?;
    Ok(socket.local_addr()?.ip())
}

fn write(path: &Path, joined: &Joined) -> Result<(), JoinError> {
    let failed = |cause: String| JoinError::File { path: path.display().to_string(), cause };
    let bytes = serde_json::to_vec(joined).map_err(|error| failed(error.to_string()))?;
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes)
        .and_then(|()| fs::rename(&partial, path))
        .map_err(|error| failed(error.to_string()))
}

fn read(path: &Path) -> Result<Joined, JoinError> {
    let failed = |cause: String| JoinError::File { path: path.display().to_string(), cause };
    let bytes = fs::read(path).map_err(|error| {
        failed(format!("{error}: this machine has not joined yet, --token-file is needed"))
    })?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))
}

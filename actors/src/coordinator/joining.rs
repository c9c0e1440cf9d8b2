//! Machines that join: tokens given out and redeemed, certificates made, nodes added to the roster.
//!
//! Owns the rules of who may join under which name, and what of it outlives the coordinator's
//! process (one file per node that joined). Does not own the exchange (`transport::join`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ditmesh_transport::control::{ControlEndpoint, ControlHoldings};
use ditmesh_transport::identity::{ClusterCa, Role};
use ditmesh_transport::join::{JoinToken, Joining};
use ractor::ActorRef;

use super::tokens::{TOKEN_TTL_MAX, Tokens};
use super::{CoordinatorMsg, State};
use crate::agent::certs_dir;
use crate::agent::node_agent::unix_ms;
use crate::manifest::{Manifest, NodeSection, validate};
use crate::membership::MembershipEvent;
use crate::protocol::SCHEMA;
use crate::protocol::join::{Admission, JoinAnswer, JoinQuestion};
use crate::session::handshake::BUILD;

/// Nodes that may have joined at a time.
const JOINED_MAX: usize = 4096;

/// Where machines come in, and what is kept of them.
pub(crate) struct Door {
    pub(crate) endpoint: Arc<ControlEndpoint>,
    /// The run folder of the cluster.
    pub(crate) folder: PathBuf,
}

/// The coordinator's part of joining.
pub(super) struct Joins {
    door: Option<Door>,
    /// Until when the door is open, in seconds since 1970.
    open_until_s: Option<u64>,
    /// Nodes that are not in the manifest of the start.
    pub(super) joined: Vec<NodeSection>,
}

impl Joins {
    /// Reads which nodes had joined before this process, and puts them into the manifest.
    pub(super) fn new(door: Option<Door>, manifest: &mut Manifest) -> Self {
        let mut joins = Self { door, open_until_s: None, joined: Vec::new() };
        joins.joined = joins.folder().map(|folder| read_joined(&folder)).unwrap_or_default();
        for node in &joins.joined {
            put(manifest, node.clone());
        }
        joins.look_at_door();
        joins
    }

    /// Callers that the endpoint has turned away.
    pub(super) fn callers_refused(&self) -> u64 {
        self.door.as_ref().map_or(0, |door| door.endpoint.callers_refused())
    }

    /// What the control endpoint holds; nothing within one process.
    pub(super) fn holdings(&self) -> ControlHoldings {
        self.door.as_ref().map(|door| door.endpoint.holdings()).unwrap_or_default()
    }

    fn folder(&self) -> Option<PathBuf> {
        self.door.as_ref().map(|door| door.folder.join("joined"))
    }

    fn tokens(&self) -> Option<Tokens> {
        self.door.as_ref().map(|door| Tokens::new(door.folder.join("tokens")))
    }

    /// Opens the door while a token is out, and shuts it after the last.
    fn look_at_door(&mut self) {
        let expiry = self.tokens().and_then(|tokens| tokens.last_expiry(now_s()));
        if let Some(door) = &self.door
            && expiry.is_some() != self.open_until_s.is_some()
            && let Err(error) = door.endpoint.open_door(expiry.is_some())
        {
            tracing::warn!(%error, "the door for machines that join does not move");
            return;
        }
        self.open_until_s = expiry;
    }

    /// Shuts the door when the last token has expired.
    pub(super) fn tick(&mut self) {
        if self.open_until_s.is_some_and(|until| until <= now_s()) {
            self.look_at_door();
        }
    }

    fn keep(&self, node: &NodeSection) -> Result<(), String> {
        let Some(folder) = self.folder() else { return Ok(()) };
        let path = folder.join(format!("{}.json", node.name));
        let partial = path.with_extension("partial");
        let written = fs::create_dir_all(&folder)
            .and_then(|()| fs::write(&partial, serde_json::to_vec(node)?))
            .and_then(|()| fs::File::open(&partial)?.sync_all())
            .and_then(|()| fs::rename(&partial, &path))
            .and_then(|()| fs::File::open(&folder)?.sync_all());
        written.map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Forgets a node that joined and has left; whether it was one.
    pub(super) fn forget(&mut self, name: &str) -> bool {
        let before = self.joined.len();
        self.joined.retain(|joined| joined.name != name);
        if let Some(folder) = self.folder() {
            // It may never have been written.
            let _ = fs::remove_file(folder.join(format!("{name}.json")));
        }
        self.joined.len() < before
    }
}

impl State {
    /// Makes a token with which one machine can join.
    pub(super) fn make_token(
        &mut self,
        node: Option<String>,
        ttl: Duration,
    ) -> Result<String, String> {
        let tokens = self.joins.tokens().ok_or("this cluster is inside one process")?;
        if ttl.is_zero() || ttl > TOKEN_TTL_MAX {
            let most = TOKEN_TTL_MAX.as_secs();
            return Err(format!("a token is good for 1 to {most} s, not for {}", ttl.as_secs()));
        }
        let authority = self.authority()?;
        let coordinator = self.manifest.coordinator_node();
        let token = JoinToken::generate(authority.certificate_pem(), coordinator)
            .map_err(|error| error.to_string())?;
        let now = now_s();
        tokens.keep(&token, node, now + ttl.as_secs(), now)?;
        tracing::info!(token = token.id(), seconds = ttl.as_secs(), "join token made");
        self.joins.look_at_door();
        Ok(token.text())
    }

    /// Answers a machine that asks to join.
    pub(super) async fn joining(&mut self, myself: &ActorRef<CoordinatorMsg>, joining: Joining) {
        let Joining { from, question, answer } = joining;
        let admitted = match serde_json::from_slice::<JoinQuestion>(&question) {
            Ok(question) => self.admit(&question),
            Err(error) => Err(format!("the question cannot be read: {error}; run the same build")),
        };
        let reply = match admitted {
            Ok((admission, node)) => {
                let (name, devices) = (node.name.clone(), node.devices.len());
                tracing::info!(node = name, %from, devices, "node admitted");
                self.desk.memory.note_forced(&name, false);
                self.take_in(node);
                let admitted = MembershipEvent::Admitted { node: name, devices };
                self.member(myself, admitted).await;
                JoinAnswer::Admitted(Box::new(admission))
            }
            Err(cause) => {
                self.joins_refused += 1;
                tracing::warn!(%from, cause, "a machine may not join");
                JoinAnswer::Refused(cause)
            }
        };
        self.joins.look_at_door();
        // A machine that has gone asks again, with another token.
        let _ = answer.send(serde_json::to_vec(&reply).unwrap_or_default());
    }

    /// Whether a machine may join, and what it then needs.
    fn admit(&self, question: &JoinQuestion) -> Result<(Admission, NodeSection), String> {
        let JoinQuestion { schema, build, token, secret, node, key } = question;
        let tokens = self.joins.tokens().ok_or("nobody can join this cluster")?;
        if *schema != SCHEMA {
            return Err(format!(
                "version mismatch: here build {BUILD}, schema {SCHEMA:x}, there build {build}, \
                 schema {schema:x}; run the same build on every node"
            ));
        }
        let node = self.section_for(node)?;
        let authority = self.authority()?;
        let certificate =
            authority.sign(Role::Node, &node.name, key).map_err(|error| error.to_string())?;
        let mut manifest = Manifest::clone(&self.manifest);
        put(&mut manifest, node.clone());
        validate::validate(&manifest).map_err(|error| error.to_string())?;
        // Last: a question that is refused for another reason does not cost its token.
        tokens.redeem(token, secret, &node.name, now_s()).map_err(|e| e.to_string())?;
        self.joins.keep(&node)?;
        let authority = authority.certificate_pem().to_owned();
        Ok((Admission { certificate, authority, manifest }, node))
    }

    /// The node as the cluster will know it; its name is checked against manifest and members.
    fn section_for(&self, asked: &NodeSection) -> Result<NodeSection, String> {
        let name = &asked.name;
        if name == self.manifest.coordinator_node() {
            return Err(format!("node {name} hosts the coordinator and does not join"));
        }
        if self.desk.membership.is_there(name) {
            return Err(format!("a node {name} is in the cluster; join under another name"));
        }
        if self.joins.joined.len() >= JOINED_MAX {
            return Err(format!("{JOINED_MAX} nodes have joined already"));
        }
        let from_start = |known: &&NodeSection| known.name == *name && !self.has_joined(name);
        match self.manifest.nodes.iter().find(from_start) {
            Some(known) if known.devices.len() != asked.devices.len() => Err(format!(
                "node {name} has {} devices in the manifest and brings {}; they must be as many",
                known.devices.len(),
                asked.devices.len()
            )),
            Some(known) => Ok(NodeSection { address: asked.address.clone(), ..known.clone() }),
            None => Ok(asked.clone()),
        }
    }

    pub(super) fn has_joined(&self, name: &str) -> bool {
        self.joins.joined.iter().any(|joined| joined.name == name)
    }

    fn take_in(&mut self, node: NodeSection) {
        put(Arc::make_mut(&mut self.manifest), node.clone());
        // It says anew what its devices are.
        self.speeds.remove(&node.name);
        if let Some(Ok(model)) = &self.model {
            model.take_in(&node);
        }
        self.joins.joined.retain(|known| known.name != node.name);
        self.joins.joined.push(node);
    }

    fn authority(&self) -> Result<ClusterCa, String> {
        ClusterCa::load(&certs_dir(&self.manifest)).map_err(|error| {
            format!(
                "the coordinator makes no certificates: {error}; tokens need the authority's key on \
                 the coordinator's node"
            )
        })
    }
}

/// Puts a node into a manifest, in place of the one of its name.
fn put(manifest: &mut Manifest, node: NodeSection) {
    match manifest.nodes.iter_mut().find(|known| known.name == node.name) {
        Some(known) => *known = node,
        None => manifest.nodes.push(node),
    }
}

fn read_joined(folder: &Path) -> Vec<NodeSection> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.take(2 * JOINED_MAX).filter_map(|entry| Some(entry.ok()?.path()));
    let json = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let mut joined: Vec<NodeSection> =
        json.filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok()).collect();
    joined.sort_by(|a, b| a.name.cmp(&b.name));
    joined
}

fn now_s() -> u64 {
    unix_ms() / 1000
}

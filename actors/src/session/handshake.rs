//! The first two messages of a session: who dials, and whether the coordinator agrees.
//!
//! Owns the rules of version, cluster and certificate ([`check`], pure) and both sides' exchange.
//! Whether an incarnation is stale is membership's to say.

use std::time::Instant;

use ditmesh_transport::control::ControlChannel;
use ditmesh_transport::identity::{PeerIdentity, Role};

use crate::protocol::{
    DeviceId, FromCoordinator, Hello, PROTOCOL_MAX, PROTOCOL_MIN, Party, SCHEMA, ToCoordinator,
};

/// Why two processes do not talk to each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// They come from builds that do not understand each other.
    #[error(
        "version mismatch: here protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}, schema {SCHEMA:x} (build \
         {ours}), there protocol {min} to {max}, schema {schema:x} (build {theirs}); run the same \
         build on every node"
    )]
    VersionMismatch {
        /// Build here.
        ours: &'static str,
        /// Build there.
        theirs: String,
        /// Oldest protocol there.
        min: u32,
        /// Newest protocol there.
        max: u32,
        /// Schema there.
        schema: u64,
    },
    /// They belong to different clusters.
    #[error("this is cluster \"{ours}\", not \"{theirs}\"")]
    WrongCluster {
        /// Cluster here.
        ours: String,
        /// Cluster there.
        theirs: String,
    },
    /// The certificate does not allow what is claimed.
    #[error("the certificate of {certificate} does not speak for {claimed}")]
    WrongCertificate {
        /// Whose certificate it is.
        certificate: String,
        /// Who the peer says it is.
        claimed: String,
    },
    /// The coordinator said no.
    #[error("{0}")]
    Refused(String),
    /// The channel ended, was silent, or carried something else.
    #[error("{0}")]
    Broken(String),
}

/// What the coordinator welcomes a member with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u32,
    /// Milliseconds of silence after which the coordinator is taken for dead.
    pub dead_ms: u32,
}

/// This crate's version.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");

/// The hello of `party`.
pub fn hello(cluster: &str, party: Party, incarnation: u64) -> Hello {
    Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        schema: SCHEMA,
        build: BUILD.into(),
        cluster: cluster.into(),
        party,
        incarnation,
        process: std::process::id(),
        fabric_address: String::new(),
        epoch: 0,
    }
}

/// Whether a peer with this certificate may say this.
///
/// # Errors
/// [`HandshakeError`], in words for the peer's log.
pub fn check(
    hello: &Hello,
    certificate: &PeerIdentity,
    cluster: &str,
) -> Result<(), HandshakeError> {
    let overlap = hello.protocol_min <= PROTOCOL_MAX && hello.protocol_max >= PROTOCOL_MIN;
    if !overlap || hello.schema != SCHEMA {
        return Err(HandshakeError::VersionMismatch {
            ours: BUILD,
            theirs: hello.build.clone(),
            min: hello.protocol_min,
            max: hello.protocol_max,
            schema: hello.schema,
        });
    }
    if hello.cluster != cluster {
        let (ours, theirs) = (cluster.into(), hello.cluster.clone());
        return Err(HandshakeError::WrongCluster { ours, theirs });
    }
    let (role, name, claimed) = match &hello.party {
        Party::Agent { node } => (Role::Node, Some(node), format!("the agent of node {node}")),
        Party::Worker { device: device @ DeviceId { node, .. } } => {
            (Role::Node, Some(node), format!("the worker of device {device}"))
        }
        Party::Client => (Role::Client, None, "a client".into()),
    };
    if certificate.role != role || name.is_some_and(|name| *name != certificate.name) {
        let certificate = certificate.to_string();
        return Err(HandshakeError::WrongCertificate { certificate, claimed });
    }
    Ok(())
}

/// Introduces this process on a channel it dialled.
///
/// # Errors
/// [`HandshakeError::Refused`] with the coordinator's words; [`HandshakeError::Broken`].
pub(crate) async fn introduce(
    channel: &mut ControlChannel,
    hello: Hello,
    deadline: Instant,
) -> Result<Welcome, HandshakeError> {
    let bytes = ToCoordinator::Hello(Box::new(hello)).to_bytes().map_err(broken)?;
    channel.send(bytes, deadline).await.map_err(broken)?;
    match FromCoordinator::from_bytes(&receive(channel, deadline).await?).map_err(broken)? {
        FromCoordinator::Welcome { heartbeat_ms, dead_ms, .. } => {
            Ok(Welcome { heartbeat_ms, dead_ms })
        }
        FromCoordinator::Refused { cause } => Err(HandshakeError::Refused(cause)),
        _ => Err(HandshakeError::Broken("the coordinator did not begin with a welcome".into())),
    }
}

/// Hears who dialled a channel and checks it; a refusal is told to the peer.
///
/// # Errors
/// [`HandshakeError`].
pub(crate) async fn hear_hello(
    channel: &mut ControlChannel,
    cluster: &str,
    deadline: Instant,
) -> Result<Hello, HandshakeError> {
    match ToCoordinator::from_bytes(&receive(channel, deadline).await?).map_err(broken)? {
        ToCoordinator::Hello(hello) => match check(&hello, channel.peer(), cluster) {
            Ok(()) => Ok(*hello),
            Err(error) => {
                refuse(channel, &error.to_string(), deadline).await;
                Err(error)
            }
        },
        _ => Err(HandshakeError::Broken("the peer did not begin with a hello".into())),
    }
}

/// Tells a peer that it is not welcome, and closes.
pub(crate) async fn refuse(channel: &ControlChannel, cause: &str, deadline: Instant) {
    let refusal = FromCoordinator::Refused { cause: cause.into() };
    if let Ok(bytes) = refusal.to_bytes() {
        // A peer that has gone needs no refusal.
        let _ = channel.send(bytes, deadline).await;
    }
    channel.close(cause);
}

async fn receive(
    channel: &mut ControlChannel,
    deadline: Instant,
) -> Result<Vec<u8>, HandshakeError> {
    match tokio::time::timeout_at(deadline.into(), channel.recv()).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => {
            let cause = channel.closed().unwrap_or_else(|| "it closed the channel".into());
            Err(HandshakeError::Broken(cause))
        }
        Ok(Err(error)) => Err(broken(error)),
        Err(_) => Err(HandshakeError::Broken("no answer before the deadline".into())),
    }
}

fn broken(error: impl std::fmt::Display) -> HandshakeError {
    HandshakeError::Broken(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(role: Role, name: &str) -> PeerIdentity {
        PeerIdentity { role, name: name.into(), cluster: "demo".into() }
    }

    fn agent(node: &str) -> Party {
        Party::Agent { node: node.into() }
    }

    fn worker(node: &str) -> Party {
        Party::Worker { device: DeviceId { node: node.into(), index: 0 } }
    }

    #[test]
    fn a_certificate_speaks_for_its_own_name_and_role_only() {
        let table = [
            (agent("a"), Role::Node, "a", true),
            (worker("a"), Role::Node, "a", true),
            (Party::Client, Role::Client, "anybody", true),
            (agent("a"), Role::Node, "b", false),
            (worker("a"), Role::Node, "b", false),
            (agent("a"), Role::Client, "a", false),
            (Party::Client, Role::Node, "a", false),
        ];
        for (party, role, name, allowed) in table {
            let hello = hello("demo", party, 1);
            let checked = check(&hello, &certificate(role, name), "demo");
            assert_eq!(checked.is_ok(), allowed, "{:?} with {role} {name}", hello.party);
        }
    }

    #[test]
    fn another_version_schema_or_cluster_is_refused_with_both_named() {
        let good = hello("demo", agent("a"), 1);
        let newer = Hello { protocol_min: 8, protocol_max: 9, ..good.clone() };
        let other = Hello { schema: SCHEMA ^ 1, build: "9.9.9".into(), ..good.clone() };
        for wrong in [newer, other] {
            let error = check(&wrong, &certificate(Role::Node, "a"), "demo")
                .expect_err("versions differ")
                .to_string();
            assert!(error.contains(BUILD) && error.contains(&wrong.build), "{error}");
        }
        let error = check(&good, &certificate(Role::Node, "a"), "other").expect_err("cluster");
        assert!(matches!(error, HandshakeError::WrongCluster { .. }));
    }
}

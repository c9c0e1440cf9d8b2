//! How the processes of a node listen: ports, addresses and timeouts of control and data plane.
//!
//! Owns the one place where manifest settings become transport settings.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use ditmesh_transport::control::ControlConfig;
use ditmesh_transport::error::TransportError;
use ditmesh_transport::fabric::Fabric;
use ditmesh_transport::identity::Identity;
use ditmesh_transport::ids::Incarnation;
use ditmesh_transport::in_process::InProcessHub;
use ditmesh_transport::quic::{Congestion, QuicConfig, QuicFabric};
use ditmesh_transport::region::DeviceMemory;
use ditmesh_transport::ucx::UcxFabric;
use serde::{Deserialize, Serialize};

use crate::manifest::{CongestionKind, Manifest, NodeSection, TransportSection};

/// Settings of a node's data plane over QUIC.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DataPlaneConfig {
    pub(crate) address: IpAddr,
    /// First and last port; the system chooses when absent.
    ports: Option<(u16, u16)>,
    mtu_bytes: u16,
    bulk_connections: u8,
    congestion: CongestionKind,
    /// Where some link is to be carried by UCX.
    ucx: Option<TransportSection>,
    heartbeat_ms: u32,
    dead_ms: u32,
    form_deadline_ms: u32,
}

impl DataPlaneConfig {
    /// Those of `node`.
    ///
    /// # Errors
    /// In words, when its address cannot be resolved.
    pub(crate) fn of(manifest: &Manifest, node: &NodeSection) -> Result<Self, String> {
        Ok(Self {
            address: resolve(&node.address)?,
            ports: node.bulk_ports,
            mtu_bytes: manifest.transport.mtu_bytes,
            bulk_connections: manifest.transport.bulk_connections,
            congestion: manifest.transport.congestion,
            ucx: manifest.transport.ucx().map(|_| manifest.transport.clone()),
            heartbeat_ms: manifest.health.heartbeat_ms,
            dead_ms: manifest.health.dead_ms,
            form_deadline_ms: manifest.health.form_deadline_ms,
        })
    }
}

/// The data plane of a node.
#[derive(Clone)]
pub(crate) enum DataPlane {
    /// Memory of this process.
    InProcess(InProcessHub),
    /// QUIC with the node's certificate.
    Quic(DataPlaneConfig, Identity),
}

/// Why a fabric cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataPlaneError {
    #[error("bulk_ports {first} to {last} are too few: place {place} needs ports up to {needed}")]
    Ports { first: u16, last: u16, place: usize, needed: usize },
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl DataPlane {
    /// Over QUIC.
    pub(crate) fn quic(config: DataPlaneConfig, identity: Identity) -> Self {
        Self::Quic(config, identity)
    }

    /// A fabric of its own for the process at `place`: the device's index, or one past the last
    /// for the coordinator. With the memory of the device, where frames may lie in it.
    ///
    /// # Errors
    /// When its ports are taken or too few.
    pub(crate) fn fabric(
        &self,
        place: usize,
        incarnation: u64,
        device: Option<Arc<dyn DeviceMemory>>,
    ) -> Result<Arc<dyn Fabric>, DataPlaneError> {
        let (config, identity) = match self {
            Self::InProcess(hub) => return Ok(hub.fabric_on(device)),
            Self::Quic(config, identity) => (config, identity),
        };
        let [control, bulk] = config.ports_of(place)?;
        let at = |port| SocketAddr::new(config.address, port);
        let (idle_timeout, keep_alive) = timeouts(config.heartbeat_ms, config.dead_ms);
        let quic = QuicConfig {
            incarnation: Incarnation(incarnation),
            mtu_bytes: config.mtu_bytes,
            bulk_lanes: config.bulk_connections,
            congestion: congestion(config.congestion),
            idle_timeout,
            keep_alive,
            // Whoever has loaded its weights waits for those who have not.
            hello_wait: Duration::from_millis(config.form_deadline_ms.into()),
            device,
            ..QuicConfig::new(identity.clone(), at(control), at(bulk))
        };
        Ok(match config.ucx.as_ref().and_then(TransportSection::ucx) {
            Some(ucx) => UcxFabric::bind(&quic, ucx)?,
            None => QuicFabric::bind(&quic)?,
        })
    }
}

impl DataPlaneConfig {
    /// The control port and the first bulk port of the process at `place`; the other bulk ports
    /// follow.
    ///
    /// # Errors
    /// When the range is too small.
    pub(crate) fn ports_of(&self, place: usize) -> Result<[u16; 2], DataPlaneError> {
        let Some((first, last)) = self.ports else { return Ok([0, 0]) };
        let lanes = usize::from(self.bulk_connections);
        let control = usize::from(first) + place * (1 + lanes);
        match (u16::try_from(control), u16::try_from(control + lanes)) {
            (Ok(control), Ok(highest)) if highest <= last => Ok([control, control + 1]),
            _ => Err(DataPlaneError::Ports { first, last, place, needed: control + lanes }),
        }
    }
}

fn congestion(kind: CongestionKind) -> Congestion {
    match kind {
        CongestionKind::Cubic => Congestion::Cubic,
        CongestionKind::NewReno => Congestion::NewReno,
        CongestionKind::Bbr => Congestion::Bbr,
        CongestionKind::Auto => Congestion::Auto,
    }
}

/// Settings of a control endpoint of this cluster.
pub(crate) fn control_config(
    identity: Identity,
    bind: SocketAddr,
    heartbeat_ms: u32,
    dead_ms: u32,
) -> ControlConfig {
    let (idle_timeout, keep_alive) = timeouts(heartbeat_ms, dead_ms);
    ControlConfig { idle_timeout, keep_alive, ..ControlConfig::new(identity, bind) }
}

/// The transport is no less patient than the heartbeats, which know more, and a little more so in
/// most cases: the first keep-alive that is not answered starts its idle timeout again.
fn timeouts(heartbeat_ms: u32, dead_ms: u32) -> (Duration, Duration) {
    let idle = Duration::from_millis(dead_ms.into());
    let keep_alive = Duration::from_millis(u64::from(heartbeat_ms) * 3 / 2).min(idle / 3);
    (idle, keep_alive)
}

/// The address of a host.
///
/// # Errors
/// In words, when there is none.
pub(crate) fn resolve(host: &str) -> Result<IpAddr, String> {
    let mut found =
        (host, 0).to_socket_addrs().map_err(|error| format!("address {host}: {error}"))?;
    found.next().map(|address| address.ip()).ok_or_else(|| format!("address {host} is unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(ports: Option<(u16, u16)>) -> DataPlaneConfig {
        let address = IpAddr::from([127, 0, 0, 1]);
        DataPlaneConfig {
            address,
            ports,
            mtu_bytes: 1452,
            bulk_connections: 2,
            congestion: CongestionKind::Cubic,
            ucx: None,
            heartbeat_ms: 200,
            dead_ms: 1500,
            form_deadline_ms: 1000,
        }
    }

    #[test]
    fn each_place_has_a_port_for_control_and_one_per_bulk_connection() {
        assert_eq!(config(None).ports_of(3).expect("any port"), [0, 0]);
        let ranged = config(Some((7000, 7005)));
        assert_eq!(ranged.ports_of(1).expect("in range"), [7003, 7004]);
        let error = ranged.ports_of(2).expect_err("out of range").to_string();
        assert!(error.contains("7005") && error.contains("7008"), "{error}");
    }

    #[test]
    fn the_transport_waits_no_less_than_the_heartbeats() {
        let (idle, keep_alive) = timeouts(200, 1500);
        assert_eq!(idle, Duration::from_millis(1500));
        assert_eq!(keep_alive, Duration::from_millis(300));
    }
}

//! What is measured: a way from one process to another.
//!
//! Owns the names and how the fabrics among them are set up.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ditmesh_transport::{
    Congestion, DeviceMemory, Fabric, Identity, LaneChoice, QuicConfig, QuicFabric, UcxConfig,
    UcxFabric,
};
use serde::{Deserialize, Serialize};

use super::end::Settings;

/// UDP payload of a packet on a network of 1500-byte frames.
const PLAIN_MTU_BYTES: u16 = 1472;

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Subject {
    /// The product's QUIC, as a cluster has it.
    Quic,
    /// With one bulk connection.
    QuicOne,
    /// With packets of 1500-byte networks.
    Quic1500,
    /// With one bulk connection and such packets.
    QuicOne1500,
    /// With Cubic, whatever the settings say.
    QuicCubic,
    /// With BBR.
    QuicBbr,
    /// With Cubic, and BBR where packets are lost at random.
    QuicAuto,
    /// quinn as it comes, one connection and one stream.
    QuinnDefault,
    /// The same in a runtime that the measuring thread drives itself: the floor for QUIC.
    QuinnOneThread,
    /// The channel of heartbeats.
    Control,
    /// The product's UCX within a host.
    UcxShm,
    /// The product's UCX between hosts.
    UcxTcp,
    /// The product's UCX within a host, from the memory of one GPU to that of another (of one GPU
    /// where there is but one).
    UcxGpu,
    /// Datagrams of bare UDP, to and fro only.
    Udp,
    /// Plain TCP.
    Tcp,
    /// TLS 1.3 over TCP, AES-128-GCM.
    Tls,
}

impl Subject {
    /// As in tables and JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::QuicOne => "quic-one",
            Self::Quic1500 => "quic-1500",
            Self::QuicOne1500 => "quic-one-1500",
            Self::QuicCubic => "quic-cubic",
            Self::QuicBbr => "quic-bbr",
            Self::QuicAuto => "quic-auto",
            Self::QuinnDefault => "quinn-default",
            Self::QuinnOneThread => "quinn-1-thread",
            Self::Control => "control",
            Self::UcxShm => "ucx-shm",
            Self::UcxTcp => "ucx-tcp",
            Self::UcxGpu => "ucx-gpu",
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }

    /// Whether its payloads are in the memory of GPUs.
    pub(super) fn is_on_gpu(self) -> bool {
        self == Self::UcxGpu
    }

    /// Whether it is measured with large messages too.
    pub(super) fn carries_bulk(self) -> bool {
        !matches!(self, Self::Udp | Self::Control | Self::QuinnOneThread)
    }

    /// The fabric of one end, where the subject is one.
    pub(super) fn fabric(
        self,
        identity: Identity,
        ip: IpAddr,
        rank: u8,
        settings: Settings,
    ) -> Option<Result<Arc<dyn Fabric>, String>> {
        let ip = match (self, ip) {
            // Of another address, the other end counts as another host.
            (Self::UcxTcp, IpAddr::V4(v4)) if v4.is_loopback() => {
                IpAddr::from([127, 0, 0, 1 + rank])
            }
            _ => ip,
        };
        let at = SocketAddr::new(ip, 0);
        let mut quic = QuicConfig::new(identity, at, at);
        settings.apply(&mut quic);
        // Peers that measure something else are busy for longer than an idle timeout.
        quic.idle_timeout *= 20;
        quic.pool_bytes_max = super::POSTED_BYTES_MAX * 5 / 4;
        match self {
            Self::Quic => {}
            Self::QuicOne => quic.bulk_lanes = 1,
            Self::Quic1500 => quic.mtu_bytes = quic.mtu_bytes.min(PLAIN_MTU_BYTES),
            Self::QuicOne1500 => {
                quic.bulk_lanes = 1;
                quic.mtu_bytes = quic.mtu_bytes.min(PLAIN_MTU_BYTES);
            }
            Self::QuicCubic => quic.congestion = Congestion::Cubic,
            Self::QuicBbr => quic.congestion = Congestion::Bbr,
            Self::QuicAuto => quic.congestion = Congestion::Auto,
            Self::UcxShm | Self::UcxTcp | Self::UcxGpu => {
                if self == Self::UcxGpu {
                    quic.device = match gpu_memory(rank) {
                        Ok(memory) => Some(memory),
                        Err(cause) => return Some(Err(cause)),
                    };
                }
                let ucx = UcxConfig {
                    same_host: LaneChoice::Ucx,
                    other_host: LaneChoice::Ucx,
                    trusted_network: true,
                    devices: None,
                };
                return Some(UcxFabric::bind(&quic, ucx).map_err(|error| error.to_string()));
            }
            Self::QuinnDefault
            | Self::QuinnOneThread
            | Self::Control
            | Self::Udp
            | Self::Tcp
            | Self::Tls => return None,
        }
        Some(QuicFabric::bind(&quic).map_err(|error| error.to_string()))
    }
}

/// The memory of the GPU of one end.
#[cfg(feature = "cuda")]
fn gpu_memory(rank: u8) -> Result<Arc<dyn DeviceMemory>, String> {
    use ditmesh_actors::gpu_memory::GpuMemory;
    let own = GpuMemory::open(rank.into()).or_else(|_| GpuMemory::open(0));
    own.map_err(|error| error.to_string())
}

#[cfg(not(feature = "cuda"))]
fn gpu_memory(_: u8) -> Result<Arc<dyn DeviceMemory>, String> {
    Err("this ditmesh was built without support for gpus".to_owned())
}

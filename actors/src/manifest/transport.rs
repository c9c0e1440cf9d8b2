//! `[transport]`: what carries the frames between devices.
//!
//! Owns the section, its defaults, and which carrier a class of links is to use. Does not own
//! whether that carrier is there: the two ends of a link find out (see `ditmesh_transport::ucx`).

use serde::{Deserialize, Serialize};

use ditmesh_transport::ucx::{LaneChoice, UcxConfig};

use super::CongestionKind;

/// Which data plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransportKind {
    /// QUIC with mutual TLS.
    #[default]
    Quic,
    /// UCX for all frames; control stays on QUIC.
    Ucx,
    /// UCX shared memory within a host where it is there, else QUIC.
    Auto,
    /// Memory of one process; only with `isolation = "thread"`.
    InProcess,
}

/// What carries the frames of one class of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CarrierKind {
    /// QUIC, encrypted.
    Quic,
    /// UCX, not encrypted; a mesh is not formed where it cannot be had.
    Ucx,
    /// UCX shared memory within a host where it is there, else QUIC.
    Auto,
}

/// `[transport]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransportSection {
    /// Which data plane.
    pub kind: TransportKind,
    /// Instead of `kind`, for links between devices of one host (one address).
    pub same_host: Option<CarrierKind>,
    /// Instead of `kind`, for links between hosts.
    pub other_host: Option<CarrierKind>,
    /// Whether frames may cross hosts unencrypted, over UCX: whoever can listen on or send to the
    /// network between them can then read and forge what is computed.
    pub trusted_network: bool,
    /// UCX's network devices, as in `eth0` or `mlx5_0:1`; all by default.
    pub ucx_devices: Option<String>,
    /// Largest UDP payload tried, in bytes.
    pub mtu_bytes: u16,
    /// Bulk connections per pair of peers, each on a port and a thread of its own.
    pub bulk_connections: u8,
    /// How bulk connections find their rate.
    pub congestion: CongestionKind,
}

impl Default for TransportSection {
    fn default() -> Self {
        Self {
            kind: TransportKind::Quic,
            same_host: None,
            other_host: None,
            trusted_network: false,
            ucx_devices: None,
            mtu_bytes: 8952,
            bulk_connections: 2,
            congestion: CongestionKind::Cubic,
        }
    }
}

impl TransportSection {
    /// What links of a class are to use; `None` within one process.
    pub fn carrier(&self, same_host: bool) -> Option<CarrierKind> {
        let of_kind = match self.kind {
            TransportKind::Quic => CarrierKind::Quic,
            TransportKind::Ucx => CarrierKind::Ucx,
            TransportKind::Auto => CarrierKind::Auto,
            TransportKind::InProcess => return None,
        };
        let own = if same_host { self.same_host } else { self.other_host };
        Some(own.unwrap_or(of_kind))
    }

    /// The same in words, with the reason, for plans; `ucx` is its version on this machine, or why
    /// there is none. What a running link uses is in the status.
    pub fn carrier_text(&self, same_host: bool, ucx: Result<&str, &str>) -> String {
        let demanded = |what: &str| match ucx {
            Ok(version) => format!("{what}, as the manifest says (UCX {version} is here)"),
            Err(cause) => {
                format!("{what}, as the manifest says, without which no mesh is formed: {cause}")
            }
        };
        match (self.carrier(same_host), same_host, ucx) {
            (None, ..) => "memory of one process".into(),
            (Some(CarrierKind::Quic), ..) => "quic, as the manifest says".into(),
            (Some(CarrierKind::Ucx), true, _) => demanded("ucx shared memory"),
            (Some(CarrierKind::Ucx), false, _) => demanded("ucx on a trusted network"),
            (Some(CarrierKind::Auto), true, Ok(version)) => {
                format!("ucx shared memory: auto, and UCX {version} is here; quic where it is not")
            }
            (Some(CarrierKind::Auto), true, Err(cause)) => {
                format!(
                    "quic: auto, and there is no UCX here: {cause}; ucx shared memory where it is"
                )
            }
            (Some(CarrierKind::Auto), false, _) => "quic: auto encrypts what crosses hosts".into(),
        }
    }

    /// Settings of UCX; `None` where no link could use it.
    pub fn ucx(&self) -> Option<UcxConfig> {
        let choice = |carrier| match carrier {
            CarrierKind::Quic => LaneChoice::Quic,
            CarrierKind::Ucx => LaneChoice::Ucx,
            CarrierKind::Auto => LaneChoice::Auto,
        };
        let (same_host, other_host) = (self.carrier(true)?, self.carrier(false)?);
        if same_host == CarrierKind::Quic && other_host == CarrierKind::Quic {
            return None;
        }
        Some(UcxConfig {
            same_host: choice(same_host),
            other_host: choice(other_host),
            trusted_network: self.trusted_network,
            devices: self.ucx_devices.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_of_links_overrides_the_kind() {
        let mut section = TransportSection::default();
        assert_eq!(section.ucx(), None);
        section.kind = TransportKind::Auto;
        let auto = section.ucx().expect("ucx within hosts");
        assert_eq!((auto.same_host, auto.other_host), (LaneChoice::Auto, LaneChoice::Auto));
        section.other_host = Some(CarrierKind::Ucx);
        section.trusted_network = true;
        let mixed = section.ucx().expect("ucx");
        assert_eq!((mixed.same_host, mixed.other_host), (LaneChoice::Auto, LaneChoice::Ucx));
        assert!(mixed.trusted_network);
        assert!(section.carrier_text(false, Ok("1.13")).contains("trusted"));
        section.kind = TransportKind::InProcess;
        assert_eq!(section.ucx(), None);
    }

    #[test]
    fn a_plan_says_what_this_machine_has() {
        let kind = TransportKind::Auto;
        let section = TransportSection { kind, ..TransportSection::default() };
        let (here, missing) = (Ok("1.13.1"), Err("libucp.so.0 is missing"));
        assert!(section.carrier_text(true, here).starts_with("ucx shared memory: auto"));
        let without = section.carrier_text(true, missing);
        assert!(without.starts_with("quic: auto") && without.contains("libucp"), "{without}");
        assert_eq!(section.carrier_text(false, here), section.carrier_text(false, missing));
        let section = TransportSection { kind: TransportKind::Ucx, ..section };
        assert!(section.carrier_text(true, here).contains("UCX 1.13.1 is here"));
        let without = section.carrier_text(false, missing);
        assert!(without.contains("no mesh is formed: libucp"), "{without}");
    }
}

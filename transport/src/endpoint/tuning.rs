//! The settings of the QUIC protocol, and why.
//!
//! Owns packet size, windows, congestion control and stream limits. Figures and the command that
//! gives them are in `docs/transport.md`. Invariants: a flow-control window never exceeds what the
//! socket's receive buffer holds (what does not fit there is lost, and sent again); a peer can open
//! one stream until it was welcomed.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use quinn_proto::congestion::{BbrConfig, CubicConfig, NewRenoConfig};
use quinn_proto::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::EndpointSettings;
use super::congestion::AdaptiveConfig;
use crate::error::TransportError;

/// The smallest flow-control window, in bytes.
pub(crate) const WINDOW_BYTES_MIN: u32 = 128 << 10;

/// The fastest link that windows are made for, in bytes per second (100 Gbit/s).
const LINK_BYTES_PER_SECOND: u64 = 12_500_000_000;

/// What scheduling adds to a path's round trip before a reader's credit is back at the sender.
const SCHEDULING: Duration = Duration::from_micros(300);

/// How a sender finds its rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// Loss means that a queue is full; right for switched networks that lose nothing else.
    #[default]
    Cubic,
    /// The older rule, for comparison.
    NewReno,
    /// Measures rate and round trip; faster where packets are lost at random. quinn calls its
    /// implementation experimental.
    Bbr,
    /// Cubic, and BBR on a path that turns out to lose packets at random.
    Auto,
}

impl FromStr for Congestion {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "cubic" => Ok(Self::Cubic),
            "new-reno" => Ok(Self::NewReno),
            "bbr" => Ok(Self::Bbr),
            "auto" => Ok(Self::Auto),
            other => Err(TransportError::malformed(format!(
                "congestion controller {other:?}: expected cubic, new-reno, bbr or auto"
            ))),
        }
    }
}

/// The flow-control window for one connection: twice what the path can hold, but no more than its
/// `share` of the socket's receive buffer.
pub(crate) fn window_bytes(round_trip: Duration, share: u32) -> u32 {
    let micros = (round_trip + SCHEDULING).as_micros();
    let product = u128::from(LINK_BYTES_PER_SECOND) * micros / 1_000_000;
    u32::try_from(product * 2).unwrap_or(u32::MAX).min(share).max(WINDOW_BYTES_MIN)
}

pub(super) fn endpoint_config(
    settings: &EndpointSettings,
) -> Result<EndpointConfig, TransportError> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(settings.mtu_bytes).map_err(|_| {
        TransportError::malformed(format!("mtu of {} bytes: 1200 to 65527", settings.mtu_bytes))
    })?;
    Ok(config)
}

pub(super) fn transport_config(
    settings: &EndpointSettings,
    receive_window_bytes: u32,
) -> Result<TransportConfig, TransportError> {
    let window = VarInt::from_u32(receive_window_bytes);
    let of_stream = receive_window_bytes.saturating_sub(settings.window_reserve_bytes);
    let idle = IdleTimeout::try_from(settings.idle_timeout)
        .map_err(|_| TransportError::malformed("idle timeout: too long"))?;
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(settings.mtu_bytes);
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(settings.keep_alive))
        .stream_receive_window(VarInt::from_u32(of_stream))
        .receive_window(window)
        .send_window(send_window_bytes(receive_window_bytes))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(discovery))
        .enable_segmentation_offload(true);
    match settings.congestion {
        Congestion::Cubic => config.congestion_controller_factory(Arc::new(CubicConfig::default())),
        Congestion::NewReno => {
            config.congestion_controller_factory(Arc::new(NewRenoConfig::default()))
        }
        Congestion::Bbr => config.congestion_controller_factory(Arc::new(BbrConfig::default())),
        Congestion::Auto => config.congestion_controller_factory(Arc::new(AdaptiveConfig)),
    };
    Ok(config)
}

/// What a connection may hold that is not acknowledged: the peer's window, and as much again so
/// that the next chunk is at hand when credit comes.
fn send_window_bytes(receive_window_bytes: u32) -> u64 {
    2 * u64::from(receive_window_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_the_path_twice_and_fits_its_share_of_the_buffer() {
        let share = 4 << 20;
        assert_eq!(window_bytes(Duration::from_millis(10), share), share);
        assert_eq!(window_bytes(Duration::from_micros(60), 64 << 20), 9_000_000);
        assert_eq!(window_bytes(Duration::ZERO, 1), WINDOW_BYTES_MIN);
    }

    #[test]
    fn congestion_controllers_have_names() {
        assert_eq!("bbr".parse::<Congestion>().ok(), Some(Congestion::Bbr));
        assert!("vegas".parse::<Congestion>().is_err());
    }
}

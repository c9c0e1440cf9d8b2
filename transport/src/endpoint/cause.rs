//! Why connections end, in words and as typed errors.
//!
//! Owns the reading of the protocol's errors. Invariant: a certificate that is refused, by either
//! side, is [`TransportError::Untrusted`] and never "cannot connect".

use std::net::SocketAddr;

use quinn_proto::{ConnectionError, TransportErrorCode, VarInt};

use crate::error::TransportError;

/// The application's close codes.
pub(crate) mod close_code {
    use super::VarInt;

    /// An orderly end.
    pub(crate) const DONE: VarInt = VarInt::from_u32(0);
    /// The peer broke the protocol.
    pub(crate) const PROTOCOL: VarInt = VarInt::from_u32(1);
    /// The peer was refused after the handshake.
    pub(crate) const REFUSED: VarInt = VarInt::from_u32(2);
}

/// Why a connection that was established ended.
pub(crate) fn close_cause(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason);
            match reason.as_ref() {
                "" => "it closed the connection".to_owned(),
                reason => format!("it closed the connection: {reason}"),
            }
        }
        ConnectionError::TimedOut => "it fell silent (no packet within the idle timeout)".into(),
        ConnectionError::Reset => "it no longer knows the connection".to_owned(),
        ConnectionError::LocallyClosed => "closed on this side".to_owned(),
        other => other.to_string(),
    }
}

/// Why a connection could not be established.
pub(crate) fn connect_error(
    peer: &str,
    address: SocketAddr,
    error: &ConnectionError,
) -> TransportError {
    let refused_by = match error {
        ConnectionError::TransportError(error) if is_tls(error.code) => {
            Some(format!("its certificate was refused here ({})", error.reason))
        }
        ConnectionError::ConnectionClosed(close) if is_tls(close.error_code) => {
            let reason = String::from_utf8_lossy(&close.reason);
            Some(format!("it refused the certificate of this side ({reason})"))
        }
        _ => None,
    };
    match refused_by {
        Some(cause) => TransportError::Untrusted { peer: format!("{peer} at {address}"), cause },
        None => TransportError::Connect {
            peer: peer.to_owned(),
            address: address.to_string(),
            cause: close_cause(error),
        },
    }
}

fn is_tls(code: TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

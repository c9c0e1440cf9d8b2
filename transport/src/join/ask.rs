//! The joiner's side: dial, make sure that this is the cluster of the token, ask.
//!
//! One short exchange, so quinn's own I/O serves.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectionError, Endpoint, TransportErrorCode, VarInt};
use rustls::AlertDescription;
use tokio::time::{timeout, timeout_at};

use super::{ALPN, JOIN_BYTES_MAX, JoinToken};
use crate::endpoint::connect_error;
use crate::error::TransportError;
use crate::identity::{PeerIdentity, Role, joiner_tls, verified_identity};

/// Longest wait for the end of the connection to be heard.
const FAREWELL: Duration = Duration::from_millis(300);

/// Asks the coordinator at `address` one question; its answer. Needs a tokio runtime.
///
/// # Errors
/// [`TransportError::Untrusted`] when somebody else is there, [`TransportError::WrongIdentity`]
/// when it is not the node of the token, [`TransportError::Connect`] when nobody answers in time or
/// the door is shut.
pub async fn ask(
    address: SocketAddr,
    token: &JoinToken,
    question: &[u8],
    deadline: Instant,
) -> Result<Vec<u8>, TransportError> {
    let cluster = token.cluster()?;
    let expected = PeerIdentity::new(Role::Node, token.coordinator(), &cluster)?;
    let failed = |cause: String| TransportError::Connect {
        peer: expected.to_string(),
        address: address.to_string(),
        cause,
    };
    let (tls, name) = joiner_tls(&token.authority(), &cluster, ALPN)?;
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| failed(error.to_string()))?;
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let endpoint = Endpoint::client(SocketAddr::new(any, 0))
        .map_err(|error| TransportError::system("open a socket", error))?;
    let exchange = async {
        let config = ClientConfig::new(Arc::new(crypto));
        let connecting = endpoint
            .connect_with(config, address, &name)
            .map_err(|error| failed(error.to_string()))?;
        let connection = connecting.await.map_err(|error| match error {
            ConnectionError::ConnectionClosed(close) if close.error_code == no_protocol() => {
                failed("no token is out: this one was used or has expired".into())
            }
            error => connect_error(&expected.to_string(), address, &error),
        })?;
        let found =
            verified_identity(connection.peer_identity()).map_err(TransportError::malformed)?;
        if found != expected {
            return Err(TransportError::WrongIdentity {
                expected: expected.to_string(),
                found: found.to_string(),
            });
        }
        let lost = |cause: String| TransportError::SessionLost { peer: found.to_string(), cause };
        let (mut sending, mut receiving) =
            connection.open_bi().await.map_err(|error| lost(error.to_string()))?;
        sending.write_all(question).await.map_err(|error| lost(error.to_string()))?;
        sending.finish().map_err(|error| lost(error.to_string()))?;
        let answer = receiving.read_to_end(JOIN_BYTES_MAX).await;
        answer.map_err(|error| lost(error.to_string()))
    };
    let answered = timeout_at(deadline.into(), exchange).await;
    endpoint.close(VarInt::from_u32(0), b"asked");
    // The other side holds a place for this one until it hears that.
    let _ = timeout(FAREWELL, endpoint.wait_idle()).await;
    answered.unwrap_or_else(|_| Err(failed("no answer before the deadline".into())))
}

/// What a coordinator whose door is shut says: it does not speak the joiners' protocol.
fn no_protocol() -> TransportErrorCode {
    TransportErrorCode::crypto(u8::from(AlertDescription::NoApplicationProtocol))
}

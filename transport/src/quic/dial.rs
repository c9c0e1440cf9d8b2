//! Dialing one lane to one peer.
//!
//! Owns the dialing side of the greeting, and how long a peer may not answer at all. Invariant:
//! nothing is said before the peer's certificate shows the expected name.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use super::admission::{is_member, member};
use super::greeting::{LaneStream, confirm, read_hello, refusal, write_hello};
use crate::endpoint::{Dialer, close_code, connect_error};
use crate::error::TransportError;
use crate::frame::hello::{Answer, Hello};
use crate::identity::verified_identity;
use crate::stack::Connection;

/// The same to a member of a mesh, whose process is there: it may take until the deadline to join,
/// but it answers within `patience`, or the way to it is cut.
pub(super) async fn dial_member(
    dialer: Dialer,
    address: SocketAddr,
    name: String,
    hello: Hello,
    (patience, deadline): (Duration, Instant),
) -> Result<LaneStream, TransportError> {
    let who = format!("peer {} ({name})", hello.to);
    let patient_until = Instant::now() + patience;
    let connection = match dialer.dial(&who, address, deadline.min(patient_until)).await {
        Err(TransportError::Connect { address, .. })
            if Instant::now() >= patient_until && patient_until < deadline =>
        {
            let milliseconds = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
            return Err(TransportError::Unanswered { peer: hello.to, name, address, milliseconds });
        }
        dialled => dialled?,
    };
    join(connection, address, &name, &hello, deadline).await
}

/// Runs on the thread of the lane's endpoint.
pub(super) async fn dial(
    dialer: Dialer,
    address: SocketAddr,
    name: String,
    hello: Hello,
    deadline: Instant,
) -> Result<LaneStream, TransportError> {
    let who = format!("peer {} ({name})", hello.to);
    let connection = dialer.dial(&who, address, deadline).await?;
    join(connection, address, &name, &hello, deadline).await
}

/// Makes sure of who is there and says hello.
async fn join(
    connection: Connection,
    address: SocketAddr,
    name: &str,
    hello: &Hello,
    deadline: Instant,
) -> Result<LaneStream, TransportError> {
    let found = verified_identity(connection.peer_identity()).map_err(TransportError::malformed)?;
    if !is_member(&found, name) {
        connection.close(close_code::REFUSED, b"not the expected peer");
        return Err(TransportError::WrongIdentity {
            expected: member(name),
            found: found.to_string(),
        });
    }
    let greeted = timeout_at(deadline.into(), greet(connection, hello, address)).await;
    greeted.unwrap_or_else(|_| {
        Err(TransportError::Connect {
            peer: format!("peer {} ({name})", hello.to),
            address: address.to_string(),
            cause: format!("it did not join epoch {} before the deadline", hello.epoch),
        })
    })
}

async fn greet(
    connection: Connection,
    hello: &Hello,
    address: SocketAddr,
) -> Result<LaneStream, TransportError> {
    let who = format!("peer {}", hello.to);
    // The reason of the connection says more than the stream's error, where there is one.
    let failed = |error: TransportError| match connection.close_reason() {
        Some(reason) => connect_error(&who, address, &reason),
        None => error,
    };
    let broken = |error: &dyn std::error::Error| {
        failed(TransportError::closed(format!("connection to {who}: {error}")))
    };
    let (mut sending, mut receiving) = connection.open_bi().await.map_err(|e| broken(&e))?;
    write_hello(&mut sending, &hello.encode()).await.map_err(|e| broken(&e))?;
    let answer = read_hello(&mut receiving).await.map_err(failed)?;
    match Answer::decode(&answer)? {
        Answer::Welcome { incarnation } => {
            confirm(&mut sending).await.map_err(|e| broken(&e))?;
            tracing::debug!(peer = %hello.to, %incarnation, lane = ?hello.lane, "welcome");
            Ok(LaneStream { connection, sending, receiving })
        }
        other => Err(refusal(other, hello, &address.to_string())),
    }
}

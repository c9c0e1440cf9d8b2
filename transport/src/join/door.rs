//! The coordinator's side of joining: one question of one stranger.
//!
//! Owns the bounds: length of the question, time for it and for its answer.

use std::net::SocketAddr;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{JOIN_BYTES_MAX, JOIN_DEADLINE};
use crate::endpoint::close_code;
use crate::error::TransportError;
use crate::stack::Connection;

/// Questions that wait to be looked at.
pub(crate) const JOINS_WAITING_MAX: usize = 8;

/// A stranger's question.
#[derive(Debug)]
pub struct Joining {
    /// Where it came from, for the log.
    pub from: SocketAddr,
    /// What it says, at most [`JOIN_BYTES_MAX`].
    pub question: Vec<u8>,
    /// Takes the answer; dropped, the stranger learns nothing.
    pub answer: oneshot::Sender<Vec<u8>>,
}

/// Hears the question of an accepted connection, passes it on, and sends the answer.
pub(crate) async fn answer(
    connection: Connection,
    joins: mpsc::Sender<Joining>,
) -> Result<(), TransportError> {
    let from = connection.remote_address();
    let lost = |cause: String| TransportError::SessionLost { peer: from.to_string(), cause };
    let exchange = async {
        let (mut sending, mut receiving) =
            connection.accept_bi().await.map_err(|error| lost(error.to_string()))?;
        let question = receiving.read_to_end(JOIN_BYTES_MAX).await;
        let question = question.map_err(|error| lost(error.to_string()))?;
        let (answer, answered) = oneshot::channel();
        let joining = Joining { from, question, answer };
        joins.try_send(joining).map_err(|_| TransportError::TooMany {
            what: "machines that join",
            limit: JOINS_WAITING_MAX,
        })?;
        let answer = answered.await.map_err(|_| lost("nobody answered".into()))?;
        sending.write_all(&answer).await.map_err(|error| lost(error.to_string()))?;
        sending.finish().map_err(|error| lost(error.to_string()))?;
        // Until it is read, or the stranger has gone.
        let _ = sending.stopped().await;
        Ok(())
    };
    let done = timeout(JOIN_DEADLINE, exchange).await;
    connection.close(close_code::REFUSED, b"that is all");
    done.unwrap_or_else(|_| Err(TransportError::deadline("a machine that joins")))
}

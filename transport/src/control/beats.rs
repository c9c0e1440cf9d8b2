//! Heartbeats: signs of life that wait behind no message.
//!
//! Owns the stream that they have to themselves in each direction, ahead of everything else on the
//! connection, and its framing: eight bytes each. Invariants: only the newest waits, so they take
//! no memory and nobody waits to send one; they have credit of their own, so messages that nobody
//! reads do not stop them.

use std::sync::Arc;

use tokio::sync::watch;

use super::state::State;
use crate::stack::Connection;

/// Before messages, whose stream has the default of 0.
const PRIORITY: i32 = 1;

/// Hears the other end's heartbeats.
#[derive(Clone, Debug)]
pub struct Beats(watch::Receiver<u64>);

impl Beats {
    pub(super) fn new(heard: watch::Receiver<u64>) -> Self {
        Self(heard)
    }

    /// The newest, when one has come since the last call. Once no more can come this never
    /// resolves: that the channel is over is told by its messages. May be dropped at any time.
    pub async fn next(&mut self) -> u64 {
        match self.0.changed().await {
            Ok(()) => *self.0.borrow_and_update(),
            Err(_) => std::future::pending().await,
        }
    }
}

/// Writes the newest one whenever there is one, until the channel is over.
pub(super) async fn write(
    connection: Connection,
    mut beats: watch::Receiver<u64>,
    state: Arc<State>,
) {
    let writing = async {
        // A channel that has none needs no stream.
        beats.changed().await.ok()?;
        let mut stream = connection.open_uni().await.ok()?;
        stream.set_priority(PRIORITY).ok()?;
        loop {
            let beat = *beats.borrow_and_update();
            stream.write_all(&beat.to_le_bytes()).await.ok()?;
            beats.changed().await.ok()?;
        }
    };
    end_with(&state, writing).await;
}

/// Hears those of the other end, until the channel is over.
pub(super) async fn read(connection: Connection, heard: watch::Sender<u64>, state: Arc<State>) {
    let reading = async {
        let mut stream = connection.accept_uni().await.ok()?;
        let mut beat = [0; 8];
        loop {
            stream.read_exact(&mut beat).await.ok()?;
            heard.send_replace(u64::from_le_bytes(beat));
        }
    };
    end_with(&state, reading).await;
}

/// Whatever breaks a heartbeat's stream breaks the connection, which others see, or is silence.
async fn end_with(state: &State, beating: impl Future<Output = Option<()>>) {
    tokio::select! {
        _ = beating => {}
        _ = state.ended() => {}
    }
}

//! The two loops of a session: from the channel to its owner, from its queue to the channel.
//!
//! Each runs until the session is over and returns the reason.

use std::time::{Duration, Instant};

use ditmesh_transport::control::{ControlReceiver, ControlSender};
use ditmesh_transport::error::TransportError;
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;
use tokio::time::timeout;

use super::handle::Outgoing;
use super::wire::Message;
use super::{Deliver, SessionEnds, Side};

/// Longest wait for room in the channel's queue.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// Longest time for a whole blob.
const BLOB_DEADLINE: Duration = Duration::from_secs(300);

/// How long the reason of a closing may lag behind the closing.
const REASON_WAIT: Duration = Duration::from_millis(100);

/// Between looks for it.
const REASON_LOOK_PAUSE: Duration = Duration::from_millis(2);

const ABANDONED: &str = "its owner has gone";

/// Delivers what the peer says, heartbeats included.
pub(super) async fn read<S: Side>(
    mut receiver: ControlReceiver,
    deliver: Deliver<S::In>,
    silence_max: Option<Duration>,
) -> String {
    loop {
        let message = match next::<S>(&mut receiver, silence_max).await {
            Ok(message) => message,
            Err(reason) => return reason,
        };
        let blob = match message.blob_bytes_max() {
            None => None,
            Some(bytes_max) => match blob(&mut receiver, bytes_max).await {
                Ok(blob) => Some(blob),
                Err(reason) => return reason,
            },
        };
        deliver(message, blob);
    }
}

async fn next<S: Side>(
    receiver: &mut ControlReceiver,
    silence_max: Option<Duration>,
) -> Result<S::In, String> {
    let received = match silence_max {
        // Membership watches over this peer, and closes the session when it is silent.
        None => receiver.recv().await,
        Some(silence_max) => match timeout(silence_max, receiver.recv()).await {
            Ok(received) => received,
            Err(_) => return Err(format!("silent for {} ms", silence_max.as_millis())),
        },
    };
    let bytes = or_reason(receiver, received).await?;
    S::In::decode(&bytes).map_err(|error| error.to_string())
}

async fn blob(receiver: &mut ControlReceiver, bytes_max: usize) -> Result<Vec<u8>, String> {
    match timeout(BLOB_DEADLINE, receiver.recv_blob(bytes_max)).await {
        Ok(received) => or_reason(receiver, received).await,
        Err(_) => Err(format!("a blob took longer than {} s", BLOB_DEADLINE.as_secs())),
    }
}

async fn or_reason<T>(
    receiver: &ControlReceiver,
    received: Result<Option<T>, TransportError>,
) -> Result<T, String> {
    match received {
        Ok(Some(received)) => Ok(received),
        Ok(None) => {
            // The end of the stream may be seen before the reason of the closing.
            let reason = async {
                loop {
                    if let Some(reason) = receiver.closed() {
                        return reason;
                    }
                    tokio::time::sleep(REASON_LOOK_PAUSE).await;
                }
            };
            Err(timeout(REASON_WAIT, reason).await.unwrap_or_else(|_| "closed".into()))
        }
        Err(TransportError::SessionLost { cause, .. }) => Err(cause),
        Err(error) => Err(error.to_string()),
    }
}

/// Sends what is queued and a heartbeat now and then; after the end, what is still queued.
pub(super) async fn write<S: Side>(
    sender: ControlSender,
    ends: SessionEnds<S::Out>,
    heartbeat: Duration,
) -> String {
    let SessionEnds { mut queue, mut end } = ends;
    let mut beats = tokio::time::interval(heartbeat);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sequence = 0;
    loop {
        let sent = tokio::select! {
            reason = closing(&mut end) => {
                // What cannot be sent any more is lost with the session.
                let _ = drain::<S>(&sender, &mut queue).await;
                sender.close(&reason);
                return reason;
            }
            outgoing = queue.recv() => match outgoing {
                Some(outgoing) => send::<S>(&sender, outgoing).await,
                None => {
                    sender.close(ABANDONED);
                    return ABANDONED.into();
                }
            },
            _ = beats.tick() => {
                sequence += 1;
                send::<S>(&sender, Outgoing::Message(S::Out::heartbeat(sequence))).await
            }
        };
        if let Err(reason) = sent {
            return reason;
        }
    }
}

/// The owner's reason to end the session.
async fn closing(end: &mut watch::Receiver<Option<String>>) -> String {
    match end.wait_for(Option::is_some).await {
        Ok(reason) => reason.clone().unwrap_or_default(),
        Err(_) => ABANDONED.into(),
    }
}

async fn drain<S: Side>(
    sender: &ControlSender,
    queue: &mut Receiver<Outgoing<S::Out>>,
) -> Result<(), String> {
    while let Ok(outgoing) = queue.try_recv() {
        send::<S>(sender, outgoing).await?;
    }
    Ok(())
}

async fn send<S: Side>(sender: &ControlSender, outgoing: Outgoing<S::Out>) -> Result<(), String> {
    let deadline = Instant::now() + SEND_DEADLINE;
    let sent = match outgoing {
        Outgoing::Message(message) => {
            let bytes = message.encode().map_err(|error| error.to_string())?;
            sender.send(bytes, deadline).await
        }
        Outgoing::Blob(blob) => sender.send_blob(blob, deadline).await,
    };
    sent.map_err(|error| match error {
        TransportError::SessionLost { cause, .. } => cause,
        error => error.to_string(),
    })
}

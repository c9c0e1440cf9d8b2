//! The two loops of a session: from the channel to its owner, from its queue to the channel.
//!
//! Each runs until the session is over and returns the reason. Heartbeats come and go beside both,
//! whatever large message or blob is under way.

use std::convert::Infallible;
use std::pin::pin;
use std::time::{Duration, Instant};

use ditmesh_transport::control::{Beats, ControlReceiver, ControlSender};
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
    let beats = receiver.beats();
    let mut ear = Ear::<S> { beats, deliver, silence_max };
    loop {
        if let Err(reason) = one(&mut receiver, &mut ear).await {
            return reason;
        }
    }
}

/// Delivers one message, with its blob.
async fn one<S: Side>(receiver: &mut ControlReceiver, ear: &mut Ear<S>) -> Result<(), String> {
    let received = ear.wait_for(receiver.recv()).await?;
    let bytes = or_reason(receiver, received).await?;
    let message = S::In::decode(&bytes).map_err(|error| error.to_string())?;
    let blob = match message.blob_bytes_max() {
        None => None,
        Some(bytes_max) => Some(ear.wait_for(blob(receiver, bytes_max)).await??),
    };
    (ear.deliver)(message, blob);
    Ok(())
}

/// Hears heartbeats while something else is waited for.
struct Ear<S: Side> {
    beats: Beats,
    deliver: Deliver<S::In>,
    /// `None` where membership watches over this peer, and closes the session when it is silent.
    silence_max: Option<Duration>,
}

impl<S: Side> Ear<S> {
    /// Waits for `coming`, as long as the peer is not silent.
    async fn wait_for<T>(&mut self, coming: impl Future<Output = T>) -> Result<T, String> {
        let mut coming = pin!(coming);
        loop {
            let silence_max = self.silence_max;
            let silence = async {
                match silence_max {
                    Some(silence_max) => tokio::time::sleep(silence_max).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                came = &mut coming => return Ok(came),
                beat = self.beats.next() => (self.deliver)(S::In::heartbeat(beat), None),
                () = silence => {
                    let silent = silence_max.unwrap_or_default().as_millis();
                    return Err(format!("silent for {silent} ms"));
                }
            }
        }
    }
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

/// Sends what is queued, and a heartbeat now and then, which waits for nothing.
pub(super) async fn write<S: Side>(
    sender: ControlSender,
    ends: SessionEnds<S::Out>,
    heartbeat: Duration,
) -> String {
    tokio::select! {
        reason = write_queued::<S>(&sender, ends) => reason,
        never = beat(&sender, heartbeat) => match never {},
    }
}

async fn beat(sender: &ControlSender, heartbeat: Duration) -> Infallible {
    let mut beats = tokio::time::interval(heartbeat);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sequence = 0;
    loop {
        beats.tick().await;
        sequence += 1;
        sender.beat(sequence);
    }
}

/// Sends what is queued; after the end, what is still queued.
async fn write_queued<S: Side>(sender: &ControlSender, ends: SessionEnds<S::Out>) -> String {
    let SessionEnds { mut queue, mut end } = ends;
    loop {
        let sent = tokio::select! {
            reason = closing(&mut end) => {
                // What cannot be sent any more is lost with the session.
                let _ = drain::<S>(sender, &mut queue).await;
                sender.close(&reason);
                return reason;
            }
            outgoing = queue.recv() => match outgoing {
                Some(outgoing) => send::<S>(sender, outgoing).await,
                None => {
                    sender.close(ABANDONED);
                    return ABANDONED.into();
                }
            },
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

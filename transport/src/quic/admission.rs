//! Who may come in: hellos against the meshes that are being formed here.
//!
//! Owns the epochs of this fabric, the meshes being formed, and the hellos that came early.
//! Invariants: a stale epoch, a stranger or a client is refused at once; a hello that is early
//! waits bounded in number ([`HELLOS_WAITING_MAX`]) and time; every caller gets an answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::blobs::BlobServer;
use super::greeting::{LaneStream, Port, Speaker, read_confirmation, read_hello, write_hello};
use crate::endpoint::{Gate, GatePass, close_code};
use crate::error::TransportError;
use crate::fabric::BULK_LANES_MAX;
use crate::fabric::epochs::Epochs;
use crate::frame::hello::{Answer, Hello, Lane};
use crate::identity::{PeerIdentity, Role, verified_identity};
use crate::ids::{Epoch, PeerId};
use crate::stack::{Connection, Endpoint, Incoming};

/// How many hellos for meshes not formed here yet may wait.
pub const HELLOS_WAITING_MAX: usize = 1024;

/// How long a handshake may take until its hello is read.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A lane that a peer opened and that was admitted.
pub(super) struct Knock {
    pub(super) from: PeerId,
    pub(super) lane: Lane,
    pub(super) stream: LaneStream,
}

/// What the endpoints of one fabric share.
pub(super) struct Admission {
    speaker: Speaker,
    hello_wait: Duration,
    pub(super) blobs: BlobServer,
    book: Mutex<Book>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Book {
    epochs: Epochs,
    forming: HashMap<Epoch, Door>,
    waiting: usize,
    last_refusal: Option<String>,
    /// Of the endpoints that are served, one each.
    gates: Vec<Gate>,
}

struct Door {
    local: PeerId,
    /// Names of the peers that will dial.
    callers: HashMap<PeerId, String>,
    knocks: mpsc::Sender<Knock>,
}

enum Verdict {
    Enter(mpsc::Sender<Knock>),
    Wait,
    Refuse(Answer),
}

impl Admission {
    pub(super) fn new(speaker: Speaker, hello_wait: Duration, blobs: BlobServer) -> Arc<Self> {
        Arc::new(Self {
            speaker,
            hello_wait,
            blobs,
            book: Mutex::default(),
            changed: watch::Sender::new(()),
        })
    }

    pub(super) fn speaker(&self) -> &Speaker {
        &self.speaker
    }

    /// Opens the door for the callers of one mesh.
    pub(super) fn open(
        &self,
        epoch: Epoch,
        local: PeerId,
        callers: HashMap<PeerId, String>,
    ) -> Result<mpsc::Receiver<Knock>, TransportError> {
        let (knocks, knocking) = mpsc::channel(callers.len().max(1) * (1 + BULK_LANES_MAX));
        {
            let mut book = self.book();
            book.epochs.begin(epoch)?;
            book.forming.insert(epoch, Door { local, callers, knocks });
            book.last_refusal = None;
        }
        self.changed.send_replace(());
        Ok(knocking)
    }

    /// Closes the door; a mesh that was not formed may be tried again.
    pub(super) fn shut(&self, epoch: Epoch, formed: bool) {
        let mut book = self.book();
        book.forming.remove(&epoch);
        book.epochs.end(epoch, formed);
    }

    /// Why the last caller was refused, for the error of whoever waited for it.
    pub(super) fn last_refusal(&self) -> Option<String> {
        self.book().last_refusal.clone()
    }

    /// Callers that were turned away at any of the endpoints.
    pub(super) fn callers_refused(&self) -> u64 {
        self.book().gates.iter().map(Gate::refused_total).sum()
    }

    /// Serves one endpoint until it closes; runs on that endpoint's thread.
    pub(super) async fn serve(self: Arc<Self>, endpoint: Endpoint, port: Port) {
        let gate = Gate::default();
        self.book().gates.push(gate.clone());
        while let Some((incoming, pass)) = gate.next(&endpoint).await {
            let (admission, gate) = (Arc::clone(&self), gate.clone());
            tokio::spawn(async move {
                let from = incoming.remote_address();
                if let Err(error) = admission.receive(incoming, pass, port).await {
                    gate.refused(from, &error);
                    admission.book().last_refusal = Some(format!("{from}: {error}"));
                }
            });
        }
    }

    async fn receive(
        &self,
        incoming: Incoming,
        pass: GatePass,
        port: Port,
    ) -> Result<(), TransportError> {
        let opened = timeout(HANDSHAKE_TIMEOUT, open_stream(incoming, pass));
        let late =
            |_: tokio::time::error::Elapsed| TransportError::deadline("a caller's handshake");
        let (mut stream, peer, hello) = opened.await.map_err(late)??;
        let verdict = match self.speaker.check(&hello, &peer, port) {
            Some(answer) => Err(answer),
            None if hello.lane == Lane::Blobs && peer.role == Role::Client => {
                Err(Answer::Refused { cause: "blobs are for nodes and workers".into() })
            }
            None if hello.lane == Lane::Blobs => Ok(None),
            None => tokio::select! {
                admitted = self.admit(&hello, &peer) => admitted.map(Some),
                _ = stream.connection.closed() => {
                    return Err(TransportError::closed(format!("connection to {peer}")));
                }
            },
        };
        let answer = match &verdict {
            Ok(_) => Answer::Welcome { incarnation: self.speaker.incarnation },
            Err(answer) => answer.clone(),
        };
        let told = write_hello(&mut stream.sending, &answer.encode()).await;
        told.map_err(|error| TransportError::closed(format!("connection to {peer}: {error}")))?;
        match verdict {
            Ok(door) => {
                let confirmed = read_confirmation(&mut stream.receiving);
                timeout(HANDSHAKE_TIMEOUT, confirmed).await.map_err(late)??;
                let Some(door) = door else { return self.blobs.serve(stream).await };
                let knock = Knock { from: hello.from, lane: hello.lane, stream };
                // Nobody behind the door any more: dropping the lane closes it.
                door.send(knock).await.map_err(|_| TransportError::closed("the mesh"))
            }
            Err(answer) => {
                refuse(&mut stream).await;
                Err(super::greeting::refusal(answer, &hello, &peer.to_string()))
            }
        }
    }

    /// Waits for the mesh of an early hello to be formed.
    async fn admit(
        &self,
        hello: &Hello,
        peer: &PeerIdentity,
    ) -> Result<mpsc::Sender<Knock>, Answer> {
        let mut changed = self.changed.subscribe();
        let deadline = Instant::now() + self.hello_wait;
        let mut place = None;
        loop {
            match self.verdict(hello, peer) {
                Verdict::Enter(door) => return Ok(door),
                Verdict::Refuse(answer) => return Err(answer),
                Verdict::Wait if place.is_none() => place = Some(WaitingPlace::take(&self.book)?),
                Verdict::Wait => {}
            }
            if timeout_at(deadline, changed.changed()).await.is_err() {
                let cause = format!("epoch {} was not formed here in time", hello.epoch);
                return Err(Answer::Refused { cause });
            }
        }
    }

    fn verdict(&self, hello: &Hello, peer: &PeerIdentity) -> Verdict {
        let book = self.book();
        if let Err(TransportError::StaleEpoch { current, .. }) = book.epochs.check(hello.epoch) {
            return Verdict::Refuse(Answer::Stale { current });
        }
        let Some(door) = book.forming.get(&hello.epoch) else {
            if book.epochs.is_taken(hello.epoch) {
                return Verdict::Refuse(Answer::Stale { current: hello.epoch });
            }
            return Verdict::Wait;
        };
        if let Some(answer) = door.stranger(hello, peer) {
            return Verdict::Refuse(answer);
        }
        Verdict::Enter(door.knocks.clone())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }
}

impl Door {
    fn stranger(&self, hello: &Hello, peer: &PeerIdentity) -> Option<Answer> {
        if hello.to != self.local {
            let cause = format!("this is peer {}, not peer {}", self.local, hello.to);
            return Some(Answer::Refused { cause });
        }
        match self.callers.get(&hello.from) {
            None => {
                let cause = format!("peer {} does not dial peer {} here", hello.from, self.local);
                Some(Answer::Refused { cause })
            }
            Some(name) if is_member(peer, name) => None,
            Some(name) => {
                Some(Answer::Identity { expected: member(name), found: peer.to_string() })
            }
        }
    }
}

/// Whether a certificate may take part in meshes under this name.
pub(super) fn is_member(peer: &PeerIdentity, name: &str) -> bool {
    peer.role != Role::Client && peer.name == name
}

/// How a member is named in errors.
pub(super) fn member(name: &str) -> String {
    format!("node or worker {name}")
}

async fn open_stream(
    incoming: Incoming,
    pass: GatePass,
) -> Result<(LaneStream, PeerIdentity, Hello), TransportError> {
    let from = incoming.remote_address();
    let failed = |error| crate::endpoint::connect_error("the caller", from, &error);
    let connection: Connection = incoming.await.map_err(failed)?;
    drop(pass);
    let peer = verified_identity(connection.peer_identity()).map_err(TransportError::malformed)?;
    let (sending, mut receiving) = connection.accept_bi().await.map_err(failed)?;
    let hello = Hello::decode(&read_hello(&mut receiving).await?).inspect_err(|error| {
        connection.close(close_code::PROTOCOL, error.to_string().as_bytes());
    })?;
    Ok((LaneStream { connection, sending, receiving }, peer, hello))
}

/// Gives the answer time to arrive before the connection goes.
async fn refuse(stream: &mut LaneStream) {
    // An error means that the stream, and with it the caller, is gone.
    let _ = stream.sending.finish();
    let _ = timeout(HANDSHAKE_TIMEOUT, stream.sending.stopped()).await;
    stream.connection.close(close_code::REFUSED, b"refused");
}

struct WaitingPlace<'a>(&'a Mutex<Book>);

impl<'a> WaitingPlace<'a> {
    fn take(book: &'a Mutex<Book>) -> Result<Self, Answer> {
        let mut held = lock(book);
        if held.waiting >= HELLOS_WAITING_MAX {
            return Err(Answer::Refused { cause: "too many callers are waiting".to_owned() });
        }
        held.waiting += 1;
        Ok(Self(book))
    }
}

impl Drop for WaitingPlace<'_> {
    fn drop(&mut self) {
        lock(self.0).waiting -= 1;
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

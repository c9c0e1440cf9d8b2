//! A client of a running cluster: finds the coordinator, keeps one session with it.
//!
//! Owns the client's thread and what a caller sees. Does not start or stop processes (that is the
//! launcher's).
//!
//! Invariant: a coordinator that is lost or silent ends every call with a typed error, but a
//! request only when no coordinator is found again.

mod link;
mod thread;

use std::thread::JoinHandle;
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::oneshot;

use crate::examine::clock::Skew;
use crate::generation::{self, GenerateError, GenerationHandle};
use crate::manifest::Manifest;
use crate::protocol::ClientCall;
use crate::protocol::examine::Examined;
use crate::request::GenerateRequest;
use crate::status::ClusterStatus;
use crate::trace_context;
use link::LinkMsg;

/// Name in the certificate of the command line.
pub const CLIENT_NAME: &str = "client";

/// Why a cluster could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Nothing says that the cluster runs.
    #[error("cluster \"{cluster}\" is not running: no {path} (start it with `ditmesh up`)")]
    NotRunning {
        /// Name in the manifest.
        cluster: String,
        /// The record its coordinator publishes.
        path: String,
    },
    /// Its coordinator does not answer.
    #[error("cluster \"{cluster}\" cannot be reached at {address}: {cause}")]
    Unreachable {
        /// Name in the manifest.
        cluster: String,
        /// Address tried.
        address: String,
        /// What went wrong.
        cause: String,
    },
    /// The coordinator refused this client (certificate, version, other cluster).
    #[error("the coordinator at {address} refused this client: {cause}")]
    Refused {
        /// Address tried.
        address: String,
        /// Its words.
        cause: String,
    },
    /// The certificate or its key cannot be used.
    #[error("no usable client certificate in {folder}: {cause}")]
    Certificate {
        /// Where it was looked for.
        folder: String,
        /// What went wrong.
        cause: String,
    },
    /// The coordinator does not do what it was asked.
    #[error("{0}")]
    Denied(String),
    /// The session ended before the answer.
    #[error("lost the coordinator of cluster \"{cluster}\": {cause}")]
    Lost {
        /// Name in the manifest.
        cluster: String,
        /// What went wrong.
        cause: String,
    },
}

/// A session with a cluster's coordinator. Dropping it cancels its requests.
#[derive(Debug)]
pub struct ClusterClient {
    cluster: String,
    link: ActorRef<LinkMsg>,
    numbers: std::sync::atomic::AtomicU64,
    thread: Option<JoinHandle<()>>,
}

impl ClusterClient {
    /// Connects, with a deadline, as the manifest's client (certificate from its certificate
    /// folder). Blocks this thread; needs no runtime.
    ///
    /// # Errors
    /// As [`ClientError`] says; [`ClientError::NotRunning`] and [`ClientError::Unreachable`] are
    /// the command line's exit code 3.
    pub fn connect(manifest: &Manifest) -> Result<Self, ClientError> {
        let (link, thread) = thread::connect(manifest)?;
        let cluster = manifest.cluster.name.clone();
        Ok(Self { cluster, link, numbers: 1.into(), thread: Some(thread) })
    }

    /// Sends a request for one picture. Never blocks; whatever is wrong comes back as the handle's
    /// result. For several see [`GenerateRequest::images`].
    pub fn generate(&self, mut request: GenerateRequest) -> GenerationHandle {
        request.traceparent = request.traceparent.or_else(trace_context::current);
        let id = self.next_number();
        let canceller = self.link.clone();
        let (sink, handle) = generation::channel(move || {
            // A link that has ended has cancelled everything.
            let _ = canceller.cast(LinkMsg::Cancel(id));
        });
        let gone = sink.clone();
        if self.link.cast(LinkMsg::Generate(id, Box::new(request), sink)).is_err() {
            gone.result(Err(GenerateError::Lost(self.lost().to_string())));
        }
        handle
    }

    /// The cluster as it is. Works on any async executor.
    ///
    /// # Errors
    /// When the session is lost.
    pub async fn status(&self) -> Result<ClusterStatus, ClientError> {
        self.ask_status().await.map_err(|_| self.lost())?
    }

    /// As [`Self::status`], blocking this thread. Must not be called inside an async runtime.
    ///
    /// # Errors
    /// When the session is lost.
    pub fn blocking_status(&self) -> Result<ClusterStatus, ClientError> {
        self.ask_status().blocking_recv().map_err(|_| self.lost())?
    }

    /// Has every node look at itself and at its ways to the others; what they found, and the
    /// coordinator's clock against this host's. Takes up to 20 s, in which the cluster goes on
    /// with its work. Blocks this thread.
    ///
    /// # Errors
    /// [`ClientError::Denied`] while somebody else's examination is under way; when the session is
    /// lost.
    pub fn blocking_examine(&self) -> Result<(Examined, Option<Skew>), ClientError> {
        let (reply, answer) = oneshot::channel();
        // The dropped reply tells.
        let _ = self.link.cast(LinkMsg::Examine(self.next_number(), reply));
        answer.blocking_recv().map_err(|_| self.lost())?
    }

    /// Tells the cluster to stop; returns once the coordinator has agreed. Blocks this thread.
    ///
    /// # Errors
    /// When the session is lost.
    pub fn blocking_down(&self) -> Result<(), ClientError> {
        let (reply, answer) = oneshot::channel();
        // The dropped reply tells.
        let _ = self.link.cast(LinkMsg::Down(self.next_number(), reply));
        answer.blocking_recv().map_err(|_| self.lost())?
    }

    /// Takes a node out of the cluster: what runs there has `drain` to end; returns once the
    /// coordinator has agreed. Blocks this thread.
    ///
    /// # Errors
    /// [`ClientError::Denied`] when there is no such node; when the session is lost.
    pub fn blocking_leave(&self, node: &str, drain: Duration) -> Result<String, ClientError> {
        let drain_ms = drain.as_millis().try_into().unwrap_or(u32::MAX);
        self.order(ClientCall::Leave { node: node.into(), drain_ms })
    }

    /// Declares a node gone for good. Blocks this thread.
    ///
    /// # Errors
    /// As [`Self::blocking_leave`].
    pub fn blocking_force_leave(&self, node: &str) -> Result<String, ClientError> {
        self.order(ClientCall::ForceLeave { node: node.into() })
    }

    /// A token with which one machine can join, as `node` if that is given. Blocks this thread.
    ///
    /// # Errors
    /// [`ClientError::Denied`] where the coordinator cannot make certificates; when the session is
    /// lost.
    pub fn blocking_token(&self, node: Option<&str>, ttl: Duration) -> Result<String, ClientError> {
        let ttl_s = ttl.as_secs().try_into().unwrap_or(u32::MAX);
        self.order(ClientCall::Token { node: node.map(ToOwned::to_owned), ttl_s })
    }

    fn order(&self, call: ClientCall) -> Result<String, ClientError> {
        let (reply, answer) = oneshot::channel();
        // The dropped reply tells.
        let _ = self.link.cast(LinkMsg::Order(self.next_number(), Box::new(call), reply));
        answer.blocking_recv().map_err(|_| self.lost())?
    }

    fn ask_status(&self) -> oneshot::Receiver<Result<ClusterStatus, ClientError>> {
        let (reply, answer) = oneshot::channel();
        // The dropped reply tells.
        let _ = self.link.cast(LinkMsg::Status(self.next_number(), reply));
        answer
    }

    fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    fn lost(&self) -> ClientError {
        ClientError::Lost { cluster: self.cluster.clone(), cause: "the session has ended".into() }
    }
}

impl Drop for ClusterClient {
    fn drop(&mut self) {
        // A link that has ended needs no order.
        let _ = self.link.cast(LinkMsg::Close);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the client's thread panicked");
        }
    }
}

//! How the rest of a process talks to its coordinator.
//!
//! Owns request numbers. Never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ditmesh_transport::control::{ControlChannel, ControlEndpoint};
use ractor::{Actor, ActorRef};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{Coordinator, CoordinatorArgs, CoordinatorMsg, admission};
use crate::dispatcher::RequestId;
use crate::generation::{self, GenerateError, GenerationHandle, UpdateSink};
use crate::protocol::RequestKey;
use crate::request::GenerateRequest;
use crate::status::ClusterStatus;

/// Longest wait for a coordinator to end.
const STOP_DEADLINE: Duration = Duration::from_secs(3);

/// A way to a coordinator in this process.
#[derive(Clone, Debug)]
pub(crate) struct CoordinatorHandle {
    actor: ActorRef<CoordinatorMsg>,
    next_request: Arc<AtomicU64>,
}

impl CoordinatorHandle {
    /// Starts a coordinator.
    ///
    /// # Errors
    /// In words.
    pub(crate) async fn start(args: CoordinatorArgs) -> Result<Self, String> {
        let numbers = Arc::new(AtomicU64::new(1));
        let args = (args, numbers.clone());
        let (actor, _) =
            Coordinator::spawn(None, Coordinator, args).await.map_err(|error| error.to_string())?;
        Ok(Self::new(actor, numbers))
    }

    pub(super) fn new(actor: ActorRef<CoordinatorMsg>, next_request: Arc<AtomicU64>) -> Self {
        Self { actor, next_request }
    }

    /// Queues a request; whatever is wrong comes back through the handle.
    pub(crate) fn submit(&self, request: GenerateRequest) -> GenerationHandle {
        self.send(request, CoordinatorMsg::Submit)
    }

    fn send(
        &self,
        request: GenerateRequest,
        message: impl FnOnce(RequestId, Box<GenerateRequest>, UpdateSink) -> CoordinatorMsg,
    ) -> GenerationHandle {
        let id = self.next_request.fetch_add(1, Ordering::Relaxed);
        let canceller = self.actor.clone();
        let (sink, handle) = generation::channel(move || {
            // A coordinator that has ended has cancelled everything.
            let _ = canceller.cast(CoordinatorMsg::Cancel(id));
        });
        let gone = sink.clone();
        if self.actor.cast(message(id, Box::new(request), sink)).is_err() {
            gone.result(Err(GenerateError::Lost("the coordinator has stopped".into())));
        }
        handle
    }

    /// As [`Self::submit`], of a client that asks again with the same key when it has to.
    pub(crate) fn submit_keyed(
        &self,
        key: RequestKey,
        request: GenerateRequest,
    ) -> GenerationHandle {
        self.send(request, |id, request, sink| CoordinatorMsg::SubmitKeyed(key, id, request, sink))
    }

    /// Asks for the cluster's status; the answer never comes when the coordinator has ended.
    pub(crate) fn status(&self) -> oneshot::Receiver<ClusterStatus> {
        let (reply, status) = oneshot::channel();
        // The dropped sender tells the asker.
        let _ = self.actor.cast(CoordinatorMsg::Status(reply));
        status
    }

    /// Actors that live below the coordinator: one for each session, and the tree of each mesh.
    pub(super) fn actors(&self) -> usize {
        let (mut found, mut open) = (0, self.actor.get_children());
        while let Some(actor) = open.pop() {
            found += 1;
            open.extend(actor.get_children());
        }
        found
    }

    /// Takes a channel that somebody in this process dialled. Needs a tokio runtime.
    pub(crate) fn admit(&self, channel: ControlChannel, cluster: String) {
        tokio::spawn(admission::admit(channel, cluster, self.actor.clone()));
    }

    /// Accepts whoever dials `endpoint`, until either is closed. Needs a tokio runtime.
    pub(crate) fn listen(&self, endpoint: Arc<ControlEndpoint>) -> JoinHandle<()> {
        let cluster = endpoint.cluster().to_string();
        let coordinator = self.actor.clone();
        tokio::spawn(async move {
            tokio::join!(
                admission::hear_joiners(&endpoint, &coordinator),
                admission::accept_all(endpoint.clone(), cluster, coordinator.clone()),
            );
        })
    }

    /// Ends the coordinator: requests fail, sessions close.
    pub(crate) async fn stop(&self) {
        // It may have ended already.
        let _ = self.actor.stop_and_wait(None, Some(STOP_DEADLINE)).await;
    }
}

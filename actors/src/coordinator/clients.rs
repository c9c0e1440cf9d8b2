//! Clients and their calls.
//!
//! Owns the table of clients and one forwarding task per request. A client that goes takes its
//! requests along: its tasks end, and with them the handles that keep the requests alive.

use std::collections::BTreeMap;
use std::time::Duration;

use ditmesh_transport::control::ControlChannel;
use ractor::ActorRef;
use tokio::task::AbortHandle;

use super::members::Peer;
use super::{CoordinatorMsg, State};
use crate::generation::{GenerateError, GenerationHandle};
use crate::protocol::{
    ClientCall, ClientReply, FailureKind, FromCoordinator, RequestTensors, ToCoordinator,
};
use crate::request::{GenerateRequest, Generation, Output};
use crate::session::SessionHandle;

/// Requests of one client at a time; one more is refused.
const CLIENT_REQUESTS_MAX: usize = 64;

/// One client.
struct Client {
    session: SessionHandle<FromCoordinator>,
    requests: BTreeMap<u64, AbortHandle>,
}

impl Drop for Client {
    fn drop(&mut self) {
        for task in self.requests.values() {
            task.abort();
        }
    }
}

/// All clients.
#[derive(Default)]
pub(super) struct Clients {
    clients: BTreeMap<u64, Client>,
    next: u64,
}

impl State {
    pub(super) async fn client_arrived(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        channel: ControlChannel,
    ) {
        self.clients.next += 1;
        let number = self.clients.next;
        if let Some(session) = self.open_session(myself, Peer::Client(number), channel).await {
            let requests = BTreeMap::new();
            self.clients.clients.insert(number, Client { session, requests });
        }
    }

    pub(super) fn client_gone(&mut self, number: u64) {
        self.clients.clients.remove(&number);
    }

    pub(super) async fn client_says(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        number: u64,
        message: ToCoordinator,
        blob: Option<Vec<u8>>,
    ) {
        let ToCoordinator::Client { id, call } = message else { return };
        if matches!(*call, ClientCall::Examine) {
            return self.examine(number, id);
        }
        let done = match &*call {
            ClientCall::Leave { node, drain_ms } => {
                let drain = Duration::from_millis((*drain_ms).into());
                Some(self.leave(myself, node.clone(), drain).await)
            }
            ClientCall::ForceLeave { node } => Some(self.force_leave(myself, node.clone()).await),
            ClientCall::Token { node, ttl_s } => {
                Some(self.make_token(node.clone(), Duration::from_secs((*ttl_s).into())))
            }
            _ => None,
        };
        if let Some(done) = done {
            return self.answer(number, id, done);
        }
        let status = matches!(*call, ClientCall::Status).then(|| Box::new(self.snapshot()));
        let Some(client) = self.clients.clients.get_mut(&number) else { return };
        match (*call, status) {
            (ClientCall::Generate { key, request, .. }, _) => {
                client.requests.retain(|_, task| !task.is_finished());
                if client.requests.len() >= CLIENT_REQUESTS_MAX {
                    let cause = format!("this client has {CLIENT_REQUESTS_MAX} requests already");
                    let reply = ClientReply::Failed { kind: FailureKind::Failed, cause };
                    return client.session.send(FromCoordinator::Reply { id, reply });
                }
                match with_tensors(*request, blob) {
                    Ok(request) => {
                        // Asked again after a restart, it may be running already.
                        let known = self.desk.memory.claim(key);
                        let handle =
                            known.unwrap_or_else(|| self.handle.submit_keyed(key, request));
                        let task = tokio::spawn(forward(handle, client.session.clone(), id));
                        client.requests.insert(id, task.abort_handle());
                    }
                    Err(cause) => {
                        let reply = ClientReply::Failed { kind: FailureKind::Refused, cause };
                        client.session.send(FromCoordinator::Reply { id, reply });
                    }
                }
            }
            (ClientCall::Cancel { request }, _) => {
                if let Some(task) = client.requests.remove(&request) {
                    task.abort();
                }
            }
            (ClientCall::Status, Some(status)) => {
                let reply = ClientReply::Status(status);
                client.session.send(FromCoordinator::Reply { id, reply });
            }
            (ClientCall::Status, None) => {}
            (ClientCall::Down, _) => {
                tracing::info!("a client takes the cluster down");
                let reply = ClientReply::Down;
                client.session.send(FromCoordinator::Reply { id, reply });
                self.sessions.shut_down();
            }
            // Answered above.
            (
                ClientCall::Leave { .. }
                | ClientCall::ForceLeave { .. }
                | ClientCall::Token { .. }
                | ClientCall::Examine,
                _,
            ) => {}
        }
    }

    /// Tells a client what came of its order.
    fn answer(&self, number: u64, id: u64, done: Result<String, String>) {
        self.reply(
            number,
            id,
            match done {
                Ok(answer) => ClientReply::Accepted { answer },
                Err(cause) => ClientReply::Failed { kind: FailureKind::Refused, cause },
            },
        );
    }

    /// Answers a client, if it is still there.
    pub(super) fn reply(&self, number: u64, id: u64, reply: ClientReply) {
        if let Some(client) = self.clients.clients.get(&number) {
            client.session.send(FromCoordinator::Reply { id, reply });
        }
    }
}

/// Puts the tensors that came as a blob back into their request.
fn with_tensors(
    request: GenerateRequest,
    blob: Option<Vec<u8>>,
) -> Result<GenerateRequest, String> {
    let Some(blob) = blob else { return Ok(request) };
    let RequestTensors { latents, prompt_embeds } =
        RequestTensors::from_bytes(&blob).map_err(|error| error.to_string())?;
    Ok(GenerateRequest { latents, prompt_embeds, ..request })
}

/// Sends everything that happens to a request to its client.
async fn forward(mut handle: GenerationHandle, session: SessionHandle<FromCoordinator>, id: u64) {
    while let Some(event) = handle.next_event().await {
        session.send(FromCoordinator::Reply { id, reply: ClientReply::Event(event) });
    }
    match handle.finish().await {
        Ok(Generation { output, report }) => {
            let (shape, latents, blob) = to_blob(output);
            let report = Box::new(report);
            let reply = ClientReply::Done { report, shape, latents };
            session.send_with_blob(FromCoordinator::Reply { id, reply }, blob);
        }
        Err(error) => {
            let kind = match error {
                GenerateError::Refused(_) => FailureKind::Refused,
                GenerateError::Failed(_) => FailureKind::Failed,
                GenerateError::Lost(_) | GenerateError::Unreachable(_) => FailureKind::Lost,
                GenerateError::Expired(_) => FailureKind::Expired,
                GenerateError::NotAccepted(_) => FailureKind::NotAccepted,
                GenerateError::Cancelled => FailureKind::Cancelled,
            };
            let reply = ClientReply::Failed { kind, cause: error.to_string() };
            session.send(FromCoordinator::Reply { id, reply });
        }
    }
}

/// Shape, whether these are latents, and the bytes.
fn to_blob(output: Output) -> (Vec<u32>, bool, Vec<u8>) {
    match output {
        Output::Image(image) => (vec![image.height, image.width, 3], false, image.data),
        Output::Latents(tensor) => {
            let shape = tensor.shape.iter().map(|&size| size as u32).collect();
            let bytes = tensor.data.iter().flat_map(|value| value.to_le_bytes()).collect();
            (shape, true, bytes)
        }
    }
}

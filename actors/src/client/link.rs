//! The actor of a client: its calls and their answers.
//!
//! Owns the table of open calls. Supervises the session; when that is lost every open call ends
//! with the loss, and so does this actor.

use std::collections::BTreeMap;
use std::time::Duration;

use ditmesh_transport::control::ControlChannel;
use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::oneshot;

use super::ClientError;
use crate::generation::{GenerateError, UpdateSink};
use crate::protocol::{
    ClientCall, ClientReply, FailureKind, FromCoordinator, RequestTensors, ToCoordinator,
};
use crate::request::{FloatTensor, GenerateRequest, Generation, Output, Report, RgbImage};
use crate::session::handshake::Welcome;
use crate::session::{MemberSide, PeerSession, SessionArgs, SessionHandle};
use crate::status::ClusterStatus;

/// What a link is made of.
pub(super) struct LinkArgs {
    pub(super) cluster: String,
    pub(super) channel: ControlChannel,
    pub(super) welcome: Welcome,
}

/// Answers a call.
type Reply<T> = oneshot::Sender<Result<T, ClientError>>;

/// What a link is sent.
pub(super) enum LinkMsg {
    Generate(u64, Box<GenerateRequest>, UpdateSink),
    Cancel(u64),
    Status(u64, Reply<ClusterStatus>),
    Down(u64, Reply<()>),
    Heard(FromCoordinator, Option<Vec<u8>>),
    Close,
}

impl std::fmt::Debug for LinkMsg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LinkMsg")
    }
}

/// The actor.
pub(super) struct Link;

/// A link at work.
pub(super) struct State {
    cluster: String,
    session: SessionHandle<ToCoordinator>,
    requests: BTreeMap<u64, UpdateSink>,
    statuses: BTreeMap<u64, Reply<ClusterStatus>>,
    downs: BTreeMap<u64, Reply<()>>,
}

impl Link {
    /// Starts a link on a channel past the handshake.
    pub(super) async fn start(
        args: LinkArgs,
    ) -> Result<(ActorRef<LinkMsg>, tokio::task::JoinHandle<()>), SpawnErr> {
        Self::spawn(None, Self, args).await
    }
}

impl Actor for Link {
    type Msg = LinkMsg;
    type State = State;
    type Arguments = LinkArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<LinkMsg>,
        args: LinkArgs,
    ) -> Result<State, ActorProcessingErr> {
        let (session, ends) = SessionHandle::new();
        let heard = myself.clone();
        let session_args = SessionArgs::<MemberSide, String> {
            peer: "the coordinator".into(),
            channel: args.channel,
            ends,
            // A link that has ended hears nothing more.
            deliver: Box::new(move |message, blob| drop(heard.cast(LinkMsg::Heard(message, blob)))),
            heartbeat: Duration::from_millis(args.welcome.heartbeat_ms.into()),
            silence_max: Some(Duration::from_millis(args.welcome.dead_ms.into())),
        };
        PeerSession::start(session_args, myself.get_cell()).await?;
        Ok(State {
            cluster: args.cluster,
            session,
            requests: BTreeMap::new(),
            statuses: BTreeMap::new(),
            downs: BTreeMap::new(),
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<LinkMsg>,
        message: LinkMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LinkMsg::Generate(id, request, sink) => state.generate(id, request, sink),
            LinkMsg::Cancel(request) => {
                if state.requests.remove(&request).is_some() {
                    state.call(request, ClientCall::Cancel { request });
                }
            }
            LinkMsg::Status(id, reply) => {
                state.statuses.insert(id, reply);
                state.call(id, ClientCall::Status);
            }
            LinkMsg::Down(id, reply) => {
                state.downs.insert(id, reply);
                state.call(id, ClientCall::Down);
            }
            LinkMsg::Heard(FromCoordinator::Reply { id, reply }, blob) => {
                state.answer(id, reply, blob);
            }
            LinkMsg::Heard(..) => {}
            LinkMsg::Close => state.session.close("the client has ended"),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<LinkMsg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, error) = event {
            state.lose(&error.to_string());
            myself.stop(Some(error.to_string()));
        }
        Ok(())
    }
}

impl State {
    fn call(&self, id: u64, call: ClientCall) {
        self.session.send(ToCoordinator::Client { id, call: Box::new(call) });
    }

    fn generate(&mut self, id: u64, mut request: Box<GenerateRequest>, sink: UpdateSink) {
        let tensors = RequestTensors {
            latents: request.latents.take(),
            prompt_embeds: request.prompt_embeds.take(),
        };
        self.requests.insert(id, sink);
        if tensors == RequestTensors::default() {
            return self.call(id, ClientCall::Generate { request, inputs_follow: false });
        }
        match tensors.to_bytes() {
            Ok(blob) => {
                let call = Box::new(ClientCall::Generate { request, inputs_follow: true });
                self.session.send_with_blob(ToCoordinator::Client { id, call }, blob);
            }
            Err(error) => self.finish(id, Err(GenerateError::Refused(error.to_string()))),
        }
    }

    fn answer(&mut self, id: u64, reply: ClientReply, blob: Option<Vec<u8>>) {
        match reply {
            ClientReply::Event(event) => {
                if let Some(sink) = self.requests.get(&id) {
                    sink.event(event);
                }
            }
            ClientReply::Done { report, shape, latents } => {
                let generation = to_generation(*report, &shape, latents, blob.unwrap_or_default());
                self.finish(id, generation);
            }
            ClientReply::Failed { kind, cause } => self.finish(
                id,
                Err(match kind {
                    FailureKind::Refused => GenerateError::Refused(cause),
                    FailureKind::Failed => GenerateError::Failed(cause),
                    FailureKind::Lost => GenerateError::Lost(cause),
                    FailureKind::Cancelled => GenerateError::Cancelled,
                }),
            ),
            ClientReply::Status(status) => {
                if let Some(reply) = self.statuses.remove(&id) {
                    // Whoever asked may have gone.
                    let _ = reply.send(Ok(*status));
                }
            }
            ClientReply::Down => {
                if let Some(reply) = self.downs.remove(&id) {
                    // Whoever asked may have gone.
                    let _ = reply.send(Ok(()));
                }
            }
        }
    }

    fn finish(&mut self, id: u64, result: Result<Generation, GenerateError>) {
        if let Some(sink) = self.requests.remove(&id) {
            sink.result(result);
        }
    }

    /// Ends every open call.
    fn lose(&mut self, cause: &str) {
        let error = ClientError::Lost { cluster: self.cluster.clone(), cause: cause.to_string() };
        for sink in std::mem::take(&mut self.requests).into_values() {
            sink.result(Err(GenerateError::Lost(error.to_string())));
        }
        for reply in std::mem::take(&mut self.statuses).into_values() {
            // Whoever asked may have gone.
            let _ = reply.send(Err(error.clone()));
        }
        for reply in std::mem::take(&mut self.downs).into_values() {
            // Whoever asked may have gone.
            let _ = reply.send(Err(error.clone()));
        }
    }
}

/// A result from its message and its blob, whose sizes must agree.
fn to_generation(
    report: Report,
    shape: &[u32],
    latents: bool,
    blob: Vec<u8>,
) -> Result<Generation, GenerateError> {
    let element = if latents { size_of::<f32>() } else { 1 };
    let expected = shape.iter().try_fold(element, |bytes, &size| bytes.checked_mul(size as usize));
    if expected != Some(blob.len()) {
        return Err(GenerateError::Failed(format!(
            "the result of shape {shape:?} came with {} bytes",
            blob.len()
        )));
    }
    let output = match (latents, shape) {
        (true, _) => {
            let shape = shape.iter().map(|&size| size as usize).collect();
            let data = blob
                .chunks_exact(size_of::<f32>())
                .filter_map(|bytes| Some(f32::from_le_bytes(bytes.try_into().ok()?)))
                .collect();
            Output::Latents(FloatTensor { shape, data })
        }
        (false, &[height, width, 3]) => Output::Image(RgbImage { width, height, data: blob }),
        (false, _) => {
            let cause = format!("shape {shape:?} is not that of a picture");
            return Err(GenerateError::Failed(cause));
        }
    };
    Ok(Generation { output, report })
}

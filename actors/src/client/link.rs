//! The actor of a client: its calls and their answers.
//!
//! Owns the table of open calls. Supervises the session; when that is lost it goes back to the
//! coordinator, which may be another process by then, and asks for the open requests again, each by
//! its key. Only when nobody is found every open call ends with the loss, and so does this actor.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use ditmesh_transport::control::ControlChannel;
use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::oneshot;

use super::ClientError;
use super::thread::Redial;
use crate::examine::clock::{Skew, unix_us};
use crate::generation::{GenerateError, UpdateSink};
use crate::protocol::examine::Examined;
use crate::protocol::{
    ClientCall, ClientReply, FailureKind, FromCoordinator, RequestKey, RequestTensors,
    ToCoordinator,
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
    pub(super) redial: Redial,
}

/// Answers a call.
type Reply<T> = oneshot::Sender<Result<T, ClientError>>;

/// What nodes found out, and the coordinator's clock against this host's.
pub(super) type Examination = (Examined, Option<Skew>);

/// What a link is sent.
pub(super) enum LinkMsg {
    Generate(u64, Box<GenerateRequest>, UpdateSink),
    Cancel(u64),
    Status(u64, Reply<ClusterStatus>),
    Down(u64, Reply<()>),
    Order(u64, Box<ClientCall>, Reply<String>),
    Examine(u64, Reply<Examination>),
    Heard(FromCoordinator, Option<Vec<u8>>),
    Redialled(Result<(ControlChannel, Welcome), ClientError>),
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
    /// Of all its keys.
    client: u64,
    redial: Arc<Redial>,
    /// The client has ended.
    is_closed: bool,
    /// None while it is sought again.
    session: Option<SessionHandle<ToCoordinator>>,
    requests: BTreeMap<u64, Open>,
    statuses: BTreeMap<u64, Reply<ClusterStatus>>,
    downs: BTreeMap<u64, Reply<()>>,
    orders: BTreeMap<u64, Reply<String>>,
    /// When each was asked, by this host's clock in microseconds.
    examinations: BTreeMap<u64, (u64, Reply<Examination>)>,
}

/// A request that has no result yet.
struct Open {
    request: Box<GenerateRequest>,
    sink: UpdateSink,
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
        let LinkArgs { cluster, channel, welcome, redial } = args;
        let session = Some(open_session(&myself, channel, &welcome).await?);
        Ok(State {
            cluster,
            // Hashers are seeded at random.
            client: RandomState::new().build_hasher().finish(),
            redial: Arc::new(redial),
            is_closed: false,
            session,
            requests: BTreeMap::new(),
            statuses: BTreeMap::new(),
            downs: BTreeMap::new(),
            orders: BTreeMap::new(),
            examinations: BTreeMap::new(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<LinkMsg>,
        message: LinkMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LinkMsg::Generate(id, request, sink) => {
                state.requests.insert(id, Open { request, sink });
                state.generate(id);
            }
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
            LinkMsg::Order(id, call, reply) => {
                state.orders.insert(id, reply);
                state.call(id, *call);
            }
            LinkMsg::Examine(id, reply) => {
                state.examinations.insert(id, (unix_us(), reply));
                state.call(id, ClientCall::Examine);
            }
            LinkMsg::Heard(FromCoordinator::Reply { id, reply }, blob) => {
                state.answer(id, reply, blob);
            }
            LinkMsg::Heard(..) => {}
            LinkMsg::Redialled(Ok((channel, welcome))) => {
                state.session = Some(open_session(&myself, channel, &welcome).await?);
                let open: Vec<u64> = state.requests.keys().copied().collect();
                open.into_iter().for_each(|id| state.generate(id));
                state.statuses.keys().for_each(|&id| state.call(id, ClientCall::Status));
            }
            LinkMsg::Redialled(Err(error)) => {
                state.lose(&error);
                myself.stop(Some(error.to_string()));
            }
            LinkMsg::Close => {
                state.is_closed = true;
                match &state.session {
                    Some(session) => session.close("the client has ended"),
                    None => myself.stop(None),
                }
            }
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
            let cause = error.to_string();
            if state.is_closed {
                let cluster = state.cluster.clone();
                state.lose(&ClientError::Lost { cluster, cause: cause.clone() });
                myself.stop(Some(cause));
                return Ok(());
            }
            tracing::info!(cause, "the coordinator is sought again");
            state.lose_session(&cause);
            let redial = state.redial.clone();
            tokio::spawn(async move {
                let outcome = redial.again(&cause).await;
                // A link that was closed meanwhile seeks nobody.
                let _ = myself.cast(LinkMsg::Redialled(outcome));
            });
        }
        Ok(())
    }
}

impl State {
    /// Asks, if there is anybody to ask.
    fn call(&self, id: u64, call: ClientCall) {
        if let Some(session) = &self.session {
            session.send(ToCoordinator::Client { id, call: Box::new(call) });
        }
    }

    /// Asks for an open request, if there is anybody to ask.
    fn generate(&mut self, id: u64) {
        let (Some(session), Some(Open { request, .. })) = (&self.session, self.requests.get(&id))
        else {
            return;
        };
        let key = RequestKey { client: self.client, number: id };
        let mut request = request.clone();
        let tensors = RequestTensors {
            latents: request.latents.take(),
            prompt_embeds: request.prompt_embeds.take(),
        };
        let inputs_follow = tensors != RequestTensors::default();
        let call = Box::new(ClientCall::Generate { key, request, inputs_follow });
        let message = ToCoordinator::Client { id, call };
        if !inputs_follow {
            return session.send(message);
        }
        match tensors.to_bytes() {
            Ok(blob) => session.send_with_blob(message, blob),
            Err(error) => self.finish(id, Err(GenerateError::Refused(error.to_string()))),
        }
    }

    fn answer(&mut self, id: u64, reply: ClientReply, blob: Option<Vec<u8>>) {
        match reply {
            ClientReply::Event(event) => {
                if let Some(Open { sink, .. }) = self.requests.get(&id) {
                    sink.event(event);
                }
            }
            ClientReply::Done { report, shape, latents } => {
                let generation = to_generation(*report, &shape, latents, blob.unwrap_or_default());
                self.finish(id, generation);
            }
            ClientReply::Accepted { answer } => {
                if let Some(reply) = self.orders.remove(&id) {
                    // Whoever asked may have gone.
                    let _ = reply.send(Ok(answer));
                }
            }
            ClientReply::Examined(examined) => {
                if let Some((asked, reply)) = self.examinations.remove(&id) {
                    let Examined { received_us, sent_us, .. } = *examined;
                    let skew = Skew::of(asked, received_us, sent_us, unix_us());
                    // Whoever asked may have gone.
                    let _ = reply.send(Ok((*examined, skew)));
                }
            }
            ClientReply::Failed { cause, .. } if self.orders.contains_key(&id) => {
                if let Some(reply) = self.orders.remove(&id) {
                    // Whoever asked may have gone.
                    let _ = reply.send(Err(ClientError::Denied(cause)));
                }
            }
            ClientReply::Failed { cause, .. } if self.examinations.contains_key(&id) => {
                if let Some((_, reply)) = self.examinations.remove(&id) {
                    // Whoever asked may have gone.
                    let _ = reply.send(Err(ClientError::Denied(cause)));
                }
            }
            ClientReply::Failed { kind, cause } => self.finish(
                id,
                Err(match kind {
                    FailureKind::Refused => GenerateError::Refused(cause),
                    FailureKind::Failed => GenerateError::Failed(cause),
                    FailureKind::Lost => GenerateError::Lost(cause),
                    FailureKind::Expired => GenerateError::Expired(cause),
                    FailureKind::NotAccepted => GenerateError::NotAccepted(cause),
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
        if let Some(Open { sink, .. }) = self.requests.remove(&id) {
            sink.result(result);
        }
    }

    /// Ends what only the lost session could have answered; requests stay open.
    fn lose_session(&mut self, cause: &str) {
        self.session = None;
        let error = ClientError::Lost { cluster: self.cluster.clone(), cause: cause.to_string() };
        self.end_calls(&error);
    }

    /// Ends every open call.
    fn lose(&mut self, error: &ClientError) {
        for Open { sink, .. } in std::mem::take(&mut self.requests).into_values() {
            sink.result(Err(GenerateError::Lost(error.to_string())));
        }
        self.end_calls(error);
    }

    fn end_calls(&mut self, error: &ClientError) {
        for reply in std::mem::take(&mut self.statuses).into_values() {
            // Whoever asked may have gone.
            let _ = reply.send(Err(error.clone()));
        }
        for reply in std::mem::take(&mut self.orders).into_values() {
            // Whoever asked may have gone.
            let _ = reply.send(Err(error.clone()));
        }
        for (_, reply) in std::mem::take(&mut self.examinations).into_values() {
            // Whoever asked may have gone.
            let _ = reply.send(Err(error.clone()));
        }
        for reply in std::mem::take(&mut self.downs).into_values() {
            // Whoever asked may have gone.
            let _ = reply.send(Err(error.clone()));
        }
    }
}

/// Starts the session of a channel past the handshake.
async fn open_session(
    myself: &ActorRef<LinkMsg>,
    channel: ControlChannel,
    welcome: &Welcome,
) -> Result<SessionHandle<ToCoordinator>, ActorProcessingErr> {
    let (session, ends) = SessionHandle::new();
    let heard = myself.clone();
    let args = SessionArgs::<MemberSide, String> {
        peer: "the coordinator".into(),
        channel,
        ends,
        // A link that has ended hears nothing more.
        deliver: Box::new(move |message, blob| drop(heard.cast(LinkMsg::Heard(message, blob)))),
        heartbeat: Duration::from_millis(welcome.heartbeat_ms.into()),
        silence_max: Some(Duration::from_millis(welcome.dead_ms.into())),
    };
    PeerSession::start(args, myself.get_cell()).await?;
    Ok(session)
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

//! A member's lasting tie to the coordinator: one session after another.
//!
//! Owns dialling, the incarnation of each session, and when to give up. Supervises one
//! [`PeerSession`] at a time. What is said and heard is its owner's.
//!
//! Invariant: each session has a higher incarnation than the one before, so that the coordinator
//! never mistakes a new session for the lost one.

use std::time::{Duration, Instant};

use ditmesh_transport::control::ControlChannel;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};

use super::dial::{DialError, Dialer};
use super::handshake::Welcome;
use super::{MemberSide, PeerSession, SessionArgs, SessionHandle};
use crate::membership::Incarnation;
use crate::protocol::{FromCoordinator, Hello, ToCoordinator};

/// Longest time for one attempt.
const DIAL_DEADLINE: Duration = Duration::from_secs(3);

/// Before the first attempt after a failed one; each further one doubles it.
const RETRY_PAUSE_FIRST: Duration = Duration::from_millis(200);

/// Longest pause between attempts.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(3);

/// What an uplink tells its owner.
#[derive(Debug)]
pub(crate) enum UplinkEvent {
    /// There is a session; it lasts until `Down`.
    Up,
    /// The coordinator said something.
    Heard(FromCoordinator),
    /// The session is lost; the next one is being sought.
    Down(String),
    /// There will be no session any more.
    GaveUp(String),
}

/// Takes an uplink's events.
pub(crate) type OnEvent = Box<dyn Fn(UplinkEvent) + Send + Sync>;

/// What an uplink is made of.
pub(crate) struct UplinkArgs {
    pub(crate) dialer: Dialer,
    /// The first session's; later ones raise the incarnation.
    pub(crate) hello: Hello,
    /// How long to go on without a session; `None` is as long as the process lives.
    pub(crate) patience: Option<Duration>,
    pub(crate) on_event: OnEvent,
}

/// What an uplink is sent.
pub(crate) enum UplinkMsg {
    /// Say this, if there is a session.
    Say(ToCoordinator),
    /// Later hellos name this epoch.
    Epoch(u64),
    /// End the session and this actor.
    Close(String),
    Heard(FromCoordinator),
    Dialled(Result<(ControlChannel, Welcome), DialError>),
    Dial,
}

/// The actor.
pub(crate) struct Uplink;

/// An uplink at work.
pub(crate) struct State {
    args: UplinkArgs,
    session: Option<SessionHandle<ToCoordinator>>,
    /// Since when there is no session.
    alone_since: Instant,
    /// Attempts that failed since then.
    failed: u32,
}

impl Uplink {
    /// Starts an uplink under `supervisor`.
    ///
    /// # Errors
    /// When the supervisor is ending.
    pub(crate) async fn start(
        args: UplinkArgs,
        supervisor: ActorCell,
    ) -> Result<ActorRef<UplinkMsg>, SpawnErr> {
        Ok(Self::spawn_linked(None, Self, args, supervisor).await?.0)
    }
}

impl Actor for Uplink {
    type Msg = UplinkMsg;
    type State = State;
    type Arguments = UplinkArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<UplinkMsg>,
        args: UplinkArgs,
    ) -> Result<State, ActorProcessingErr> {
        myself.cast(UplinkMsg::Dial)?;
        Ok(State { args, session: None, alone_since: Instant::now(), failed: 0 })
    }

    async fn handle(
        &self,
        myself: ActorRef<UplinkMsg>,
        message: UplinkMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            UplinkMsg::Say(message) => {
                // Without a session the coordinator has given this member up already.
                if let Some(session) = &state.session {
                    session.send(message);
                }
            }
            UplinkMsg::Epoch(epoch) => state.args.hello.epoch = epoch,
            UplinkMsg::Close(reason) => {
                if let Some(session) = state.session.take() {
                    session.close(reason.clone());
                } else {
                    myself.stop(Some(reason));
                }
            }
            UplinkMsg::Heard(message) => (state.args.on_event)(UplinkEvent::Heard(message)),
            UplinkMsg::Dial => state.dial(&myself),
            UplinkMsg::Dialled(Ok((channel, welcome))) => {
                state.open(&myself, channel, welcome).await?;
            }
            UplinkMsg::Dialled(Err(error)) => state.retry(&myself, error),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<UplinkMsg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, error) = event {
            if state.session.take().is_none() {
                // This side closed it.
                myself.stop(Some(error.to_string()));
                return Ok(());
            }
            tracing::info!(%error, "lost the coordinator, dialling again");
            state.alone_since = Instant::now();
            (state.args.on_event)(UplinkEvent::Down(error.to_string()));
            let (introduced, is_final) = (true, false);
            state.retry(&myself, DialError { cause: error.to_string(), introduced, is_final });
        }
        Ok(())
    }
}

impl State {
    fn dial(&self, myself: &ActorRef<UplinkMsg>) {
        let (dialer, hello) = (self.args.dialer.clone(), self.args.hello.clone());
        let myself = myself.clone();
        tokio::spawn(async move {
            let dialled = dialer.reach(hello, Instant::now() + DIAL_DEADLINE).await;
            // An uplink that has ended drops the channel.
            let _ = myself.cast(UplinkMsg::Dialled(dialled));
        });
    }

    fn retry(&mut self, myself: &ActorRef<UplinkMsg>, error: DialError) {
        tracing::debug!(cause = error.cause, "no session with the coordinator");
        let alone = self.alone_since.elapsed();
        let impatient = self.args.patience.is_some_and(|patience| alone > patience);
        let next = Incarnation(self.args.hello.incarnation).next_session();
        if error.is_final || impatient || next.is_none() {
            (self.args.on_event)(UplinkEvent::GaveUp(error.cause.clone()));
            myself.stop(Some(error.cause));
            return;
        }
        if let (true, Some(Incarnation(next))) = (error.introduced, next) {
            self.args.hello.incarnation = next;
        }
        let pause = RETRY_PAUSE_FIRST.saturating_mul(1 << self.failed.min(16));
        self.failed = self.failed.saturating_add(1);
        myself.send_after(pause.min(RETRY_PAUSE_MAX), || UplinkMsg::Dial);
    }

    async fn open(
        &mut self,
        myself: &ActorRef<UplinkMsg>,
        channel: ControlChannel,
        welcome: Welcome,
    ) -> Result<(), ActorProcessingErr> {
        let (handle, ends) = SessionHandle::new();
        let heard = myself.clone();
        let args = SessionArgs::<MemberSide, String> {
            peer: "the coordinator".into(),
            channel,
            ends,
            deliver: Box::new(move |message, _| {
                // An uplink that has ended hears nothing more.
                let _ = heard.cast(UplinkMsg::Heard(message));
            }),
            heartbeat: Duration::from_millis(welcome.heartbeat_ms.into()),
            silence_max: Some(Duration::from_millis(welcome.dead_ms.into())),
        };
        PeerSession::start(args, myself.get_cell()).await?;
        self.session = Some(handle);
        self.failed = 0;
        (self.args.on_event)(UplinkEvent::Up);
        Ok(())
    }
}

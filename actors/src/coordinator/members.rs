//! Members and their sessions: from arrival to loss.
//!
//! Owns the table of sessions and what their messages are about. Does not judge anybody; what
//! membership's word leads to is in `advance`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use ditmesh_transport::control::ControlChannel;
use ractor::ActorRef;

use super::advance::Step;
use super::{CoordinatorMsg, State};
use crate::groups::RankMsg;
use crate::membership::{Incarnation, Member, MembershipEvent, Refusal};
use crate::protocol::{DeviceId, FromCoordinator, Hello, PROTOCOL_MAX, Party, ToCoordinator};
use crate::session::{
    CoordinatorSide, PeerSession, SessionArgs, SessionEnded, SessionHandle, handshake,
};

/// Longest time to tell a peer that it is refused.
const REFUSE_DEADLINE: Duration = Duration::from_secs(2);

/// Who is at the other end of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Member(Member, Incarnation),
    Client(u64),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(member, _) => member.fmt(f),
            Self::Client(number) => write!(f, "client {number}"),
        }
    }
}

/// A member's session.
pub(super) struct MemberSession {
    incarnation: Incarnation,
    pub(super) handle: SessionHandle<FromCoordinator>,
    /// Process id.
    pub(super) process: u32,
    /// Newest epoch a worker had been in when it came.
    epoch: u64,
    /// Callers that it says it turned away.
    pub(super) callers_refused: u64,
}

/// The sessions of members.
#[derive(Default)]
pub(super) struct Sessions {
    members: BTreeMap<Member, MemberSession>,
    /// Who has passed the handshake and has no verdict yet.
    arriving: Option<(Hello, ControlChannel)>,
}

impl Sessions {
    pub(super) fn get(&self, member: &Member) -> Option<&MemberSession> {
        self.members.get(member)
    }

    fn is_current(&self, member: &Member, incarnation: Incarnation) -> bool {
        self.members.get(member).is_some_and(|session| session.incarnation == incarnation)
    }

    /// A member says how many callers it has turned away.
    fn note_refused(&mut self, member: &Member, total: u64) {
        if let Some(session) = self.members.get_mut(member) {
            session.callers_refused = total;
        }
    }

    pub(super) fn close(&mut self, member: &Member, incarnation: Incarnation, reason: &str) {
        if self.is_current(member, incarnation)
            && let Some(session) = self.members.remove(member)
        {
            session.handle.close(reason);
        }
    }

    /// Tells every member to end.
    pub(super) fn shut_down(&self) {
        for session in self.members.values() {
            session.handle.send(FromCoordinator::Shutdown);
        }
    }

    pub(super) fn close_all(&mut self, reason: &str) {
        for session in std::mem::take(&mut self.members).into_values() {
            session.handle.close(reason);
        }
    }
}

impl State {
    /// Somebody passed the handshake.
    pub(super) async fn arrived(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        hello: Hello,
        channel: ControlChannel,
    ) {
        let member = match hello.party.clone() {
            Party::Agent { node } => Member::Agent(node),
            Party::Worker { device } => Member::Worker(device),
            Party::Client => return self.client_arrived(myself, channel).await,
        };
        let incarnation = Incarnation(hello.incarnation);
        let address = hello.fabric_address.clone();
        self.sessions.arriving = Some((hello, channel));
        self.member(myself, MembershipEvent::Joined { member, incarnation, address }).await;
        // Who got no verdict hears of it by the end of the channel.
        self.sessions.arriving = None;
    }

    /// Opens the session of the member that has just come.
    pub(super) async fn welcome(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        member: Member,
        incarnation: Incarnation,
    ) {
        let Some((hello, channel)) = self.sessions.arriving.take() else { return };
        tracing::info!(%member, %incarnation, process = hello.process, "member joined");
        self.desk.memory.note_member(&member, incarnation);
        let peer = Peer::Member(member.clone(), incarnation);
        let Some(handle) = self.open_session(myself, peer, channel).await else { return };
        let (process, epoch, callers_refused) = (hello.process, hello.epoch, 0);
        let session = MemberSession { incarnation, handle, process, epoch, callers_refused };
        self.sessions.members.insert(member, session);
    }

    /// Turns away who has just come.
    pub(super) fn refuse(&mut self, refusal: &Refusal) {
        let Some((_, channel)) = self.sessions.arriving.take() else { return };
        self.callers_refused += 1;
        let cause = refusal.to_string();
        tokio::spawn(async move {
            let deadline = Instant::now() + REFUSE_DEADLINE;
            handshake::refuse(&channel, &cause, deadline).await;
        });
    }

    /// Starts the session of a welcome peer.
    pub(super) async fn open_session(
        &self,
        myself: &ActorRef<CoordinatorMsg>,
        peer: Peer,
        channel: ControlChannel,
    ) -> Option<SessionHandle<FromCoordinator>> {
        let (handle, ends) = SessionHandle::new();
        let health = &self.manifest.health;
        handle.send(FromCoordinator::Welcome {
            protocol: PROTOCOL_MAX,
            heartbeat_ms: health.heartbeat_ms,
            dead_ms: health.dead_ms,
        });
        let (from, coordinator) = (peer.clone(), myself.clone());
        let args = SessionArgs::<CoordinatorSide, Peer> {
            peer,
            channel,
            ends,
            deliver: Box::new(move |message, blob| {
                let said = CoordinatorMsg::Said(from.clone(), Box::new(message), blob);
                // A coordinator that has ended hears nothing more.
                let _ = coordinator.cast(said);
            }),
            heartbeat: Duration::from_millis(health.heartbeat_ms.into()),
            silence_max: None,
        };
        match PeerSession::start(args, myself.get_cell()).await {
            Ok(()) => Some(handle),
            Err(error) => {
                tracing::error!(%error, "cannot start a session");
                None
            }
        }
    }

    /// A session delivered a message.
    pub(super) async fn said(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        peer: Peer,
        message: ToCoordinator,
        blob: Option<Vec<u8>>,
    ) {
        let (member, incarnation) = match peer {
            Peer::Client(client) => {
                return self.client_says(myself, client, message, blob).await;
            }
            Peer::Member(member, incarnation) => (member, incarnation),
        };
        if !self.sessions.is_current(&member, incarnation) {
            return;
        }
        let heard = MembershipEvent::Heard { member: member.clone(), incarnation };
        self.member(myself, heard).await;
        match (message, member) {
            (ToCoordinator::Heartbeat { .. }, _) => {}
            (ToCoordinator::WorkerExited { device, incarnation, status }, Member::Agent(node))
                if device.node == node =>
            {
                tracing::warn!(%device, %status, "worker ended");
                let incarnation = Incarnation(incarnation);
                let exited = MembershipEvent::WorkerExited { device, incarnation, status };
                self.member(myself, exited).await;
            }
            (ToCoordinator::Leave { drain_ms }, Member::Agent(node)) => {
                let drain = Duration::from_millis(drain_ms.into());
                if let Err(cause) = self.leave(myself, node, drain).await {
                    tracing::warn!(cause, "a node cannot leave");
                }
            }
            (ToCoordinator::Speeds(speeds), Member::Agent(node)) => {
                self.learn_speeds(myself, node, speeds).await;
            }
            (ToCoordinator::LinksObserved { epoch, links }, Member::Worker(device)) => {
                self.observe_links(&device, epoch, &links);
            }
            (ToCoordinator::LinkMeasuredAgain { number, figures }, Member::Worker(_)) => {
                self.measured_again(number, figures);
            }
            (ToCoordinator::CallersRefused(total), member @ Member::Worker(_)) => {
                self.sessions.note_refused(&member, total);
            }
            (ToCoordinator::Examined(examination), Member::Agent(node)) => {
                self.examined(&node, *examination);
            }
            (
                message @ (ToCoordinator::CopiesHeld(_)
                | ToCoordinator::CopyTaken { .. }
                | ToCoordinator::CopyPart(_)),
                Member::Agent(node),
            ) => self.advance(myself, Step::CopiesSaid(node, message)).await,
            (message, Member::Worker(device)) => self.worker_says(device, message),
            (message, member) => tracing::warn!(%member, ?message, "unexpected message"),
        }
    }

    /// Hands a worker's report to its place in the mesh that the report is about.
    fn worker_says(&mut self, device: DeviceId, message: ToCoordinator) {
        let epoch = self.desk.mesh_of(&message);
        if let Some(proxy) = epoch.and_then(|epoch| self.proxies.get(&(device, epoch))) {
            // A proxy that has failed hears nothing more.
            let _ = proxy.cast(RankMsg::Worker(message));
        }
    }

    pub(super) async fn session_ended(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        ended: SessionEnded<Peer>,
    ) {
        match ended.peer {
            Peer::Client(client) => self.client_gone(client),
            Peer::Member(member, incarnation) => {
                tracing::info!(%member, %incarnation, reason = ended.reason, "session ended");
                if self.sessions.is_current(&member, incarnation) {
                    self.sessions.members.remove(&member);
                    if let Member::Agent(node) = &member {
                        self.not_examined(node);
                    }
                }
                let reason = ended.reason;
                let closed = MembershipEvent::SessionClosed { member, incarnation, reason };
                self.member(myself, closed).await;
            }
        }
    }

    /// Takes an event to membership and carries out what follows.
    pub(super) async fn member(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        event: MembershipEvent,
    ) {
        self.advance(myself, Step::Membership(event)).await;
    }

    /// Newest epoch a worker had been in when it came.
    pub(super) fn last_epoch(&self, device: &DeviceId) -> u64 {
        self.sessions.get(&Member::Worker(device.clone())).map_or(0, |session| session.epoch)
    }
}
